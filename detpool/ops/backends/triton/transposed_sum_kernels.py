"""Gradients of features on a GPU: the transpose of the weighted sum, in two forms.

Shapes and RoIs that are not valid as in ``weighted_sum_kernels``. With atomic additions RoIs are scattered to cells, in
any order; in the deterministic form cells gather from RoIs, in the order of these. Where all bins have as many bilinear
points, both read the weights of a RoI's rows and columns from a table.
"""

import triton
import triton.language as tl

from .addresses import (
    along,
    cell_offset,
    channel_mask,
    group_offset,
    image_offset,
    offsets_of,
    plane_offset,
    pooled_offset,
)
from .bins import SIZES, bin_of_program, load_bin, load_roi, make_bin


@triton.jit(do_not_specialize=SIZES)
def transpose_atomic(
    # pointers
    grad,
    rois,
    levels,
    offsets,
    out,
    # sizes
    images,
    channels,
    height,
    width,
    scale_bits,
    level,
    # strides
    grad_k,
    grad_c,
    grad_h,
    grad_w,
    out_n,
    out_c,
    out_g,
    out_h,
    out_w,
    # compile time
    RULE: tl.constexpr,
    RATIO: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    GH: tl.constexpr,
    GW: tl.constexpr,
    BINS: tl.constexpr,
    POSITION: tl.constexpr,
    ALIGNED: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The transposed sum, added to ``out`` (shaped as the features, of zeros, float32 or float64) in any order.

    One program scatters a block of channels of one bin's gradient, which it loads once, to the taps of the bin.
    Programs meet in the features' cells, where additions are atomic; the rounding of the result depends on their
    order.
    """
    k, i, j = bin_of_program(PH, PW)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    image, y, x, valid, here = load_bin(
        rois, levels, offsets, k, i, j, images, height, width, scale_bits, level, PH, PW, BINS, POSITION
    )
    at = grad + pooled_offset(k, i, j, grad_k, grad_h, grad_w, ALIGNED) + offsets_of(c, grad_c, WIDE)
    value = tl.load(at, mask=channel_mask(c, channels, ALIGNED), other=0).to(out.dtype.element_ty)
    plane = (
        out + image_offset(image, out_n, ALIGNED) + plane_offset(c, i, j, out_c, out_g, PH, PW, GH, GW, ALIGNED, WIDE)
    )
    if valid & here:
        _scatter(value, plane, y, x, out_h, out_w, c, channels, RULE, RATIO, ALIGNED, WIDE)


@triton.jit(do_not_specialize=SIZES)
def transpose_atomic_tabulated(
    # pointers
    grad,
    rois,
    extent,
    weights,
    out,
    # sizes
    images,
    channels,
    height,
    width,
    scale_bits,
    # strides
    grad_k,
    grad_c,
    grad_h,
    grad_w,
    out_n,
    out_c,
    out_h,
    out_w,
    # compile time
    RULE: tl.constexpr,
    RATIO: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    BINS: tl.constexpr,
    POSITION: tl.constexpr,
    ALIGNED: tl.constexpr,
    WIDE: tl.constexpr,
    SPAN: tl.constexpr,
    COUNT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    TILE: tl.constexpr,
):
    """As :func:`transpose_atomic` of one map, with one addition for each cell of a RoI rather than for each tap.

    One program computes every PW-th column of the cells of a RoI, a block of channels of each, TILE cells at a time
    (:func:`_add_cells`), and adds each cell once. Of RoIs whose bins share few cells, or too large for the table, it
    scatters a column of bins.
    """
    k, j = tl.program_id(0).to(tl.int64), tl.program_id(2)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = channel_mask(c, channels, ALIGNED)
    top, bottom, left, right = _load_extents(extent, k, None)
    image = tl.load(rois + 5 * k).to(tl.int64)
    plane = out + image_offset(image, out_n, ALIGNED) + offsets_of(c, out_c, WIDE)
    # none of a RoI that is not valid
    rows, columns = tl.maximum(bottom - top + 1, 0), tl.maximum(right - left + 1, 0)
    shares = 3 * rows * columns <= 2 * PH * PW * (2 * RATIO) * (2 * RATIO)
    if shares & (rows <= SPAN) & (columns <= SPAN):
        table = weights + 2 * k * SPAN * COUNT
        strides = (grad_k, grad_c, grad_h, grad_w)
        for x in range(left + j, right + 1, PW):
            column = plane + along(x, out_w, ALIGNED, WIDE)
            for y0 in range(top, bottom + 1, TILE):
                y = y0 + tl.arange(0, TILE)
                value = tl.zeros((TILE, BLOCK_C), out.dtype.element_ty)
                cells = (k, y, x, top, bottom, left)
                value = _add_cells(value, grad, table, *cells, c, channels, *strides, SPAN, COUNT, ALIGNED, WIDE)
                at = column[None, :] + along(y, out_h, ALIGNED, WIDE)[:, None]
                tl.atomic_add(at, value, mask=(y <= bottom)[:, None] & inside[None, :], sem="relaxed")
    else:
        for i in range(PH):
            _, y, x, _, _ = load_bin(
                rois, None, None, k, i, j, images, height, width, scale_bits, 0, PH, PW, BINS, POSITION
            )
            at = grad + pooled_offset(k, i, j, grad_k, grad_h, grad_w, ALIGNED) + offsets_of(c, grad_c, WIDE)
            value = tl.load(at, mask=inside, other=0).to(out.dtype.element_ty)
            _scatter(value, plane, y, x, out_h, out_w, c, channels, RULE, RATIO, ALIGNED, WIDE)


@triton.jit(do_not_specialize=SIZES)
def transpose_gather(
    # pointers
    grad,
    rois,
    levels,
    offsets,
    extent,
    weights,
    out,
    # sizes
    count,
    images,
    channels,
    height,
    width,
    scale_bits,
    level,
    # strides
    grad_k,
    grad_c,
    grad_h,
    grad_w,
    out_n,
    out_c,
    out_g,
    out_h,
    out_w,
    # compile time
    RULE: tl.constexpr,
    RATIO: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    GH: tl.constexpr,
    GW: tl.constexpr,
    BINS: tl.constexpr,
    POSITION: tl.constexpr,
    ALIGNED: tl.constexpr,
    WIDE: tl.constexpr,
    SPAN: tl.constexpr,
    COUNT: tl.constexpr,
    SUM: tl.constexpr,
    BLOCK_C: tl.constexpr,
    TILE: tl.constexpr,
):
    """The transposed sum, always in the same order, written to ``out`` (shaped as the features, of anything).

    One program owns TILE cells of a column and a block of channels of one image and group. It looks for RoIs whose
    extent (from :func:`extents` or :func:`tabulate`) meets its cells, a hundred at a time, and in their order adds
    weights times gradients to sums in registers, which it stores once. No atomics, no sort, no zeros to begin with.
    """
    parts = tl.cdiv(height, TILE)
    image = (tl.program_id(0) // (parts * width)).to(tl.int64)
    y0, x = tl.program_id(0) // width % parts * TILE, tl.program_id(0) % width
    y = y0 + tl.arange(0, TILE)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    u, v = tl.program_id(2) // GW, tl.program_id(2) % GW
    inside = channel_mask(c, channels, ALIGNED)
    strides = (grad_k, grad_c, grad_h, grad_w)
    total = tl.zeros((TILE, BLOCK_C), SUM)
    for begin in range(0, count, 128):
        n = begin + tl.arange(0, 128)
        meets = (n < count) & (tl.load(rois + 5 * n.to(tl.int64), mask=n < count, other=-1) == image)
        tops, bottoms, lefts, rights = _load_extents(extent, n, n < count)
        meets &= (tops < y0 + TILE) & (bottoms >= y0) & (lefts <= x) & (rights >= x)
        next = tl.min(tl.where(meets, n, count))
        while next < count:
            k = next.to(tl.int64)
            top, bottom, left, right = _load_extents(extent, k, None)
            tabulated = (bottom - top < SPAN) & (right - left < SPAN)
            if SPAN > 0:  # noqa: SIM102 - known at compile time: whether there is a table
                if tabulated:
                    table = weights + 2 * k * SPAN * COUNT
                    cells = (k, y, x, top, bottom, left)
                    total = _add_cells(total, grad, table, *cells, c, channels, *strides, SPAN, COUNT, ALIGNED, WIDE)
            if not tabulated:
                for p in range(PH // GH * (PW // GW)):
                    i = u * (PH // GH) + p // (PW // GW)
                    j = v * (PW // GW) + p % (PW // GW)
                    _, y_axis, x_axis, valid, _ = load_bin(
                        rois, levels, offsets, k, i, j, images, height, width, scale_bits, level, PH, PW, BINS, POSITION
                    )
                    wx = _weights(x, x_axis, RULE, RATIO)
                    if valid & (wx != 0):
                        weight = (_weights(y, y_axis, RULE, RATIO) * wx).to(SUM)[:, None]
                        at = grad + pooled_offset(k, i, j, grad_k, grad_h, grad_w, ALIGNED)
                        value = tl.load(at + offsets_of(c, grad_c, WIDE), mask=inside, other=0).to(SUM)[None, :]
                        total += tl.where(weight != 0, weight * value, 0)
            next = tl.min(tl.where(meets & (n > next), n, count))
    offset = cell_offset(y, x, out_h, out_w, ALIGNED, WIDE)
    group = group_offset(c, u, v, out_c, out_g, GH, GW, ALIGNED, WIDE)
    at = out + image_offset(image, out_n, ALIGNED) + offset[:, None] + group[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=(y < height)[:, None] & inside[None, :])


@triton.jit(do_not_specialize=SIZES)
def tabulate(
    # pointers
    rois,
    levels,
    extent,
    weights,
    # sizes
    images,
    height,
    width,
    scale_bits,
    level,
    # compile time
    RULE: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    BINS: tl.constexpr,
    POSITION: tl.constexpr,
    POINTS: tl.constexpr,
    SPAN: tl.constexpr,
    COUNT: tl.constexpr,
):
    """What POINTS bilinear points per bin and axis weigh the cells of a RoI with.

    ``extent`` (K, 4) int32 is that of :func:`extents`. ``weights`` (K, 2, SPAN, COUNT), for rows and columns: the
    weight of each of SPAN cells from the first in each bin; COUNT is at least PH and PW.

    One program serves a RoI.
    """
    k = tl.program_id(0).to(tl.int64)
    _, x1, y1, x2, y2, valid, here = load_roi(rois, levels, k, level, images, POSITION)
    valid &= here
    rows = _tabulate_axis(y1, y2, scale_bits, height, valid, RULE, PH, BINS, POSITION, POINTS, SPAN, COUNT)
    columns = _tabulate_axis(x1, x2, scale_bits, width, valid, RULE, PW, BINS, POSITION, POINTS, SPAN, COUNT)
    tl.store(extent + 4 * k, rows[0])
    tl.store(extent + 4 * k + 1, rows[1])
    tl.store(extent + 4 * k + 2, columns[0])
    tl.store(extent + 4 * k + 3, columns[1])
    at = weights + 2 * k * SPAN * COUNT + tl.arange(0, SPAN)[:, None] * COUNT + tl.arange(0, COUNT)[None, :]
    tl.store(at, rows[2])
    tl.store(at + SPAN * COUNT, columns[2])


@triton.jit
def _tabulate_axis(
    low,
    high,
    scale_bits,
    length,
    valid,
    RULE: tl.constexpr,
    P: tl.constexpr,
    BINS: tl.constexpr,
    POSITION: tl.constexpr,
    POINTS: tl.constexpr,
    SPAN: tl.constexpr,
    COUNT: tl.constexpr,
):
    """First and last cell of an axis of a RoI, and the weights of the cells (SPAN, COUNT)."""
    p = tl.arange(0, COUNT)
    bins = tl.where(valid, P, 0)
    origin, lower, upper, size, _, _ = make_bin(
        low, high, tl.cast(0, POSITION), p, scale_bits, length, P, BINS, POSITION
    )
    first, last = length, -1
    for t in tl.static_range(2 * POINTS):
        cell = RULE(t, origin, lower, upper, size, length, POINTS)[1]
        cell = tl.where(p < bins, cell, -1)
        first = tl.minimum(first, tl.min(tl.where(cell >= 0, cell, length)))
        last = tl.maximum(last, tl.max(cell))
    cells = first + tl.arange(0, SPAN)
    weights = tl.zeros((SPAN, COUNT), size.dtype)
    for t in tl.static_range(2 * POINTS):
        _, cell, weight, _, _, _ = RULE(t, origin, lower, upper, size, length, POINTS)
        cell = tl.where(p < bins, cell, -1)
        weights += tl.where(cells[:, None] == cell[None, :], tl.zeros_like(weights) + weight[None, :], 0)
    return first, last, weights


@triton.jit(do_not_specialize=SIZES)
def extents(
    # pointers
    rois,
    levels,
    offsets,
    out,
    # sizes
    images,
    height,
    width,
    scale_bits,
    level,
    # compile time
    RULE: tl.constexpr,
    RATIO: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    BINS: tl.constexpr,
    POSITION: tl.constexpr,
):
    """``out`` (K, 4) int32: the first and last row, and the first and last column, that any tap of a RoI reads.

    One program visits all bins of one RoI along each axis. The last is -1 for an axis without taps, and if the
    RoI is not valid or of another level. Sixteen bytes a RoI are all the memory that the deterministic gradient needs.
    """
    k = tl.program_id(0).to(tl.int64)
    top, bottom, left, right = height, -1, width, -1
    for n in range(PH * PW if offsets is not None else max(PH, PW)):
        i = n // PW if offsets is not None else tl.minimum(n, PH - 1)
        j = n % PW if offsets is not None else tl.minimum(n, PW - 1)
        _, y, x, valid, here = load_bin(
            rois, levels, offsets, k, i, j, images, height, width, scale_bits, level, PH, PW, BINS, POSITION
        )
        for a in range(tl.where(valid & here, RULE(0, *y, RATIO)[0], 0)):
            iy = RULE(a, *y, RATIO)[1]
            top = tl.where(iy >= 0, tl.minimum(top, iy), top)
            bottom = tl.maximum(bottom, iy)
        for b in range(tl.where(valid & here, RULE(0, *x, RATIO)[0], 0)):
            ix = RULE(b, *x, RATIO)[1]
            left = tl.where(ix >= 0, tl.minimum(left, ix), left)
            right = tl.maximum(right, ix)
    tl.store(out + 4 * k, top)
    tl.store(out + 4 * k + 1, bottom)
    tl.store(out + 4 * k + 2, left)
    tl.store(out + 4 * k + 3, right)


@triton.jit
def _load_extents(extent, k, mask):
    """The first and last row and the first and last column of one RoI, or of several."""
    at = extent + 4 * k
    return tl.load(at, mask), tl.load(at + 1, mask), tl.load(at + 2, mask), tl.load(at + 3, mask)


@triton.jit
def _scatter(
    value,
    plane,
    y,
    x,
    out_h,
    out_w,
    c,
    channels,
    RULE: tl.constexpr,
    RATIO: tl.constexpr,
    ALIGNED: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Add the gradient of one bin to the cells of its taps."""
    x_taps = RULE(0, *x, RATIO)[0]
    for a in range(RULE(0, *y, RATIO)[0]):
        _, iy, wy, _, _, _ = RULE(a, *y, RATIO)
        row = plane + along(iy, out_h, ALIGNED, WIDE)
        for b in range(x_taps):
            _, ix, wx, _, _, _ = RULE(b, *x, RATIO)
            mask = channel_mask(c, tl.where((iy >= 0) & (ix >= 0), channels, 0), ALIGNED)
            tl.atomic_add(
                row + along(ix, out_w, ALIGNED, WIDE), (wy * wx).to(value.dtype) * value, mask=mask, sem="relaxed"
            )


@triton.jit
def _add_cells(
    total,
    grad,
    table,
    k,
    y,
    x,
    top,
    bottom,
    left,
    c,
    channels,
    grad_k,
    grad_c,
    grad_h,
    grad_w,
    SPAN: tl.constexpr,
    COUNT: tl.constexpr,
    ALIGNED: tl.constexpr,
    WIDE: tl.constexpr,
):
    """``total`` (Y, C) and the gradient that cells ``y`` (Y,) of column x have from a RoI of a table of weights.

    Of each row of bins that reads any of the cells the gradients are summed along the row first.
    """
    inside = channel_mask(c, channels, ALIGNED)
    bins = tl.arange(0, COUNT)
    columns = table + (SPAN + x - left) * COUNT
    rows = table + (y - top) * COUNT
    near = (y >= top) & (y <= bottom)
    reads_column = tl.load(columns + bins) != 0
    reads_row = tl.load(rows[:, None] + bins[None, :], mask=near[:, None], other=0) != 0
    first_column, last_column = tl.min(tl.where(reads_column, bins, COUNT)), tl.max(tl.where(reads_column, bins, -1))
    first_row = tl.min(tl.where(reads_row, bins[None, :], COUNT))
    last_row = tl.max(tl.where(reads_row, bins[None, :], -1))
    for i in range(first_row, last_row + 1):
        value = tl.zeros(c.shape, total.dtype)
        for j in range(first_column, last_column + 1):
            at = grad + pooled_offset(k, i, j, grad_k, grad_h, grad_w, ALIGNED) + offsets_of(c, grad_c, WIDE)
            value += tl.load(columns + j) * tl.load(at, mask=inside, other=0).to(total.dtype)
        weight = tl.load(rows + i, mask=near, other=0)[:, None]
        if tl.sum(value - value) == 0:
            total += weight * value[None, :]
        else:
            # not merely 0 times the gradient, which is infinite somewhere
            total += tl.where(weight != 0, weight * value[None, :], 0)
    return total


@triton.jit
def _weights(positions, bin, RULE: tl.constexpr, RATIO: tl.constexpr):
    """The weights of a bin at one cell of the axis, or at several."""
    weights = tl.cast(positions, bin[3].dtype) * 0
    # a count that the compiler cannot know: unrolled, the loops of many taps would spill registers beside the sums
    taps = tl.where(bin[3] == bin[3], RULE(0, *bin, RATIO)[0], 0)
    for t in range(taps):
        _, cell, weight, _, _, _ = RULE(t, *bin, RATIO)
        weights += tl.where(positions == cell, weight, 0)
    return weights
