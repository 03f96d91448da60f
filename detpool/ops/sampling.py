"""What a bin reads: all sampling rules. A rule is a few functions of the bins of one axis.

Shapes as in :mod:`~detpool.ops.bins`; T taps, G points per bin.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .bins import Bins, ceil, clip, floor
from .layout import cell_dtype
from .spec import Spec


@dataclass(frozen=True)
class Taps:
    """What the bins read along one axis."""

    index: Tensor
    """(K, P, J, T) int32: a cell, or -1 for no tap"""
    weight: Tensor
    """(K, P, J, T); zero where there is no tap"""


@dataclass(frozen=True)
class Points:
    """Bilinear sampling points along one axis, each a pair of taps; G points per bin."""

    index: Tensor
    """(K, P, J, G, 2) int32, -1 for no tap"""
    weight: Tensor
    """(K, P, J, G, 2), not yet divided by the number of points"""
    exists: Tensor
    """(K, P, J, G) bool: RoIs may have fewer than G points; a point outside the image exists and reads 0"""
    count: Tensor
    """(K, 1, 1, 1): points per bin, at least 1"""


@dataclass(frozen=True)
class Sampling:
    """A sampling rule. Its functions take the bins of one axis, the cells along it and the sampling ratio.

    Only ``taps`` is needed; a rule without the others serves the reductions that are built on means.
    """

    taps: Callable[[Bins, int, int], Taps]
    """Taps whose weights average. Their product over both axes weighs the cells of a bin."""
    measure: Callable[[Bins, int, int], Tensor] | None = None
    """(K, P, J): how many samples the average is over, so that their product times the mean is the sum."""
    points: Callable[[Bins, int, int], Points] | None = None
    """The single points of each bin, for reductions that need each value."""
    windows: Callable[[Bins, int, int], Tensor] | None = None
    """The integer cells of each bin, (K, P, J, 2) int32, first and last + 1, for the same."""
    bilinear: bool = False
    """Whether the taps of a bin are those of ``ratio`` bilinear points in rising order, if the ratio is positive. GPU
    kernels then know their number, and read the cells that close points share once."""
    dtype: torch.dtype | None = None
    """In which to compute the bins, if not in the features' own or float32."""
    triton: str | None = None
    """The same taps as a Triton function, as ``module:function`` (see ``backends/triton/rules.py``), for GPUs."""


SAMPLING: dict[str, Sampling] = {}
"""Sampling rules by name."""


def register_sampling(name: str, rule: Sampling) -> None:
    """Make ``sampling=name`` mean ``rule`` in :func:`detpool.ops.pool`.

    Raises:
        ValueError: If the name is taken, or has a semicolon.
    """
    if name in SAMPLING:
        raise ValueError(f"sampling {name!r} is registered already")
    if ";" in name:
        raise ValueError(f"the name of a sampling rule must not have a semicolon, got {name!r}")
    SAMPLING[name] = rule


def name_of(rule: Sampling) -> str:
    """The name of a rule, which it gets here if it has none."""
    for name, known in SAMPLING.items():
        if known == rule:
            return name
    name = f"{rule.taps.__module__}.{getattr(rule.taps, '__qualname__', 'taps')}#{len(SAMPLING)}"
    SAMPLING[name] = rule
    return name


def argmax_dtype(maps: Sequence[Tensor], spec: Spec) -> torch.dtype:
    """Of the places of maxima: for cells the smallest integers that hold them, int32 for points."""
    if SAMPLING[spec.sampling].windows is None:
        return torch.int32
    return cell_dtype(max(features.shape[2] * features.shape[3] for features in maps))


def call_taps(rule: Sampling, bins: Bins, length: int, ratio: int) -> Taps:
    """The taps of a rule, in the shapes and dtypes that it promises.

    Raises:
        TypeError, ValueError: If the rule returns something else; says what.
    """
    taps = rule.taps(bins, length, ratio)
    if not isinstance(taps, Taps) or not isinstance(taps.index, Tensor) or not isinstance(taps.weight, Tensor):
        raise TypeError(f"the taps of a sampling rule must be Taps of two tensors, got {type(taps).__name__}")
    rois, count, across = bins.lower.shape
    shape = tuple(taps.index.shape)
    if len(shape) != 4 or shape[:3] != (rois, count, across) or tuple(taps.weight.shape) != shape:
        raise ValueError(
            f"the taps of a sampling rule must have shape ({rois}, {count}, {across}, T), got index {shape} and weight "
            f"{tuple(taps.weight.shape)}"
        )
    if taps.index.dtype not in (torch.int32, torch.int64) or not taps.weight.is_floating_point():
        raise TypeError(
            f"the taps of a sampling rule must be an int32 index and floating weights, got {taps.index.dtype} and "
            f"{taps.weight.dtype}"
        )
    return taps


