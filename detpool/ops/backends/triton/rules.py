"""Sampling rules as Triton functions: the taps of one bin along one axis, computed inside the kernels.

A rule is one function ``rule(t, origin, lower, upper, size, length, RATIO)`` of a tap's number and a bin (scalars; see
``detpool.ops.Bins``: the bin spans ``origin + lower`` to ``origin + upper``), the number of cells along the axis
and the sampling ratio. It returns six scalars:

- how many taps the bin has, the same for every t;
- the cell of tap t, -1 for no tap, and its weight;
- the derivatives of the weight with respect to ``lower``, ``upper`` and ``size``.

Whatever a call does not use of these is not computed.
"""

import triton
import triton.language as tl


@triton.jit
def cells(t, origin, lower, upper, size, length, RATIO: tl.constexpr):
    """The mean over the cells that a bin touches: ``detpool.ops.sampling.cell_taps``."""
    first = _clamp(origin + tl.floor(lower), 0, length)
    last = tl.maximum(_clamp(origin + tl.ceil(upper), 0, length), first)
    count = (last - first).to(tl.int32)
    none = size * 0
    return count, first.to(tl.int32) + t, 1 / tl.maximum(last - first, 1), none, none, none


@triton.jit
def points(t, origin, lower, upper, size, length, RATIO: tl.constexpr):
    """The mean over bilinear points at ``lower + (number + 0.5) size / G``: ``detpool.ops.sampling.point_taps``."""
    start = origin + lower
    if RATIO > 0:
        taps = 2 * RATIO
        count = tl.cast(RATIO, size.dtype)
        number = tl.cast(t // 2, size.dtype)
    else:
        # as in ``sampling.points``: of very many points begin with the first that can read anything
        count = tl.ceil(size)
        limit = 2 * length + 6
        spacing = size / tl.maximum(count, 1)
        skipped = tl.floor((-1 - start) / tl.where(spacing > 0, spacing, 1) - 2)
        offset = tl.where(count > limit, tl.maximum(skipped, 0), 0)
        taps = 2 * _clamp(count - offset, 0, limit).to(tl.int32)
        number = offset + tl.cast(t // 2, size.dtype)
        count = tl.maximum(count, 1)
    share = (number + 0.5) / count
    position = start + share * size
    reads = (position >= -1) & (position <= length)
    cell, weight, slope = _bilinear(t % 2, position, reads, length)
    slope = slope / count
    return taps, cell, weight / count, slope, size * 0, slope * share


@triton.jit
def counted_points(t, origin, lower, upper, size, length, RATIO: tl.constexpr):
    """The mean over the bilinear points ``lower + number / G size`` that lie within half a cell of the image.

    ``detpool.ops.sampling.counted_point_taps``.
    """
    start = origin + lower
    inside = 0
    for number in range(RATIO):
        position = start + number * (size / RATIO)
        inside += ((position >= -0.5) & (position <= length - 0.5)).to(tl.int32)
    count = tl.maximum(inside, 1).to(size.dtype)
    share = tl.cast(t // 2, size.dtype) / RATIO
    position = start + tl.cast(t // 2, size.dtype) * (size / RATIO)
    reads = (position >= -0.5) & (position <= length - 0.5)
    cell, weight, slope = _bilinear(t % 2, position, reads, length)
    slope = slope / count
    return 2 * RATIO, cell, weight / count, slope, size * 0, slope * share


@triton.jit
def integral(t, origin, lower, upper, size, length, RATIO: tl.constexpr):
    """The mean of each cell's hat function over the bin: ``detpool.ops.sampling.integral_taps``."""
    low, high = origin + lower, origin + upper
    first = _clamp(tl.floor(low), 0, length)
    last = _clamp(tl.ceil(high), -1, length - 1) + 1
    start = low - (first + t)
    extent = tl.where(size > 0, size, 1)
    # where the hat begins, peaks and ends, as shares of the bin
    left = _clamp((-1 - start) / extent, 0, 1)
    top = _clamp(-start / extent, 0, 1)
    right = _clamp((1 - start) / extent, 0, 1)
    rising = (top - left) * (1 + start + extent * ((left + top) / 2))
    falling = (right - top) * (1 - start - extent * ((top + right) / 2))
    by_start = 2 * top - left - right
    by_size = ((top * top - left * left) - (right * right - top * top)) / 2
    taps = tl.where(size > 0, tl.maximum(last - first, 0), 0).to(tl.int32)
    return taps, (first + t).to(tl.int32), rising + falling, by_start, size * 0, by_size


@triton.jit
def _bilinear(side, position, reads, length):
    """One of the two cells around a position, clamped to the image: cell or -1, weight, derivative of the weight."""
    clamped = _clamp(position, 0, length - 1)
    low = tl.floor(clamped)
    cell = low.to(tl.int32) + side
    reads = reads & (cell < length)
    weight = tl.where(side == 0, 1 - (clamped - low), clamped - low)
    moves = (position >= 0) & (position <= length - 1)
    slope = tl.where(moves, tl.where(side == 0, -1, 1), 0).to(position.dtype)
    return tl.where(reads, cell, -1), weight, slope


@triton.jit
def _clamp(x, least, most):
    return tl.minimum(tl.maximum(x, least), most)
