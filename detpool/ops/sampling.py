"""Sampling rules: what a bin sees. A rule is a few functions of the bins of one axis."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from . import axes
from .axes import Bins, Points, Taps


@dataclass(frozen=True)
class Sampling:
    """A sampling rule. Its functions take the bins of one axis, the cells along it and the sampling ratio.

    Only ``taps`` is needed; a rule without the others serves the reductions that are built on means.
    """

    taps: Callable[[Bins, int, int], Taps]
    """Taps whose weights average: (K, P, J, T). Their product over both axes weighs the cells of a bin."""
    measure: Callable[[Bins, int, int], Tensor] | None = None
    """(K, P, J): how many samples the average is over, so that their product times the mean is the sum."""
    points: Callable[[Bins, int, int], Points] | None = None
    """The single points of each bin, for reductions that need each value."""
    divides: bool = False
    """Whether point t of a bin with ratio G is the one point of the t-th of G equal parts of the bin."""
    windows: Callable[[Bins, int, int], Tensor] | None = None
    """The integer cells of each bin, (K, P, J, 2), for the same."""
    dtype: torch.dtype | None = None
    """In which to compute the bins, if not in the features' own or float32."""
    triton: str | None = None
    """The same taps as a Triton function, as ``module:function`` (see ``backends/triton/rules.py``), for GPUs."""

    def __post_init__(self) -> None:
        if self.triton is not None:
            BY_TRITON_NAME[self.triton] = self


BY_TRITON_NAME: dict[str, Sampling] = {}
"""The rules that have a Triton form: a PyTorch operator takes names where it cannot take objects."""

_RULES = f"{__package__}.backends.triton.rules"


def _integral_taps(bins: Bins, length: int, ratio: int) -> Taps:
    return axes.integral_taps(bins, length)


def _cell_count(bins: Bins, length: int, ratio: int) -> Tensor:
    windows = axes.cell_windows(bins, length)
    return (windows[..., 1] - windows[..., 0]).to(bins.size.dtype)


CELLS = Sampling(
    taps=lambda bins, length, ratio: axes.cell_taps(bins, length),
    measure=_cell_count,
    windows=lambda bins, length, ratio: axes.cell_windows(bins, length),
    triton=f"{_RULES}:cells",
)
POINTS = Sampling(
    taps=axes.point_taps,
    measure=lambda bins, length, ratio: axes.points(bins, length, ratio).count[..., 0],
    points=axes.points,
    divides=True,
    triton=f"{_RULES}:points",
)
COUNTED_POINTS = Sampling(taps=axes.counted_point_taps, triton=f"{_RULES}:counted_points")
# The weights are differences of numbers that grow with the coordinates: float64 keeps them exact for tiny boxes.
INTEGRAL = Sampling(
    taps=_integral_taps,
    measure=lambda bins, length, ratio: bins.size,
    dtype=torch.float64,
    triton=f"{_RULES}:integral",
)
