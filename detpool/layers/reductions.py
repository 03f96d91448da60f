"""Reductions of sliding windows to one value, most of which PyTorch does not have.

All functions take maps (N, C, L), (N, C, H, W) or (N, C, D, H, W), floating, and return (N, C, OH, OW) of the same
dtype, and of the same memory format in two dimensions. ``windows`` are kernel_size, stride, padding, dilation and
ceil_mode, by position, as for :class:`~detpool.layers.sliding.SlidingPool`:
``OH = floor((H + 2 padding - dilation (kernel - 1) - 1) / stride) + 1``, or that rounded up. Padded cells are not
there, and count in no average. Layers for one and three dimensions are those for two with other ``dimensions``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, max_pool1d, max_pool2d, max_pool3d

from detpool.ops import formulas

from . import fused
from .sliding import Fitted, Padding, Size, SlidingPool, Windows, fitted, geometry


def sum_pool(input: Tensor, *windows: Any) -> Tensor:
    """The sum over each window."""
    place = fitted(input, *windows)
    if place.plain:
        return avg_pool2d(input, *place.plain, divisor_override=1)
    return Windows(formulas.widened(input), place).sums(lambda values: (values,))[0].to(input.dtype)


def mean_pool(input: Tensor, *windows: Any) -> Tensor:
    """The average over each window without padded cells: ``avg_pool2d(count_include_pad=False)``."""
    return _mean(input, fitted(input, *windows))


def _mean(input: Tensor, place: Fitted) -> Tensor:
    if place.plain:
        return avg_pool2d(input, *place.plain, count_include_pad=False)
    return Windows(formulas.widened(input), place).means(lambda values: (values,))[0].to(input.dtype)


def max_pool(input: Tensor, *windows: Any) -> Tensor:
    """The maximum over each window."""
    place = fitted(input, *windows)
    maximum = (max_pool1d, max_pool2d, max_pool3d)[len(place.kernel) - 1]
    if place.same:
        return maximum(place.pad(input, value=-torch.inf), place.kernel, place.stride, 0, place.dilation)
    return maximum(input, place.kernel, place.stride, place.before, place.dilation, place.ceil_mode)


def lp_pool(input: Tensor, p: float | Tensor, *windows: Any) -> Tensor:
    """``mean(|f|^p)^(1/p)`` over each window: see :class:`LpPool2d`."""
    place = fitted(input, *windows)
    features = formulas.widened(input)

    def formula(features: Tensor) -> Tensor:
        cells = Windows(features, place)
        scale = formulas.scale_of(cells.largest(torch.abs))
        return formulas.lp(cells.means, p, scale, scale)

    if place.plain and fused.serves(features, p):
        return fused.Reduction.apply(features, "lp", place.plain, (float(p),), formula).to(input.dtype)
    return formula(features).to(input.dtype)


def softmax_pool(input: Tensor, beta: float | Tensor, *windows: Any) -> Tensor:
    """``sum f e^(beta f) / sum e^(beta f)`` over each window: see :class:`SoftmaxPool2d`."""
    place = fitted(input, *windows)
    features = formulas.widened(input)

    def formula(features: Tensor) -> Tensor:
        cells = Windows(features, place)
        largest = cells.largest(lambda values: beta * values)
        return formulas.weighted(cells.means, lambda values: (beta * values - largest).exp())

    if place.plain and fused.serves(features, beta):
        return fused.Reduction.apply(features, "weighted", place.plain, (True, float(beta)), formula).to(input.dtype)
    return formula(features).to(input.dtype)


def stochastic_pool(input: Tensor, *windows: Any, training: bool = True) -> Tensor:
    """A random value of each window, or the expectation in evaluation: see :class:`StochasticPool2d`."""
    place = fitted(input, *windows)
    features = formulas.widened(input)
    kernels = place.plain if fused.serves(features) else None
    if training:
        drawn = fused.Draw.apply(features, kernels) if kernels else _drawn(features, place)
        return drawn.to(input.dtype)

    def formula(features: Tensor) -> Tensor:
        def means(function: Callable[[Tensor], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
            return tuple(_mean(values, place) for values in function(features.relu()))

        return formulas.weighted(means, lambda values: values)

    if kernels:
        return fused.Reduction.apply(features, "weighted", kernels, (False, 0.0), formula).to(input.dtype)
    return formula(features).to(input.dtype)


def _drawn(features: Tensor, place: Fitted) -> Tensor:
    windows = Windows(features.relu(), place)
    weights = [values.detach() for values in windows.values]
    if windows.exists is not None:
        weights = [weight * exists for weight, exists in zip(weights, windows.exists, strict=True)]
    total = sum(weights[1:], start=weights[0])
    # Of (0, total]; summed in the same order below, so that the draw is always reached, by a weight above 0.
    draw = (1 - torch.rand_like(total)) * total
    before, drawn = weights[0], windows.values[0]
    for weight, values in zip(weights[1:], windows.values[1:], strict=True):
        drawn = torch.where(before < draw, values, drawn)
        before = before + weight
    return torch.where(total.isnan(), total, drawn)


def mixed_pool(input: Tensor, *windows: Any, training: bool = True) -> Tensor:
    """The maximum or the average of each window, at random, or half of both: see :class:`MixedPool2d`."""
    average = mean_pool(input, *windows)
    largest = max_pool(input, *windows)
    if not training:
        return (largest + average) / 2
    # The signs of eight bytes a draw: drawing a number for each window would take longer than pooling.
    draws = torch.randint(-(1 << 63), (1 << 63) - 1, (-(-average.numel() // 8),), device=input.device)
    coins = (draws.view(torch.int8) < 0)[: average.numel()].as_strided(average.shape, average.stride())
    # Exact, the coins being 0 and 1, and several times as fast as torch.where.
    return torch.lerp(average, largest, coins.to(input.dtype))


class SumPool2d(SlidingPool):
    """The sum: ``Y[i, j] = sum of f over window (i, j)``. Training and evaluation are the same.

    Source: the subsampling of LeNet (LeCun et al., Proceedings of the IEEE 1998) before its coefficients.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, OH, OW)."""
        return sum_pool(input, *self.windows)


class MeanPool2d(SlidingPool):
    """The average without padded cells: ``Y[i, j] = mean of f over window (i, j)``.

    PyTorch's ``AvgPool2d`` with ``count_include_pad=False``, and with "same" padding and dilation. Training and
    evaluation are the same. Source: LeCun et al., Proceedings of the IEEE 1998.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, OH, OW)."""
        return mean_pool(input, *self.windows)


class LpPool2d(SlidingPool):
    """The generalized mean of magnitudes: ``Y[i, j] = mean(|f|^p)^(1/p)`` over window (i, j).

    p = 1 is the average of magnitudes, 2 their root mean square, and p towards infinity the largest. Powers are taken
    relative to the largest magnitude of the window, so that none overflows or vanishes however large p is, and computed
    in float32 (float64 for float64). Training and evaluation are the same.

    ``torch.nn.LPPool2d`` differs: it sums, keeps the signs of odd powers, has no padding, and overflows.

    Source: Sermanet, Chintala and LeCun, arXiv:1204.3968, 2012; a learned p: Gulcehre et al.,
    arXiv:1311.1780, 2013.

    Args:
        kernel_size, stride, padding, dilation, ceil_mode: as for :class:`~detpool.layers.sliding.SlidingPool`.
        p: the power, at least 1 and finite.
        learnable: whether p is a parameter (``2 - p`` is used if training moves it below 1).

    Raises:
        ValueError: If a size or p is invalid or, in ``forward``, no window fits into the map.
    """

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Padding = 0,
        p: float = 2.0,
        learnable: bool = False,
        **further: Any,
    ) -> None:
        super().__init__(kernel_size, stride, padding, **further)
        self.p = checked_power(p, learnable)

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, OH, OW)."""
        return lp_pool(input, power_for(self.p, input), *self.windows)

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if isinstance(self.p, nn.Parameter) else f", p={self.p:g}")


