"""Reductions: from the samples of a bin to one number for each channel.

A reduction is a callable of :class:`~detpool.ops.samples.Samples`; those with parameters or a mode are modules.
"""

import math

import torch
from torch import Tensor, nn

from . import formulas
from .samples import Samples


class Lp(nn.Module):
    """``mean(|f|^p)^(1/p)`` (Sermanet et al., arXiv:1204.3968; generalised mean pooling), 0 for a bin without samples.

    Magnitudes are taken relative to the largest of their image and channel: a bin all of whose values are below
    ``1e-38^(1/p)`` times it (a third of it for p = 80) counts as zeros.

    Args:
        p: the power, at least 1. 1 is the mean of ``|f|``, infinity would be the maximum.
        learnable: make p a parameter (used as ``2 - p`` should training move it below 1).
    """

    def __init__(self, p: float = 3.0, learnable: bool = False) -> None:
        super().__init__()
        if not 1 <= p < math.inf:
            raise ValueError(f"p must be at least 1 and finite, got {p!r}")
        self.p = nn.Parameter(torch.tensor(float(p)), requires_grad=learnable)

    def forward(self, samples: Samples) -> Tensor:
        features = formulas.widened(samples.features)
        scale = formulas.scale_of(features.detach().abs().amax((2, 3), keepdim=True))
        p = formulas.power(self.p.to(features.dtype))
        pooled = formulas.lp(_means(samples, features), p, scale, samples.by_bin(scale))
        return pooled.to(samples.features.dtype)


class Softmax(nn.Module):
    """``sum f e^(beta f) / sum e^(beta f)``: the mean for beta = 0, towards the maximum as beta grows.

    Values more than ``60 / beta`` below the largest feature of their image and channel weigh the same: nothing
    underflows, and a bin of nothing else is averaged.

    Args:
        beta: the inverse temperature.
        learnable: make beta a parameter.
    """

    def __init__(self, beta: float = 1.0, learnable: bool = False) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.tensor(float(beta)), requires_grad=learnable)

    def forward(self, samples: Samples) -> Tensor:
        features = formulas.widened(samples.features)
        beta = self.beta.to(features.dtype)
        largest = (beta * features).detach().amax((2, 3), keepdim=True)
        pooled = formulas.weighted(_means(samples, features), lambda v: (beta * v - largest).clamp(min=-60).exp())
        return pooled.to(samples.features.dtype)


class Stochastic(nn.Module):
    """Stochastic pooling (Zeiler and Fergus, arXiv:1301.3557): a value of the bin, drawn in proportion to itself.

    In evaluation the expectation, ``mean(f^2) / mean(f)``. Features must not be negative (negative ones count as 0); a
    bin of zeros gives 0. Drawing needs sampling "points"; the expectation works with any.

    Args:
        generator: source of the draws; PyTorch's default one if None.
    """

    def __init__(self, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, samples: Samples) -> Tensor:
        features = samples.features.clamp(min=0)
        if not self.training:
            expected = formulas.weighted(_means(samples, formulas.widened(features)), lambda v: v)
            return expected.to(features.dtype)
        values, exists = samples.points(features)
        values = values.masked_fill(~exists, 0.0)
        weights = formulas.widened(values.detach()).cumsum(dim=4)
        total_weight = weights[..., -1:]
        # Of (0, 1], not [0, 1): a draw rounded up to the total still finds the first value that reaches it.
        share = 1 - torch.rand(total_weight.shape, dtype=weights.dtype, generator=self.generator, device=values.device)
        chosen = (weights < share * total_weight).sum(dim=4, keepdim=True)
        return values.gather(4, chosen)[..., 0]


class Mixed(nn.Module):
    """``a max + (1 - a) mean`` (Lee, Gallagher and Tu, arXiv:1509.08985, section 3).

    Args:
        mode: "learned": a is one parameter; "gated": ``a = sigmoid(w . mean + b)`` for each bin, over channels;
            "random": a is drawn from {0, 1} for each bin and channel in training and 1/2 in evaluation (Yu, Wang,
            Chen and Wei, RSKT 2014).
        channels: channels of the output, for "gated".
        generator: source of the draws; PyTorch's default one if None.
    """

    MODES = ("learned", "gated", "random")

    def __init__(
        self, mode: str = "learned", channels: int | None = None, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        if mode not in self.MODES:
            raise ValueError(f"mode must be one of {', '.join(map(repr, self.MODES))}, got {mode!r}")
        if mode == "gated" and (channels is None or channels < 1):
            raise ValueError(f"mode 'gated' needs channels, the number of output channels, got {channels!r}")
        self.mode = mode
        self.generator = generator
        if mode == "learned":
            self.logit = nn.Parameter(torch.zeros(()))
        elif mode == "gated":
            self.gate = nn.Conv2d(channels or 1, 1, 1)

    def forward(self, samples: Samples) -> Tensor:
        average, largest = samples.mean(), samples.max()
        if self.mode == "learned":
            share = self.logit.sigmoid().to(average.dtype)
        elif self.mode == "gated":
            share = self.gate(average).sigmoid()
        elif self.training:
            draws = torch.randint(0, 2, average.shape, generator=self.generator, device=average.device)
            return torch.where(draws.bool(), largest, average)
        else:
            share = torch.full((), 0.5, dtype=average.dtype, device=average.device)
        return share * largest + (1 - share) * average


def _means(samples: Samples, features: Tensor) -> formulas.Means:
    return lambda function: tuple(samples.mean(values) for values in function(features))
