"""Bin rules: from boxes (K, 4) in pixels to the bins of both axes in feature cells, as ``(y, x)``."""

from collections.abc import Callable

from torch import Tensor

from .axes import Bins, continuous_bins, round_half_away, rounded_bins

Rule = Callable[[Tensor, float, tuple[int, int]], tuple[Bins, Bins]]


def continuous(coords: Tensor, scale: float, size: tuple[int, int]) -> tuple[Bins, Bins]:
    """No rounding: equal bins over the box."""
    edges = coords * scale
    return _both(continuous_bins, edges[:, :2], edges[:, 2:] - edges[:, :2], size)


def aligned(coords: Tensor, scale: float, size: tuple[int, int]) -> tuple[Bins, Bins]:
    """As :func:`continuous`, moved by half a cell: integer coordinates are the corners of cells."""
    edges = coords * scale - 0.5
    return _both(continuous_bins, edges[:, :2], edges[:, 2:] - edges[:, :2], size)


def at_least_one(coords: Tensor, scale: float, size: tuple[int, int]) -> tuple[Bins, Bins]:
    """As :func:`continuous` for boxes of at least one cell: RoIAlign's first version."""
    edges = coords * scale
    return _both(continuous_bins, edges[:, :2], (edges[:, 2:] - edges[:, :2]).clamp(min=1), size)


def rounded(coords: Tensor, scale: float, size: tuple[int, int]) -> tuple[Bins, Bins]:
    """RoIPool: both edges rounded to cells, the last cell included."""
    edges = round_half_away(coords * scale)
    return _both(rounded_bins, edges[:, :2], (edges[:, 2:] - edges[:, :2] + 1).clamp(min=1), size)


def rfcn(coords: Tensor, scale: float, size: tuple[int, int]) -> tuple[Bins, Bins]:
    """R-FCN: edges rounded to pixels, the last pixel included."""
    start, extent = rfcn_box(coords, scale)
    return _both(continuous_bins, start, extent, size)


def rfcn_box(coords: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Start and size (K, 2) of the boxes of :func:`rfcn`."""
    edges = round_half_away(coords)
    start = edges[:, :2] * scale
    return start, ((edges[:, 2:] + 1) * scale - start).clamp(min=0.1)


def _both(
    bins: Callable[[Tensor, Tensor, int], Bins], start: Tensor, extent: Tensor, size: tuple[int, int]
) -> tuple[Bins, Bins]:
    return bins(start[:, 1], extent[:, 1], size[0]), bins(start[:, 0], extent[:, 0], size[1])


def shift_by(y: Bins, x: Bins, offsets: Tensor, extent: Tensor) -> tuple[Bins, Bins]:
    """Move every bin by ``offsets`` (K, 2, PH, PW), x before y, in units of ``extent`` (K, 2), also x before y."""
    shift = offsets * extent[:, :, None, None]
    return (
        Bins(y.origin, y.lower + shift[:, 1], y.upper + shift[:, 1], y.size),
        Bins(x.origin, x.lower + shift[:, 0].transpose(1, 2), x.upper + shift[:, 0].transpose(1, 2), x.size),
    )
