"""Where bins lie: all bin rules, from box edges in pixels to bins in feature cells, one image axis at a time.

Shapes: K RoIs, P bins along the axis, J bins along the other axis where a bin depends on them (deformable bins) and 1
where it does not. All is plain PyTorch, so gradients with respect to boxes are PyTorch's own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Pair = tuple[float, float]
LARGEST = {torch.float32: 1e30, torch.float64: 1e300}
"""Coordinates in cells are kept within these, so that differences of finite boxes are finite."""


@dataclass(frozen=True)
class Bins:
    """Bin edges along one axis, in feature cells: bin p of a RoI spans ``origin + lower`` to ``origin + upper``."""

    origin: Tensor
    """(K, 1, 1); not zero only where the original operator rounds edges before it adds an integral start."""
    lower: Tensor
    """(K, P, J)"""
    upper: Tensor
    """(K, P, J)"""
    size: Tensor
    """(K, 1, 1), of one bin"""


@dataclass(frozen=True)
class BinRule:
    """How the low and high edges of a box become bins: ``origin + start + p extent / P``, p = 0 .. P."""

    edges: Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor, Tensor]]
    """from edges (K,) in pixels and the spatial scale to origin, start and extent (K,) in cells"""
    rounds: bool = False
    """whether edges are rounded, so that boxes get no gradient"""
    without_last: bool = False
    """whether the last row and column of the map are never read, as in torchvision's position-sensitive RoIPool"""


def round_half_away(x: Tensor) -> Tensor:
    """C's ``round``: halves go away from zero (``torch.round`` takes them to the even neighbour). No gradient."""
    x = x.detach()
    whole = x.div(1, rounding_mode="trunc")
    return whole + torch.where((x - whole).abs() >= 0.5, x.sign(), 0.0)


def floor(x: Tensor) -> Tensor:
    """The largest integers not above ``x``. No gradient.

    Not ``torch.floor``: like ``ceil`` and ``trunc`` it wakes PyTorch's thread pool for a few thousand numbers, and the
    pool's threads then spin for milliseconds on the cores that the kernels need.
    """
    return x.detach().div(1, rounding_mode="floor")


def ceil(x: Tensor) -> Tensor:
    """The smallest integers not below ``x``. No gradient."""
    return -floor(-x)


def clip(x: Tensor, least: float, most: float) -> Tensor:
    """``x`` kept in ``least .. most``, with gradient 1 at these themselves.

    There ``torch.clamp`` depends on PyTorch's version.
    """
    return torch.where(x < least, least, torch.where(x > most, most, x))


def _continuous(low: Tensor, high: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    start = _bounded(low * scale)
    return torch.zeros_like(start), start, _bounded(high * scale) - start


def _aligned(low: Tensor, high: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    start = _bounded(low * scale - 0.5)
    return torch.zeros_like(start), start, _bounded(high * scale - 0.5) - start


def _at_least_one(low: Tensor, high: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    origin, start, extent = _continuous(low, high, scale)
    return origin, start, torch.where(extent < 1, 1.0, extent)


def _rounded(low: Tensor, high: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    origin = round_half_away(_bounded(low * scale))
    extent = round_half_away(_bounded(high * scale)) - origin + 1
    return origin, torch.zeros_like(origin), extent.clamp(min=1)


def _ps_rounded(low: Tensor, high: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    origin = round_half_away(_bounded(low * scale))
    extent = round_half_away(_bounded(high * scale)) - origin
    return origin, torch.zeros_like(origin), extent.clamp(min=1)


def _rfcn(low: Tensor, high: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    start = _bounded(round_half_away(low) * scale)
    extent = _bounded((round_half_away(high) + 1) * scale) - start
    return torch.zeros_like(start), start, extent.clamp(min=0.1)


def _rfcn_centered(low: Tensor, high: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    origin, start, extent = _rfcn(low, high, scale)
    return origin, start - 0.5, extent


BINS: dict[str, BinRule] = {
    "continuous": BinRule(_continuous),
    "aligned": BinRule(_aligned),
    "at_least_one": BinRule(_at_least_one),
    "rounded": BinRule(_rounded, rounds=True),
    "rfcn": BinRule(_rfcn, rounds=True),
    "rfcn_centered": BinRule(_rfcn_centered, rounds=True),
    "ps_rounded": BinRule(_ps_rounded, rounds=True, without_last=True),
}
"""Continuous bins are equal parts of the box; "aligned" moves them by half a cell, so that integer coordinates are the
corners of cells; "at_least_one" takes boxes of at least one cell (RoIAlign's first version). "rounded" (RoIPool) rounds
both edges to cells, the last cell included; "ps_rounded" (torchvision's position-sensitive RoIPool) excluded. "rfcn"
rounds edges to pixels, the last pixel included; "rfcn_centered" moves that by half a cell."""


def make_bins(
    rule: BinRule,
    rois: Tensor,
    scale: float,
    size: tuple[int, int],
    lengths: tuple[int, int],
    offsets: Tensor | None = None,
) -> tuple[Bins, Bins]:
    """Bins of both axes, as (y, x).

    Args:
        rule: a value of :data:`BINS`.
        rois: (K, 5), in pixels.
        scale: feature cells per pixel.
        size: bins, (PH, PW).
        lengths: rows and columns of the map.
        offsets: (K, 2, PH, PW), by which each bin is moved, x before y, in units of the RoI's size.
    """
    axes = []
    for column, count, length in ((2, size[0], lengths[0]), (1, size[1], lengths[1])):
        origin, start, extent = (t[:, None, None] for t in rule.edges(rois[:, column], rois[:, column + 2], scale))
        step = extent / count
        number = torch.arange(count, dtype=step.dtype, device=step.device)[:, None]
        lower, upper = start + number * step, start + (number + 1) * step
        if offsets is not None:
            shift = (offsets[:, 1] if column == 2 else offsets[:, 0].transpose(1, 2)).to(step.dtype) * extent
            lower, upper = lower + shift, upper + shift
        if rule.without_last:
            upper = torch.minimum(upper, length - 1 - origin)
        axes.append(Bins(origin, lower, upper, step))
    return axes[0], axes[1]


def scale_axes(bins: str, rois: Tensor, levels: Tensor | None, scales: Sequence[Pair]) -> tuple[str, Tensor]:
    """RoIs in cells, where the axes have scales of their own, and the rule that makes the bins of ``bins`` of them.

    Args:
        bins: a key of :data:`BINS`.
        rois: (K, 5), in pixels.
        levels: (K,) int64, the map of each RoI; None for one map.
        scales: feature cells per pixel as (height, width), for each map.
    """
    table = rois.new_tensor([(x, y, x, y) for y, x in scales])
    factors = table[0] if levels is None else table[levels.clamp(0, len(scales) - 1)]
    coords = rois[:, 1:]
    if bins in _OF_PIXELS:  # rounded before they are scaled
        low, high = round_half_away(coords[:, :2]) * factors[..., :2], round_half_away(coords[:, 2:]) + 1
        high = low + (high * factors[..., 2:] - low).clamp(min=0.1)
        coords = torch.cat([low, high], dim=1)
    else:
        coords = coords * factors
    return _OF_PIXELS.get(bins, bins), torch.cat([rois[:, :1], coords], dim=1)


_OF_PIXELS = {"rfcn": "continuous", "rfcn_centered": "aligned"}


def _bounded(cells: Tensor) -> Tensor:
    limit = LARGEST[cells.dtype]
    return clip(cells, -limit, limit)