def check_index(index: Tensor, length: int) -> None:
    """Raise IndexError unless a sampling rule's cells are from -1 to ``length - 1``. Waits for the device."""
    if index.numel():
        low, high = torch.aminmax(index)
        if low < -1 or high >= length:
            raise IndexError(
                f"the taps of a sampling rule must be cells from 0 to {length - 1} or -1, got {int(low)} to {int(high)}"
            )


WHOLE_AXIS = 0.9
"""Share of the cells along an axis from which on reading them for each bin is likely a mistake of the rule."""
MANY_ROIS, MANY_CELLS = 32, 16
"""How many RoIs, and cells along the axis, there are at least where that is said."""
_warned: set[str] = set()


def warn_of_whole_axis(name: str, rois: int, taps: float, length: int, cells: str) -> None:
    """Warn, once a rule, if it reads (nearly) all cells along an axis for each bin of many RoIs.

    Args:
        name: of the rule.
        rois: how many RoIs there are.
        taps: how many taps a bin has on average.
        length: cells along the axis.
        cells: what they are, "rows" or "columns".
    """
    if name not in _warned and rois >= MANY_ROIS and length >= MANY_CELLS and taps >= WHOLE_AXIS * length:
        _warned.add(name)
        warnings.warn(
            f"sampling {name!r} reads {'' if taps == length else 'nearly '}all {length} {cells} for each bin; taps of "
            f"weight zero cost as much as others: a rule that gives only those near the bin is faster",
            stacklevel=2,
        )


def cell_windows(bins: Bins, length: int, ratio: int = 0) -> Tensor:
    """The integer cells that each bin touches, clipped to ``0 .. length``: (K, P, J, 2) int32, first and last + 1."""
    first = (bins.origin + floor(bins.lower)).clamp(0, length)
    last = (bins.origin + ceil(bins.upper)).clamp(0, length)
    return _integers(torch.stack([first, torch.maximum(first, last)], dim=-1), 0, length)


def cell_taps(bins: Bins, length: int, ratio: int = 0) -> Taps:
    """Mean over the cells of :func:`cell_windows`; a bin without cells has no taps. No gradient reaches the boxes."""
    first, last = cell_windows(bins, length).unbind(-1)
    count = (last - first)[..., None]
    number = torch.arange(_bound(count, length), dtype=torch.int32, device=first.device)
    inside = number < count
    index = torch.where(inside, first[..., None] + number, -1)
    return Taps(index, torch.where(inside, 1.0 / count.clamp(min=1).to(bins.size.dtype), 0.0))


def cell_count(bins: Bins, length: int, ratio: int = 0) -> Tensor:
    """(K, P, J): how many cells :func:`cell_windows` has."""
    windows = cell_windows(bins, length)
    return (windows[..., 1] - windows[..., 0]).to(bins.size.dtype)


def integral_taps(bins: Bins, length: int, ratio: int = 0) -> Taps:
    """Mean of the hat function of each cell over the bin (Precise RoI pooling); no weights for a bin of no extent."""
    lower, upper = bins.origin + bins.lower, bins.origin + bins.upper
    first = _integers(floor(lower).clamp(0, length), 0, length)
    last = _integers(ceil(upper).clamp(-1, length - 1), -1, length - 1) + 1
    count = (last - first)[..., None]
    number = torch.arange(_bound(count, length), dtype=torch.int32, device=first.device)
    index = first[..., None] + number
    inside = (number < count) & (bins.size > 0)[..., None]
    size = torch.where(bins.size > 0, bins.size, 1.0)[..., None]
    weight = _HatMean.apply(*torch.broadcast_tensors(lower[..., None] - index.to(lower.dtype), size))
    return Taps(torch.where(inside, index, -1), torch.where(inside, weight, 0.0))


