"""Reductions: from the samples of a bin to one number for each channel.

A reduction is a callable of a :class:`~detpool.ops.sampled.Sampled`; those with parameters or a mode are modules.
"""

import torch
from torch import Tensor, nn

from .sampled import Sampled


def mean(samples: Sampled) -> Tensor:
    """The mean."""
    return samples.mean()


def maximum(samples: Sampled) -> Tensor:
    """The maximum; its gradient goes to the first."""
    return samples.max()


def total(samples: Sampled) -> Tensor:
    """The sum over cells or points, or the integral."""
    return samples.mean() * samples.measure().to(samples.features.dtype)


class Lp(nn.Module):
    """``mean(|f|^p)^(1/p)`` (Sermanet et al., arXiv:1204.3968; generalised mean pooling).

    Args:
        p: the power, at least 1. 1 is the mean of ``|f|``, infinity would be the maximum.
        learnable: make p a parameter (kept at 1 or more when used).
        eps: added to ``|f|`` before the power, so that gradients are finite where features are 0.
    """

    def __init__(self, p: float = 3.0, learnable: bool = False, eps: float = 1e-6) -> None:
        super().__init__()
        if not p >= 1:
            raise ValueError(f"p must be at least 1, got {p!r}")
        if not eps > 0:
            raise ValueError(f"eps must be positive, got {eps!r}")
        self.p = nn.Parameter(torch.tensor(float(p)), requires_grad=learnable)
        self.eps = eps

    def forward(self, samples: Sampled) -> Tensor:
        features = samples.features
        p = self.p.clamp(min=1).to(torch.float64 if features.dtype == torch.float64 else torch.float32)
        size = features.to(p.dtype).abs() + self.eps
        # Powers of numbers up to 1 do not overflow, whatever p is.
        largest = size.detach().amax() if size.numel() else size.new_ones(())
        powers = samples.mean((size / largest) ** p)
        some = powers > 0
        roots = torch.where(some, powers, 1.0) ** (1 / p)
        return torch.where(some, roots * largest, 0.0).to(features.dtype)


class Softmax(nn.Module):
    """``sum f e^(beta f) / sum e^(beta f)``: the mean for beta = 0, towards the maximum as beta grows.

    Values more than ``60 / beta`` below the largest feature of the batch weigh the same: nothing underflows, and a bin
    of nothing else is averaged.

    Args:
        beta: the inverse temperature.
        learnable: make beta a parameter.
    """

    def __init__(self, beta: float = 1.0, learnable: bool = False) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.tensor(float(beta)), requires_grad=learnable)

    def forward(self, samples: Sampled) -> Tensor:
        features = samples.features
        beta = self.beta.to(torch.float64 if features.dtype == torch.float64 else torch.float32)
        values = features.to(beta.dtype)
        scores = beta * values
        largest = scores.detach().amax() if scores.numel() else 0.0
        weights = (scores - largest).clamp(min=-60).exp()
        total_weight = samples.mean(weights)
        some = total_weight > 0
        ratio = samples.mean(values * weights) / torch.where(some, total_weight, 1.0)
        return torch.where(some, ratio, 0.0).to(features.dtype)


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

    def forward(self, samples: Sampled) -> Tensor:
        features = samples.features.clamp(min=0)
        if not self.training:
            average = samples.mean(features)
            some = average > 0
            expected = samples.mean(features.square()) / torch.where(some, average, 1.0)
            return torch.where(some, expected, 0.0)
        values, exists = samples.points(features)
        values = values.masked_fill(~exists, 0.0)
        weights = values.detach().to(torch.float32).cumsum(dim=4)
        total_weight = weights[..., -1:]
        drawn = torch.rand(total_weight.shape, generator=self.generator, device=values.device) * total_weight
        chosen = (weights <= drawn).sum(dim=4, keepdim=True).clamp(max=values.shape[4] - 1)
        return values.gather(4, chosen)[..., 0]


class Mixed(nn.Module):
    """``a max + (1 - a) mean`` (Lee, Gallagher and Tu, arXiv:1509.08985, section 3).

    Args:
        mode: "learned": a is one parameter; "gated": ``a = sigmoid(w . mean + b)`` for each bin, over channels;
            "random": a is drawn from {0, 1} for each RoI in training and 1/2 in evaluation.
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

    def forward(self, samples: Sampled) -> Tensor:
        average, largest = samples.mean(), samples.max()
        if self.mode == "learned":
            share = self.logit.sigmoid().to(average.dtype)
        elif self.mode == "gated":
            share = self.gate(average).sigmoid()
        elif self.training:
            shape = (average.shape[0], 1, 1, 1)
            share = torch.randint(0, 2, shape, generator=self.generator, device=average.device).to(average.dtype)
        else:
            share = torch.full((), 0.5, dtype=average.dtype, device=average.device)
        return share * largest + (1 - share) * average
