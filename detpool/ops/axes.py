"""From a box to the taps of its bins, one image axis at a time.

The *bins* of an axis are its edges in feature cells; the *taps* of a bin are the cells it reads and their weights. All
of this is plain PyTorch on tensors with one row a RoI, so gradients with respect to boxes are PyTorch's own.

Shapes: K RoIs, P bins along the axis, J bins along the other axis where an edge depends on them (deformable bins) and 1
where it does not, T taps.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


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
class Taps:
    """What the bins read along one axis."""

    index: Tensor
    """(K, P, J, T) int32: a cell, or -1 for no tap"""
    weight: Tensor
    """(K, P, J, T); zero where there is no tap"""

    def transposed(self) -> "Taps":
        """The x axis as the primitive wants it: bins of x in dimension 2."""
        return Taps(self.index.transpose(1, 2), self.weight.transpose(1, 2))


@dataclass(frozen=True)
class Points:
    """Bilinear sampling points along one axis, each a pair of taps; G points a bin."""

    index: Tensor
    """(K, P, J, G, 2) int32, -1 for no tap"""
    weight: Tensor
    """(K, P, J, G, 2), not yet divided by the number of points"""
    exists: Tensor
    """(K, P, J, G) bool: RoIs may have fewer than G points; a point outside the image exists and reads 0"""
    count: Tensor
    """(K, 1, 1, 1): points a bin, at least 1"""


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


def continuous_bins(start: Tensor, size: Tensor, count: int) -> Bins:
    """``count`` equal bins over ``start .. start + size``, both (K,), with no rounding."""
    step = (size / count)[:, None, None]
    number = torch.arange(count, dtype=start.dtype, device=start.device)[:, None]
    start = start[:, None, None]
    return Bins(torch.zeros_like(start), start + number * step, start + (number + 1) * step, step)


def rounded_bins(start: Tensor, size: Tensor, count: int) -> Bins:
    """As :func:`continuous_bins` for an integral ``start``, which is added after a bin's edges have been rounded."""
    step = (size / count)[:, None, None]
    number = torch.arange(count, dtype=start.dtype, device=start.device)[:, None]
    return Bins(start[:, None, None], number * step, (number + 1) * step, step)


def parts(bins: Bins, count: int, across: int) -> Bins:
    """Each bin cut into ``count`` equal ones; where bins depend on the other axis, that one's into ``across``."""
    size = bins.size / count
    number = torch.arange(count, dtype=size.dtype, device=size.device)[:, None]
    # (K, P, 1, J) and (count, 1): the parts of a bin follow each other
    lower = (bins.lower[:, :, None] + number * size[..., None]).flatten(1, 2)
    if lower.shape[2] > 1:
        lower = lower.repeat_interleave(across, dim=2)
    return Bins(bins.origin, lower, lower + size, size)


def cell_windows(bins: Bins, length: int) -> Tensor:
    """The integer cells that each bin touches, clipped to ``0 .. length``: (K, P, J, 2) int32, first and last + 1."""
    first = (bins.origin + floor(bins.lower)).clamp(0, length)
    last = (bins.origin + ceil(bins.upper)).clamp(0, length)
    return _integers(torch.stack([first, torch.maximum(first, last)], dim=-1), 0, length)


def cell_taps(bins: Bins, length: int) -> Taps:
    """Mean over the cells of :func:`cell_windows`; a bin without cells has no taps. No gradient reaches the boxes."""
    first, last = cell_windows(bins, length).unbind(-1)
    count = (last - first)[..., None]
    number = torch.arange(_bound(count, length), dtype=torch.int32, device=first.device)
    inside = number < count
    index = torch.where(inside, first[..., None] + number, -1)
    return Taps(index, torch.where(inside, 1.0 / count.clamp(min=1).to(bins.size.dtype), 0.0))


def integral_taps(bins: Bins, length: int) -> Taps:
    """Mean of the hat function of each cell over the bin: Precise RoI pooling.

    With G the antiderivative of the hat ``max(0, 1 - |t|)``, cell i of bin [a, b] weighs ``(G(b - i) - G(a - i)) / (b -
    a)``; a bin of no extent has zero weights.
    """
    lower, upper = bins.origin + bins.lower, bins.origin + bins.upper
    first = _integers(floor(lower).clamp(0, length), 0, length)
    last = _integers(ceil(upper).clamp(-1, length - 1), -1, length - 1) + 1
    count = (last - first)[..., None]
    number = torch.arange(_bound(count, length), dtype=torch.int32, device=first.device)
    index = first[..., None] + number
    some = bins.size > 0
    scale = torch.where(some, bins.size, 1.0).reciprocal() * some
    cell = index.to(lower.dtype)
    weight = (_hat_integral(upper[..., None] - cell) - _hat_integral(lower[..., None] - cell)) * scale[..., None]
    inside = number < count
    return Taps(torch.where(inside, index, -1), torch.where(inside, weight, 0.0))


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
    y = y.clamp(0, length - 1)
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


def counted_point_taps(bins: Bins, length: int, count: int) -> Taps:
    """Mean over bilinear points at ``lower + t / count * size`` that lie in ``-0.5 .. length - 0.5``: Deformable
    ConvNets.

    Other points are not counted; a bin without points has no taps.
    """
    number = torch.arange(count, dtype=bins.lower.dtype, device=bins.lower.device)
    y = (bins.origin + bins.lower)[..., None] + number * (bins.size[..., None] / count)
    inside = (y >= -0.5) & (y <= length - 0.5)
    taps = bilinear_taps(y, inside, length)
    counted = inside.sum(dim=-1)[..., None, None].clamp(min=1)
    return Taps(taps.index.flatten(-2), (taps.weight / counted).flatten(-2))


def part_of_bins(bins: int, parts: int, device: torch.device) -> Tensor:
    """(bins,) int64: the part that each bin lies in, if ``parts`` divide the axis as the bins do."""
    return torch.arange(bins, device=device) * parts // bins


def _hat_integral(t: Tensor) -> Tensor:
    """Integral of ``max(0, 1 - |u|)`` from minus infinity to t, written so that its derivative is exact everywhere."""
    t = t.clamp(-1, 1)
    return 0.5 + t - 0.5 * t * t.abs()


def _integers(x: Tensor, least: int, most: int) -> Tensor:
    """int32 in ``least .. most`` even for NaN, which reaches this point only where values are not inspected."""
    return x.to(torch.int32).clamp(least, most)


def _bound(count: Tensor, limit: int) -> int:
    """Taps to lay out, at least 1: the largest ``count``, or ``limit``, its bound, where a traced graph cannot look."""
    if torch.compiler.is_compiling() or count.numel() == 0:
        return limit
    # NaN gets this far only where values are not inspected
    return max(1, int(count.clamp(max=limit).nan_to_num(0).max()))