class _HatMean(torch.autograd.Function):
    """The mean of ``max(0, 1 - |t|)`` over ``start .. start + size``, as a function of start and size.

    Not a difference of antiderivatives divided by the size, which cancels for tiny bins: the share of the bin on each
    flank of the hat times the mean of the flank there. So too its derivatives, which PyTorch would make of quotients
    that cancel.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(start: Tensor, size: Tensor) -> Tensor:
        left, top, right = _flanks(start, size)
        rising = (top - left) * (1 + start + size * ((left + top) / 2))
        falling = (right - top) * (1 - start - size * ((top + right) / 2))
        return rising + falling

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        start, size = ctx.saved_tensors
        left, top, right = _flanks(start, size)
        by_start = (top - left) - (right - top)
        by_size = ((top * top - left * left) - (right * right - top * top)) / 2
        return grad * by_start, grad * by_size


def _flanks(start: Tensor, size: Tensor) -> tuple[Tensor, ...]:
    """Where the hat begins, peaks and ends, as shares of ``start .. start + size`` clipped to 0 .. 1."""
    return tuple(((kink - start) / size).clamp(0, 1) for kink in (-1, 0, 1))


def points(bins: Bins, length: int, ratio: int) -> Points:
    """Bilinear sampling points at ``lower + (t + 0.5) / G * size``: RoIAlign.

    A point outside ``-1 .. length`` reads 0; nearer points are clamped to the cells. ``ratio`` is G; zero or less takes
    ``ceil(size)`` of each RoI.
    """
    dtype, device = bins.lower.dtype, bins.lower.device
    lower = (bins.origin + bins.lower)[..., None]
    size = bins.size[..., None]
    if ratio > 0:
        count = torch.full_like(size, ratio)
        number = torch.arange(ratio, dtype=dtype, device=device)
        exists = torch.ones((*lower.shape[:-1], ratio), dtype=torch.bool, device=device)
    else:
        count = ceil(size)
        # Neighbouring points are at least half a cell apart, so no bin has more than 2 (length + 1) + 1 points that
        # read anything. Starting at the first of those bounds the memory, however far a box extends.
        limit = 2 * length + 6
        spacing = size.detach() / count.clamp(min=1)
        skipped = (-1 - lower.detach()) / torch.where(spacing > 0, spacing, 1.0) - 2
        many = count > limit
        offset = torch.where(many, floor(skipped).clamp(min=0), 0.0)
        number = offset + torch.arange(_bound(count, limit), dtype=dtype, device=device)
        exists = number < count
        count = count.clamp(min=1)
    y = lower + (number + 0.5) * size / count
    taps = bilinear_taps(y, exists & (y >= -1) & (y <= length), length)
    return Points(taps.index, taps.weight, exists, count)


def bilinear_taps(y: Tensor, reads: Tensor, length: int) -> Taps:
    """The two cells around each position, clamped to the image, and their weights: (*positions, 2).

    Positions where ``reads`` is false have no taps.
    """
    y = clip(y, 0.0, length - 1.0)
    low = floor(y)
    high_weight = y - low
    low_index = _integers(low, 0, length - 1)
    index = torch.stack([low_index, torch.where(low_index + 1 < length, low_index + 1, -1)], dim=-1)
    weight = torch.stack([1 - high_weight, high_weight], dim=-1)
    reads = reads[..., None]
    return Taps(torch.where(reads, index, -1), torch.where(reads & (index >= 0), weight, 0.0))


def point_taps(bins: Bins, length: int, ratio: int) -> Taps:
    """Mean over the :func:`points` of each bin."""
    sampled = points(bins, length, ratio)
    weight = sampled.weight / sampled.count[..., None]
    return Taps(sampled.index.flatten(-2), weight.flatten(-2))


def point_count(bins: Bins, length: int, ratio: int) -> Tensor:
    """(K, 1, 1): how many points a bin has, at least 1."""
    return bins.size * 0 + ratio if ratio > 0 else ceil(bins.size).clamp(min=1)


def counted_point_taps(bins: Bins, length: int, count: int) -> Taps:
    """Mean over bilinear points at ``lower + t / count * size`` that lie in ``-0.5 .. length - 0.5``.

    That of Deformable ConvNets. Other points are not counted; a bin without points has no taps.
    """
    number = torch.arange(count, dtype=bins.lower.dtype, device=bins.lower.device)
    y = (bins.origin + bins.lower)[..., None] + number * (bins.size[..., None] / count)
    inside = (y >= -0.5) & (y <= length - 0.5)
    taps = bilinear_taps(y, inside, length)
    counted = inside.sum(dim=-1)[..., None, None].clamp(min=1)
    return Taps(taps.index.flatten(-2), (taps.weight / counted).flatten(-2))


def _integers(x: Tensor, least: int, most: int) -> Tensor:
    """int32 in ``least .. most`` even for NaN, which reaches this point only where values are not inspected."""
    return x.to(torch.int32).clamp(least, most)


def _bound(count: Tensor, limit: int) -> int:
    """Taps to lay out, at least 1: the largest ``count``, or ``limit``, its bound, where a traced graph cannot look."""
    if torch.compiler.is_compiling() or count.numel() == 0 or count.is_meta:
        return max(1, limit)
    # NaN gets this far only where values are not inspected
    return max(1, int(count.clamp(max=limit).nan_to_num(0).max()))


_RULES = f"{__package__}.backends.triton.rules"

register_sampling("cells", Sampling(cell_taps, measure=cell_count, windows=cell_windows, triton=f"{_RULES}:cells"))
register_sampling(
    "points", Sampling(point_taps, measure=point_count, points=points, bilinear=True, triton=f"{_RULES}:points")
)
register_sampling("counted_points", Sampling(counted_point_taps, bilinear=True, triton=f"{_RULES}:counted_points"))
# Positions in float64, or the weights of tiny bins far from the first cell would be those of rounded edges.
register_sampling(
    "integral",
    Sampling(
        integral_taps,
        measure=lambda bins, length, ratio: bins.size,
        dtype=torch.float64,
        triton=f"{_RULES}:integral",
    ),
)