class L2Pool2d(LpPool2d):
    """The root mean square: ``Y[i, j] = sqrt(mean(f^2))``, :class:`LpPool2d` with p = 2.

    Source: Hyvärinen and Hoyer, Neural Computation 2000 (energy pooling); Sermanet et al., arXiv:1204.3968, 2012.
    """

    def __init__(self, kernel_size: Size, stride: Size | None = None, padding: Padding = 0, **further: Any) -> None:
        super().__init__(kernel_size, stride, padding, p=2.0, **further)


class SoftmaxPool2d(SlidingPool):
    """``Y[i, j] = sum f e^(beta f) / sum e^(beta f)`` over window (i, j).

    beta = 0 is the average, beta towards infinity the maximum, and towards minus infinity the minimum. Exponents are
    taken relative to the largest of the window, in float32 (float64 for float64). Training and evaluation are the same.

    Source: Stergiou, Poppe and Kalliatakis, SoftPool, arXiv:2101.00440, 2021 (beta = 1).

    Args:
        kernel_size, stride, padding, dilation, ceil_mode: as for :class:`~detpool.layers.sliding.SlidingPool`.
        beta: the inverse temperature, finite.
        learnable: whether beta is a parameter.

    Raises:
        ValueError: If a size or beta is invalid or, in ``forward``, no window fits into the map.
    """

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Padding = 0,
        beta: float = 1.0,
        learnable: bool = False,
        **further: Any,
    ) -> None:
        super().__init__(kernel_size, stride, padding, **further)
        if not math.isfinite(beta):
            raise ValueError(f"beta must be finite, got {beta!r}")
        self.beta: float | nn.Parameter = nn.Parameter(torch.tensor(float(beta))) if learnable else float(beta)

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, OH, OW)."""
        return softmax_pool(input, _widened(self.beta, input), *self.windows)

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if isinstance(self.beta, nn.Parameter) else f", beta={self.beta:g}")


class StochasticPool2d(SlidingPool):
    """In training, value f of a window is drawn with probability ``f / sum f``; the gradient goes to the one drawn.

    In evaluation the expectation of that, ``sum f^2 / sum f``, deterministically. Negative values count as 0; a window
    of zeros gives 0. Draws come from PyTorch's generator of the input's device: ``torch.manual_seed`` repeats them.

    Source: Zeiler and Fergus, arXiv:1301.3557, 2013, section 3.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, OH, OW)."""
        return stochastic_pool(input, *self.windows, training=self.training)


class MixedPool2d(SlidingPool):
    """In training, a fair coin for each window and channel takes its maximum or its average, and so does the gradient.

    In evaluation ``(max + mean) / 2``, its expectation, deterministically (the paper takes whichever was drawn more
    often). Draws come from PyTorch's generator of the input's device: ``torch.manual_seed`` repeats them.

    Source: Yu, Wang, Chen and Wei, Mixed Pooling for Convolutional Neural Networks, RSKT 2014.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, OH, OW)."""
        return mixed_pool(input, *self.windows, training=self.training)


def _in(dimensions: int, layer: type[SlidingPool]) -> Any:
    name = layer.__name__.replace("2d", f"{dimensions}d")
    shape = {1: "(N, C, L)", 3: "(N, C, D, H, W)"}[dimensions]
    text = f":class:`{layer.__name__}` of maps {shape}."
    return type(name, (layer,), {"dimensions": dimensions, "__doc__": text, "__module__": __name__})


SumPool1d, SumPool3d = _in(1, SumPool2d), _in(3, SumPool2d)
MeanPool1d, MeanPool3d = _in(1, MeanPool2d), _in(3, MeanPool2d)
LpPool1d, LpPool3d = _in(1, LpPool2d), _in(3, LpPool2d)
SoftmaxPool1d, SoftmaxPool3d = _in(1, SoftmaxPool2d), _in(3, SoftmaxPool2d)
StochasticPool1d, StochasticPool3d = _in(1, StochasticPool2d), _in(3, StochasticPool2d)
MixedPool1d, MixedPool3d = _in(1, MixedPool2d), _in(3, MixedPool2d)


class MaxPool2d(nn.MaxPool2d):
    """PyTorch's layer, which also accepts ``padding`` "same" or "valid"."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, OH, OW)."""
        if not isinstance(self.padding, str):
            return super().forward(input)
        if self.return_indices:
            raise ValueError(f"return_indices goes with a padding in cells, got padding={self.padding!r}")
        return max_pool(input, *geometry(self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode))


def checked_power(p: float, learnable: bool) -> float | nn.Parameter:
    """Return p, as a parameter if it is learned; raise ValueError unless it is at least 1 and finite."""
    if not 1 <= p < math.inf:
        raise ValueError(f"p must be at least 1 and finite, got {p!r}")
    return nn.Parameter(torch.tensor(float(p))) if learnable else float(p)


def power_for(p: float | Tensor, input: Tensor) -> float | Tensor:
    """The value of p for the formula, in the dtype in which it is computed for ``input``."""
    p = _widened(p, input)
    return formulas.power(p) if isinstance(p, Tensor) else p


def _widened(number: float | Tensor, input: Tensor) -> float | Tensor:
    """Convert a parameter to the dtype in which formulas for ``input`` are computed; numbers are unchanged."""
    if not isinstance(number, Tensor):
        return number
    return number.to(torch.float64 if input.dtype == torch.float64 else torch.float32)
