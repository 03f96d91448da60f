"""Primitive 2 on a GPU: the maximum over each bin's cells, and its transpose.

Shapes: ``features`` (N, C, GH GW, H, W), ``rois`` (K, 5), ``levels`` (K,) int64 or None, ``out``, ``argmax`` and
``grad`` (K, C, PH, PW), any strides (``argmax`` those of ``out``). ``argmax`` holds ``y W + x`` of the first maximum in
row-major order, -1 for a bin without cells; None: places are not stored. Channels of groups, and levels, as in
``weighted_sum_kernels``.

A RoI that is not valid (see ``bins.load_roi``) reads nothing: its output is NaN and its argmax -1.
"""

import triton
import triton.language as tl

from .addresses import cell_offset, channel_mask, group_offset, image_offset, offsets_of, plane_offset, pooled_offset
from .bins import SIZES, bin_of_program, load_roi, make_bin, window


@triton.jit(do_not_specialize=SIZES)
def forward(
    # pointers
    features,
    rois,
    levels,
    out,
    argmax,
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
    features_g,
    features_h,
    features_w,
    out_k,
    out_c,
    out_h,
    out_w,
    # compile time
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
    """Maximum and argmax.

    One program computes a block of channels of one bin of one RoI: it visits the cells of the bin once, each visit a
    load of neighbouring channels, and stores its results once. Programs share nothing. A NaN wins over numbers, and
    the first NaN over later ones.
    """
    k, i, j = bin_of_program(PH, PW)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    image, x1, y1, x2, y2, valid, here = load_roi(rois, levels, k, level, images, POSITION)
    none = tl.cast(0, POSITION)
    yo, yl, yu, _, _, _ = make_bin(y1, y2, none, i, scale_bits, height, PH, BINS, POSITION)
    xo, xl, xu, _, _, _ = make_bin(x1, x2, none, j, scale_bits, width, PW, BINS, POSITION)
    top, bottom = window(yo, yl, yu, height)
    left, right = window(xo, xl, xu, width)
    bottom = tl.where(valid & here, bottom, top)
    plane = (
        features
        + image_offset(image, features_n, ALIGNED)
        + plane_offset(c, i, j, features_c, features_g, PH, PW, GH, GW, ALIGNED, WIDE)
    )
    best = tl.full((BLOCK_C,), float("-inf"), features.dtype.element_ty)
    where = tl.full((BLOCK_C,), -1, tl.int32)
    for y in range(top, bottom):
        for x in range(left, right):
            cell = cell_offset(y, x, features_h, features_w, ALIGNED, WIDE)
            value = tl.load(plane + cell, mask=channel_mask(c, channels, ALIGNED), other=0)
            wins = (value > best) | (where < 0) | ((value != value) & (best == best))
            best = tl.where(wins, value, best)
            where = tl.where(wins, y * width + x, where)
    best = tl.where(where >= 0, best, 0)
    best = tl.where(valid, best, float("nan"))
    mask = channel_mask(c, tl.where(here, channels, 0), ALIGNED)
    at = pooled_offset(k, i, j, out_k, out_h, out_w, ALIGNED) + offsets_of(c, out_c, WIDE)
    tl.store(out + at, best, mask=mask)
    if argmax is not None:
        tl.store(argmax + at, where.to(argmax.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=SIZES)
def scatter_atomic(
    # pointers
    grad,
    argmax,
    rois,
    levels,
    out,
    # sizes
    images,
    channels,
    height,
    width,
    level,
    # strides
    grad_k,
    grad_c,
    grad_h,
    grad_w,
    argmax_k,
    argmax_c,
    argmax_h,
    argmax_w,
    out_n,
    out_c,
    out_g,
    out_h,
    out_w,
    # compile time
    PH: tl.constexpr,
    PW: tl.constexpr,
    GH: tl.constexpr,
    GW: tl.constexpr,
    ALIGNED: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The gradient of the maximum, added to ``out`` (as the features, of zeros, float32 or float64) in any order.

    One program loads a block of channels of one bin's gradient and adds each number to the cell it came from.
    Programs meet in the features' cells, where additions are atomic; the rounding of the result depends on their
    order.
    """
    k, i, j = bin_of_program(PH, PW)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    image, valid = _image_here(rois, levels, k, level, images)
    mask = channel_mask(c, tl.where(valid, channels, 0), ALIGNED)
    at = pooled_offset(k, i, j, grad_k, grad_h, grad_w, ALIGNED) + offsets_of(c, grad_c, WIDE)
    value = tl.load(grad + at, mask=mask, other=0).to(out.dtype.element_ty)
    at = pooled_offset(k, i, j, argmax_k, argmax_h, argmax_w, ALIGNED) + offsets_of(c, argmax_c, WIDE)
    cell = tl.load(argmax + at, mask=mask, other=-1).to(tl.int32)
    offset = (cell // width).to(tl.int64) * out_h + (cell % width).to(tl.int64) * out_w
    plane = (
        out + image_offset(image, out_n, ALIGNED) + plane_offset(c, i, j, out_c, out_g, PH, PW, GH, GW, ALIGNED, WIDE)
    )
    tl.atomic_add(plane + offset, value, mask=mask & (cell >= 0) & (cell < height * width), sem="relaxed")


@triton.jit(do_not_specialize=SIZES)
def extents(
    # pointers
    argmax,
    out,
    # sizes
    channels,
    width,
    # strides
    argmax_k,
    argmax_c,
    argmax_h,
    argmax_w,
    # compile time
    PH: tl.constexpr,
    PW: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """``out`` (K, PH, PW, 4) int32: the first and last row, and the first and last column, of a bin's argmax.

    One program looks at all channels of one bin. The last row is -1 for a bin without cells. Sixteen bytes a bin are
    all the memory that the deterministic gradient needs.
    """
    k, i, j = bin_of_program(PH, PW)
    top = tl.full((BLOCK_C,), 2147483647, tl.int32)
    bottom = tl.full((BLOCK_C,), -1, tl.int32)
    left, right = top, bottom
    for first in range(0, channels, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        at = argmax + k * argmax_k + i * argmax_h + j * argmax_w + c.to(tl.int64) * argmax_c
        cell = tl.load(at, mask=c < channels, other=-1).to(tl.int32)
        top = tl.where(cell >= 0, tl.minimum(top, cell // width), top)
        bottom = tl.where(cell >= 0, tl.maximum(bottom, cell // width), bottom)
        left = tl.where(cell >= 0, tl.minimum(left, cell % width), left)
        right = tl.where(cell >= 0, tl.maximum(right, cell % width), right)
    at = out + 4 * ((k * PH + i) * PW + j)
    tl.store(at, tl.min(top))
    tl.store(at + 1, tl.max(bottom))
    tl.store(at + 2, tl.min(left))
    tl.store(at + 3, tl.max(right))


@triton.jit(do_not_specialize=SIZES)
def scatter_gather(
    # pointers
    grad,
    argmax,
    rois,
    levels,
    extent,
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
    argmax_k,
    argmax_c,
    argmax_h,
    argmax_w,
    out_n,
    out_c,
    out_g,
    out_h,
    out_w,
    # compile time
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
    TILE: tl.constexpr,
    COUNT: tl.constexpr,
):
    """The gradient of the maximum, always in the same order, written to ``out`` (shaped as the features, of anything).

    One program owns a TILE x TILE square of cells and a block of channels of one image and group. It looks for RoIs
    that meet the square, many at a time, and among their bins (COUNT is at least those of a group) for those whose
    extent (from :func:`extents`) does, compares the argmax of these in their order with each of its cells, and stores
    its sums once. No atomics, no sort, no zeros to begin with.
    """
    columns = tl.cdiv(width, TILE)
    square = tl.program_id(0) % (columns * tl.cdiv(height, TILE))
    image = (tl.program_id(0) // (columns * tl.cdiv(height, TILE))).to(tl.int64)
    y0, x0 = square // columns * TILE, square % columns * TILE
    y = y0 + tl.arange(0, TILE * TILE) // TILE
    x = x0 + tl.arange(0, TILE * TILE) % TILE
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    u, v = tl.program_id(2) // GW, tl.program_id(2) % GW
    total = tl.zeros((TILE * TILE, BLOCK_C), SUM)
    mask = channel_mask(c, channels, ALIGNED)
    bins: tl.constexpr = PH // GH * (PW // GW)
    q = tl.arange(0, COUNT)
    i = u * (PH // GH) + q // (PW // GW)
    j = v * (PW // GW) + q % (PW // GW)
    for begin in range(0, count, 64):
        n = begin + tl.arange(0, 64)
        number = tl.minimum(n, count - 1).to(tl.int64)
        of_roi, x1, y1, x2, y2, valid, here = load_roi(rois, levels, number, level, images, POSITION)
        top, bottom = _window_of_box(y1, y2, scale_bits, height, PH, BINS, POSITION)
        left, right = _window_of_box(x1, x2, scale_bits, width, PW, BINS, POSITION)
        meets = (n < count) & valid & here & (of_roi == image)
        meets &= (top < y0 + TILE) & (bottom > y0) & (left < x0 + TILE) & (right > x0)
        next_roi = tl.min(tl.where(meets, n, count))
        while next_roi < count:
            k = next_roi.to(tl.int64)
            bounds = extent + 4 * ((k * PH + i) * PW + j)
            some = q < bins
            above, below = tl.load(bounds, mask=some, other=0), tl.load(bounds + 1, mask=some, other=-1)
            before, after = tl.load(bounds + 2, mask=some, other=0), tl.load(bounds + 3, mask=some, other=-1)
            met = (above < y0 + TILE) & (below >= y0) & (before < x0 + TILE) & (after >= x0)
            p = tl.min(tl.where(met, q, bins))
            while p < bins:
                row, column = u * (PH // GH) + p // (PW // GW), v * (PW // GW) + p % (PW // GW)
                at = pooled_offset(k, row, column, grad_k, grad_h, grad_w, ALIGNED) + offsets_of(c, grad_c, WIDE)
                value = tl.load(grad + at, mask=mask, other=0).to(total.dtype)
                at = pooled_offset(k, row, column, argmax_k, argmax_h, argmax_w, ALIGNED)
                cell = tl.load(argmax + at + offsets_of(c, argmax_c, WIDE), mask=mask, other=-1).to(tl.int32)
                total += tl.where((y * width + x)[:, None] == cell[None, :], value[None, :], 0)
                p = tl.min(tl.where(met & (q > p), q, bins))
            next_roi = tl.min(tl.where(meets & (n > next_roi), n, count))
    inside = ((y < height) & (x < width))[:, None] & mask[None, :]
    cell = cell_offset(y, x, out_h, out_w, ALIGNED, WIDE)
    group = group_offset(c, u, v, out_c, out_g, GH, GW, ALIGNED, WIDE)
    at = out + image_offset(image, out_n, ALIGNED) + cell[:, None] + group[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _window_of_box(low, high, scale_bits, length, COUNT: tl.constexpr, BINS: tl.constexpr, POSITION: tl.constexpr):
    """The first and last + 1 cell that any bin of a box touches along an axis."""
    none = tl.cast(0, POSITION)
    origin, lower, upper, _, _, _ = make_bin(low, high, none, 0, scale_bits, length, COUNT, BINS, POSITION)
    first = window(origin, lower, upper, length)[0]
    origin, lower, upper, _, _, _ = make_bin(low, high, none, COUNT - 1, scale_bits, length, COUNT, BINS, POSITION)
    return first, window(origin, lower, upper, length)[1]


@triton.jit
def _image_here(rois, levels, k, level, images):
    """The image of RoI k, 0 if there is no such image or the RoI is of another level; whether it is of this."""
    image = tl.load(rois + 5 * k)
    valid = (image >= 0) & (image < images)
    if levels is not None:
        valid &= tl.load(levels + k) == level
    return tl.where(valid, image, 0).to(tl.int64), valid
