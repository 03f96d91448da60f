"""Primitive 1 on a GPU: the separable weighted sum, with taps that a sampling rule computes inside the kernel.

    out[k,c,i,j] = sum_a sum_b wy[k,i,j,a] wx[k,i,j,b] F[batch[k], channel(c,i,j), iy[k,i,j,a], ix[k,i,j,b]]

Shapes: ``features`` (N, C GH GW, H, W), ``rois`` (K, 5), ``levels`` (K,) int64 or None, ``offsets`` (K, 2, PH, PW) or
None, ``out`` and ``grad`` (K, C, PH, PW), any strides. ``channel(c,i,j) = (c GH + i GH / PH) GW + j GW / PW``, integer
divisions. A launch serves the RoIs of one level of a pyramid, that of ``features``.

A RoI that is not valid (see ``bins.load_roi``) reads nothing: its output is NaN, and it has no part in any gradient.
"""

import triton
import triton.language as tl

from .bins import SIZES, load_offset, load_roi, make_bin


@triton.jit(do_not_specialize=SIZES)
def forward(
    # pointers
    features,
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
    features_n,
    features_c,
    features_h,
    features_w,
    out_k,
    out_c,
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
    WHOLE: tl.constexpr,
    SUM: tl.constexpr,
    BLOCK_C: tl.constexpr,
    POINTS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The sum itself.

    One program computes a block of channels of COLUMNS neighbouring bins of a RoI, one after another: it visits the
    taps of a bin, each visit a load of neighbouring channels, and stores its result once. Programs share nothing.
    Channels are the fastest axis of channels_last features: loads and stores are as wide as the hardware has them.

    Bins of POINTS bilinear points per axis, all of which lie in the image, take a short way: no tap can be missing,
    and if the points lie close together, the cells that they share are read once.
    """
    number = tl.program_id(0) * COLUMNS
    k, i, first = (number // (PH * PW)).to(tl.int64), number // PW % PH, number % PW
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = None if WHOLE else _mask(c, channels, ALIGNED)
    image, x1, y1, x2, y2, valid, here = load_roi(rois, levels, k, level, images, POSITION)
    edges = (x1, y1, x2, y2)
    for j in range(first, tl.where(here, first + COLUMNS, first)):
        y, x, finite = _make_axes(edges, offsets, k, i, j, height, width, scale_bits, PH, PW, BINS, POSITION)
        plane = features + _image(image, features_n, ALIGNED) + _plane_offset(c, i, j, features_c, PH, PW, GH, GW, WIDE)
        total = tl.zeros((BLOCK_C,), SUM)
        short = POINTS < 0
        if POINTS > 0:
            y_span, x_span = _span(y, RULE, POINTS), _span(x, RULE, POINTS)
            short = valid & finite & (y_span[0] >= 0) & (x_span[0] >= 0)
            close = tl.maximum(y_span[1] - y_span[0], x_span[1] - x_span[0]) <= POINTS
            if short & close:
                for a in tl.static_range(POINTS + 1):
                    iy, wy = _shared_cell(a, y_span, y, RULE, POINTS)
                    row = plane + _along(iy, features_h, ALIGNED, WIDE)
                    for b in tl.static_range(POINTS + 1):
                        ix, wx = _shared_cell(b, x_span, x, RULE, POINTS)
                        value = tl.load(row + _along(ix, features_w, ALIGNED, WIDE), mask=inside)
                        total += (wy * wx).to(SUM) * value.to(SUM)
            if short & (not close):
                for a in tl.range(0, 2 * POINTS, loop_unroll_factor=4 if POINTS == 2 else 1):
                    _, iy, wy, _, _, _ = RULE(a, *y, POINTS)
                    row = plane + _along(iy, features_h, ALIGNED, WIDE)
                    for b in tl.static_range(2 * POINTS):
                        _, ix, wx, _, _, _ = RULE(b, *x, POINTS)
                        value = tl.load(row + _along(ix, features_w, ALIGNED, WIDE), mask=inside)
                        total += (wy * wx).to(SUM) * value.to(SUM)
        if not short:
            x_taps = RULE(0, *x, RATIO)[0]
            for a in range(tl.where(valid & finite, RULE(0, *y, RATIO)[0], 0)):
                _, iy, wy, _, _, _ = RULE(a, *y, RATIO)
                row = plane + _along(iy, features_h, ALIGNED, WIDE)
                for b in range(x_taps):
                    _, ix, wx, _, _, _ = RULE(b, *x, RATIO)
                    mask = _mask(c, tl.where((iy >= 0) & (ix >= 0), channels, 0), ALIGNED)
                    value = tl.load(row + _along(ix, features_w, ALIGNED, WIDE), mask=mask, other=0)
                    total += (wy * wx).to(SUM) * value.to(SUM)
            total = tl.where(valid & finite, total, float("nan"))
        at = out + _pooled(k, i, j, out_k, out_h, out_w, ALIGNED) + _offsets(c, out_c, WIDE)
        tl.store(at, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _span(bin, RULE: tl.constexpr, POINTS: tl.constexpr):
    """The first and the last cell that the points of a bin read along an axis; the first is -1 if one is missing."""
    first, last = bin[4], -1
    for t in tl.static_range(2 * POINTS):
        cell = RULE(t, *bin, POINTS)[1]
        first, last = tl.minimum(first, cell), tl.maximum(last, cell)
    return first, last


@triton.jit
def _shared_cell(n, span, bin, RULE: tl.constexpr, POINTS: tl.constexpr):
    """Cell n of a span of at most POINTS + 1 cells, and the weights of all taps that read it.

    A shorter span ends with its last cell several times, each with a share of the weight: one without a weight would
    turn infinite features into NaN.
    """
    first, last = span
    cell = tl.minimum(first + n, last)
    weight = bin[3] * 0
    for t in tl.static_range(2 * POINTS):
        _, other, more, _, _, _ = RULE(t, *bin, POINTS)
        weight += tl.where(other == cell, more, 0)
    share = tl.cast(1, weight.dtype)
    for missing in tl.static_range(1, POINTS + 1):
        share = tl.where(last - first + missing == POINTS, 1 / (missing + 1), share)
    return cell, tl.where(cell == last, weight * share, weight)


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
    k, i, j = _bin(PH, PW)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    image, y, x, valid, here = _load_bin(
        rois, levels, offsets, k, i, j, images, height, width, scale_bits, level, PH, PW, BINS, POSITION
    )
    at = grad + _pooled(k, i, j, grad_k, grad_h, grad_w, ALIGNED) + _offsets(c, grad_c, WIDE)
    value = tl.load(at, mask=_mask(c, channels, ALIGNED), other=0).to(out.dtype.element_ty)
    plane = out + _image(image, out_n, ALIGNED) + _plane_offset(c, i, j, out_c, PH, PW, GH, GW, WIDE)
    if valid & here:
        _scatter(value, plane, y, x, out_h, out_w, c, channels, RULE, RATIO, ALIGNED, WIDE)


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
        row = plane + _along(iy, out_h, ALIGNED, WIDE)
        for b in range(x_taps):
            _, ix, wx, _, _, _ = RULE(b, *x, RATIO)
            mask = _mask(c, tl.where((iy >= 0) & (ix >= 0), channels, 0), ALIGNED)
            tl.atomic_add(
                row + _along(ix, out_w, ALIGNED, WIDE), (wy * wx).to(value.dtype) * value, mask=mask, sem="relaxed"
            )


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
    inside = _mask(c, channels, ALIGNED)
    top, bottom, left, right = _load_extents(extent, k, None)
    image = tl.load(rois + 5 * k).to(tl.int64)
    plane = out + _image(image, out_n, ALIGNED) + _offsets(c, out_c, WIDE)
    # none of a RoI that is not valid
    rows, columns = tl.maximum(bottom - top + 1, 0), tl.maximum(right - left + 1, 0)
    shares = 3 * rows * columns <= 2 * PH * PW * (2 * RATIO) * (2 * RATIO)
    if shares & (rows <= SPAN) & (columns <= SPAN):
        table = weights + 2 * k * SPAN * COUNT
        strides = (grad_k, grad_c, grad_h, grad_w)
        for x in range(left + j, right + 1, PW):
            column = plane + _along(x, out_w, ALIGNED, WIDE)
            for y0 in range(top, bottom + 1, TILE):
                y = y0 + tl.arange(0, TILE)
                value = tl.zeros((TILE, BLOCK_C), out.dtype.element_ty)
                value = _add_cells(
                    value, grad, table, k, y, x, top, bottom, left, c, channels, *strides, SPAN, COUNT, ALIGNED, WIDE
                )
                at = column[None, :] + _along(y, out_h, ALIGNED, WIDE)[:, None]
                tl.atomic_add(at, value, mask=(y <= bottom)[:, None] & inside[None, :], sem="relaxed")
    else:
        for i in range(PH):
            _, y, x, _, _ = _load_bin(
                rois, None, None, k, i, j, images, height, width, scale_bits, 0, PH, PW, BINS, POSITION
            )
            at = grad + _pooled(k, i, j, grad_k, grad_h, grad_w, ALIGNED) + _offsets(c, grad_c, WIDE)
            value = tl.load(at, mask=inside, other=0).to(out.dtype.element_ty)
            _scatter(value, plane, y, x, out_h, out_w, c, channels, RULE, RATIO, ALIGNED, WIDE)


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
    inside = _mask(c, channels, ALIGNED)
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
            at = grad + _pooled(k, i, j, grad_k, grad_h, grad_w, ALIGNED) + _offsets(c, grad_c, WIDE)
            value += tl.load(columns + j) * tl.load(at, mask=inside, other=0).to(total.dtype)
        weight = tl.load(rows + i, mask=near, other=0)[:, None]
        if tl.sum(value - value) == 0:
            total += weight * value[None, :]
        else:
            # not merely 0 times the gradient, which is infinite somewhere
            total += tl.where(weight != 0, weight * value[None, :], 0)
    return total


@triton.jit
def _load_extents(extent, k, mask):
    """The first and last row and the first and last column of one RoI, or of several."""
    at = extent + 4 * k
    return tl.load(at, mask), tl.load(at + 1, mask), tl.load(at + 2, mask), tl.load(at + 3, mask)


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
        _, y, x, valid, here = _load_bin(
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
    inside = _mask(c, channels, ALIGNED)
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
                    total = _add_cells(
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
                        *strides,
                        SPAN,
                        COUNT,
                        ALIGNED,
                        WIDE,
                    )
            if not tabulated:
                for p in range(PH // GH * (PW // GW)):
                    i = u * (PH // GH) + p // (PW // GW)
                    j = v * (PW // GW) + p % (PW // GW)
                    _, y_axis, x_axis, valid, _ = _load_bin(
                        rois, levels, offsets, k, i, j, images, height, width, scale_bits, level, PH, PW, BINS, POSITION
                    )
                    wx = _weights(x, x_axis, RULE, RATIO)
                    if valid & (wx != 0):
                        weight = (_weights(y, y_axis, RULE, RATIO) * wx).to(SUM)[:, None]
                        at = grad + _pooled(k, i, j, grad_k, grad_h, grad_w, ALIGNED) + _offsets(c, grad_c, WIDE)
                        value = tl.load(at, mask=inside, other=0).to(SUM)[None, :]
                        total += tl.where(weight != 0, weight * value, 0)
            next = tl.min(tl.where(meets & (n > next), n, count))
    offset = _cell(y, x, out_h, out_w, ALIGNED, WIDE)
    channels_of_group = _offsets(_input_channels(c, u, v, GH, GW), out_c, WIDE)
    at = out + _image(image, out_n, ALIGNED) + offset[:, None] + channels_of_group[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=(y < height)[:, None] & inside[None, :])


@triton.jit(do_not_specialize=SIZES)
def roi_grads(
    # pointers
    grad,
    features,
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
    features_n,
    features_c,
    features_h,
    features_w,
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
    SUM: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Gradients of the box and the offsets of each bin: ``out`` (K, PH, PW, 6), x1, y1, x2, y2 in pixels, then x and y.

    One program computes all six for one bin of one RoI, by the chain rule through the weights of the taps: it visits
    the taps as the forward does, block by block of channels, with the derivatives of the weights beside the weights.
    Sums run over its own channels and taps only, so the result is always the same. Another level's launch writes the
    RoIs of that level.
    """
    k, i, j = _bin(PH, PW)
    image, y, x, valid, here = _load_bin(
        rois, levels, offsets, k, i, j, images, height, width, scale_bits, level, PH, PW, BINS, POSITION
    )
    y_taps = tl.where(valid & here, RULE(0, *y, RATIO)[0], 0)
    # a count that the compiler cannot know: unrolled, six sums and their derivatives need too many registers
    x_taps = tl.where(valid & here, RULE(0, *x, RATIO)[0], 0)
    zero = tl.zeros((BLOCK_C,), SUM)
    y_lower, y_upper, y_size, x_lower, x_upper, x_size = zero, zero, zero, zero, zero, zero
    for first in range(0, channels, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        at = grad + _pooled(k, i, j, grad_k, grad_h, grad_w, ALIGNED) + _offsets(c, grad_c, WIDE)
        value = tl.load(at, mask=_mask(c, channels, ALIGNED), other=0).to(SUM)
        plane = features + _image(image, features_n, ALIGNED) + _plane_offset(c, i, j, features_c, PH, PW, GH, GW, WIDE)
        for a in range(y_taps):
            _, iy, wy, dy_lower, dy_upper, dy_size = RULE(a, *y, RATIO)
            row, row_lower, row_upper, row_size = zero, zero, zero, zero
            for b in range(x_taps):
                _, ix, wx, dx_lower, dx_upper, dx_size = RULE(b, *x, RATIO)
                cell = _cell(iy, ix, features_h, features_w, ALIGNED, WIDE)
                mask = _mask(c, tl.where((iy >= 0) & (ix >= 0), channels, 0), ALIGNED)
                product = value * tl.load(plane + cell, mask=mask, other=0).to(SUM)
                row += tl.cast(wx, SUM) * product
                row_lower += tl.cast(dx_lower, SUM) * product
                row_upper += tl.cast(dx_upper, SUM) * product
                row_size += tl.cast(dx_size, SUM) * product
            y_lower += tl.cast(dy_lower, SUM) * row
            y_upper += tl.cast(dy_upper, SUM) * row
            y_size += tl.cast(dy_size, SUM) * row
            x_lower += tl.cast(wy, SUM) * row_lower
            x_upper += tl.cast(wy, SUM) * row_upper
            x_size += tl.cast(wy, SUM) * row_size
    _, x1, y1, x2, y2, _, _ = load_roi(rois, levels, k, level, images, POSITION)
    at = out + 6 * ((k * PH + i) * PW + j)
    x_sums = (tl.sum(x_lower), tl.sum(x_upper), tl.sum(x_size))
    y_sums = (tl.sum(y_lower), tl.sum(y_upper), tl.sum(y_size))
    bin = (offsets, k, i, j)
    _store_axis_grads(at, 0, *x_sums, x1, x2, *bin, j, scale_bits, width, here, PW, PH, PW, BINS, POSITION)
    _store_axis_grads(at, 1, *y_sums, y1, y2, *bin, i, scale_bits, height, here, PH, PH, PW, BINS, POSITION)


@triton.jit
def _store_axis_grads(
    at,
    axis,
    lower,
    upper,
    size,
    low,
    high,
    offsets,
    k,
    i,
    j,
    p,
    scale_bits,
    length,
    here,
    COUNT: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    BINS: tl.constexpr,
    POSITION: tl.constexpr,
):
    """From gradients of bin p of an axis to those of the edges of the box and of the offset.

    The bin is ``start + (p or p + 1) extent / COUNT + offset extent``.
    """
    offset = load_offset(offsets, k, axis, i, j, PH, PW, POSITION)
    _, _, _, _, extent, moves = make_bin(low, high, offset, p, scale_bits, length, COUNT, BINS, POSITION)
    start = lower + upper
    along = (p * lower + (p + 1) * upper + size) / COUNT + offset.to(lower.dtype) * start
    along = tl.where(moves, along, 0)
    scale = scale_bits.to(tl.float64, bitcast=True).to(lower.dtype)
    tl.store(at + axis, scale * (start - along), mask=here)
    tl.store(at + 2 + axis, scale * along, mask=here)
    tl.store(at + 4 + axis, start * extent.to(lower.dtype), mask=here)


@triton.jit
def _bin(PH: tl.constexpr, PW: tl.constexpr):
    """RoI, row and column of the bin that this program works on."""
    number = tl.program_id(0)
    return (number // (PH * PW)).to(tl.int64), number // PW % PH, number % PW


@triton.jit
def _load_bin(
    rois,
    levels,
    offsets,
    k,
    i,
    j,
    images,
    height,
    width,
    scale_bits,
    level,
    PH: tl.constexpr,
    PW: tl.constexpr,
    BINS: tl.constexpr,
    POSITION: tl.constexpr,
):
    """Image and both axes of bin (i, j) of RoI k; whether it is valid, and whether it is of this level."""
    image, x1, y1, x2, y2, valid, here = load_roi(rois, levels, k, level, images, POSITION)
    edges = (x1, y1, x2, y2)
    y, x, finite = _make_axes(edges, offsets, k, i, j, height, width, scale_bits, PH, PW, BINS, POSITION)
    return image, y, x, valid & finite, here


@triton.jit
def _make_axes(
    edges,
    offsets,
    k,
    i,
    j,
    height,
    width,
    scale_bits,
    PH: tl.constexpr,
    PW: tl.constexpr,
    BINS: tl.constexpr,
    POSITION: tl.constexpr,
):
    """Both axes of bin (i, j), each as a rule takes it, and whether its offsets are finite."""
    x1, y1, x2, y2 = edges
    x_offset = load_offset(offsets, k, 0, i, j, PH, PW, POSITION)
    y_offset = load_offset(offsets, k, 1, i, j, PH, PW, POSITION)
    finite = (x_offset - x_offset) + (y_offset - y_offset) == 0
    x_offset, y_offset = tl.where(finite, x_offset, 0), tl.where(finite, y_offset, 0)
    yo, yl, yu, ys, _, _ = make_bin(y1, y2, y_offset, i, scale_bits, height, PH, BINS, POSITION)
    xo, xl, xu, xs, _, _ = make_bin(x1, x2, x_offset, j, scale_bits, width, PW, BINS, POSITION)
    return (yo, yl, yu, ys, height), (xo, xl, xu, xs, width), finite


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


@triton.jit
def _plane_offset(
    c, i, j, stride, PH: tl.constexpr, PW: tl.constexpr, GH: tl.constexpr, GW: tl.constexpr, WIDE: tl.constexpr
):
    """Offsets of the input channels that bin (i, j) reads for the output channels ``c``."""
    return _offsets(_input_channels(c, i * GH // PH, j * GW // PW, GH, GW), stride, WIDE)


@triton.jit
def _input_channels(c, u, v, GH: tl.constexpr, GW: tl.constexpr):
    """The channels that group (u, v) reads for the output channels ``c``."""
    return (c * GH + u) * GW + v if GH * GW > 1 else c


@triton.jit
def _offsets(c, stride, WIDE: tl.constexpr):
    """``c * stride``, in 64 bits if an image or a pooled RoI needs them."""
    return tl.cast(c, tl.int64) * stride if WIDE else tl.cast(c, tl.int32) * stride


# The compiler does not see that sums of products of strides are multiples of ALIGNED. The hint belongs to the operation
# that it is given on, so that has to stand in the same function.


@triton.jit
def _image(image, stride, ALIGNED: tl.constexpr):
    """Offset of an image."""
    offset = image * stride
    return tl.multiple_of(offset, ALIGNED) if ALIGNED > 1 else offset


@triton.jit
def _along(position, stride, ALIGNED: tl.constexpr, WIDE: tl.constexpr):
    """Offset of a row or a column, or of several, in an image."""
    offset = tl.cast(position, tl.int64 if WIDE else tl.int32) * stride
    return tl.multiple_of(offset, ALIGNED) if ALIGNED > 1 else offset


@triton.jit
def _cell(y, x, stride_h, stride_w, ALIGNED: tl.constexpr, WIDE: tl.constexpr):
    """Offset of a cell, or of several, in an image."""
    return _along(y, stride_h, ALIGNED, WIDE) + _along(x, stride_w, ALIGNED, WIDE)


@triton.jit
def _pooled(k, i, j, stride_k, stride_h, stride_w, ALIGNED: tl.constexpr):
    """Offset of bin (i, j) of RoI k."""
    offset = k * stride_k + i * stride_h + j * stride_w
    return tl.multiple_of(offset, ALIGNED) if ALIGNED > 1 else offset


@triton.jit
def _mask(c, channels, ALIGNED: tl.constexpr):
    """``c < channels``, the same for ALIGNED neighbours, or they could not be loaded together."""
    mask = c < channels
    return tl.max_constancy(mask, ALIGNED) if ALIGNED > 1 else mask
