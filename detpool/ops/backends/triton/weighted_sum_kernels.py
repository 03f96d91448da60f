"""Primitive 1 on a GPU: the separable weighted sum, with taps that a sampling rule computes inside the kernel.

    out[k,c,i,j] = sum_a sum_b wy[k,i,j,a] wx[k,i,j,b] F[batch[k], c, group(i,j), iy[k,i,j,a], ix[k,i,j,b]]

Shapes: ``features`` (N, C, GH GW, H, W), ``rois`` (K, 5), ``levels`` (K,) int64 or None, ``offsets`` (K, 2, PH, PW) or
None, ``out`` and ``grad`` (K, C, PH, PW), any strides. ``group(i,j) = (i GH / PH) GW + j GW / PW``, integer divisions.
A launch serves the RoIs of one level of a pyramid, that of ``features``.

A RoI that is not valid (see ``bins.load_roi``) reads nothing: its output is NaN, and it has no part in any gradient.
"""

import triton
import triton.language as tl

from .addresses import along, cell_offset, channel_mask, image_offset, offsets_of, plane_offset, pooled_offset
from .bins import SIZES, bin_of_program, load_bin, load_offset, load_roi, make_axes, make_bin


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
    features_g,
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
    inside = None if WHOLE else channel_mask(c, channels, ALIGNED)
    image, x1, y1, x2, y2, valid, here = load_roi(rois, levels, k, level, images, POSITION)
    edges = (x1, y1, x2, y2)
    for j in range(first, tl.where(here, first + COLUMNS, first)):
        y, x, finite = make_axes(edges, offsets, k, i, j, height, width, scale_bits, PH, PW, BINS, POSITION)
        plane = (
            features
            + image_offset(image, features_n, ALIGNED)
            + plane_offset(c, i, j, features_c, features_g, PH, PW, GH, GW, ALIGNED, WIDE)
        )
        total = tl.zeros((BLOCK_C,), SUM)
        short = POINTS < 0
        if POINTS > 0:
            y_span, x_span = _span(y, RULE, POINTS), _span(x, RULE, POINTS)
            short = valid & finite & (y_span[0] >= 0) & (x_span[0] >= 0)
            close = tl.maximum(y_span[1] - y_span[0], x_span[1] - x_span[0]) <= POINTS
            if short & close:
                for a in tl.static_range(POINTS + 1):
                    iy, wy = _shared_cell(a, y_span, y, RULE, POINTS)
                    row = plane + along(iy, features_h, ALIGNED, WIDE)
                    for b in tl.static_range(POINTS + 1):
                        ix, wx = _shared_cell(b, x_span, x, RULE, POINTS)
                        value = tl.load(row + along(ix, features_w, ALIGNED, WIDE), mask=inside)
                        total += (wy * wx).to(SUM) * value.to(SUM)
            if short & (not close):
                for a in tl.range(0, 2 * POINTS, loop_unroll_factor=4 if POINTS == 2 else 1):
                    _, iy, wy, _, _, _ = RULE(a, *y, POINTS)
                    row = plane + along(iy, features_h, ALIGNED, WIDE)
                    for b in tl.static_range(2 * POINTS):
                        _, ix, wx, _, _, _ = RULE(b, *x, POINTS)
                        value = tl.load(row + along(ix, features_w, ALIGNED, WIDE), mask=inside)
                        total += (wy * wx).to(SUM) * value.to(SUM)
        if not short:
            x_taps = RULE(0, *x, RATIO)[0]
            for a in range(tl.where(valid & finite, RULE(0, *y, RATIO)[0], 0)):
                _, iy, wy, _, _, _ = RULE(a, *y, RATIO)
                row = plane + along(iy, features_h, ALIGNED, WIDE)
                for b in range(x_taps):
                    _, ix, wx, _, _, _ = RULE(b, *x, RATIO)
                    mask = channel_mask(c, tl.where((iy >= 0) & (ix >= 0), channels, 0), ALIGNED)
                    value = tl.load(row + along(ix, features_w, ALIGNED, WIDE), mask=mask, other=0)
                    total += (wy * wx).to(SUM) * value.to(SUM)
            total = tl.where(valid & finite, total, float("nan"))
        at = out + pooled_offset(k, i, j, out_k, out_h, out_w, ALIGNED) + offsets_of(c, out_c, WIDE)
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
    features_g,
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
    k, i, j = bin_of_program(PH, PW)
    image, y, x, valid, here = load_bin(
        rois, levels, offsets, k, i, j, images, height, width, scale_bits, level, PH, PW, BINS, POSITION
    )
    y_taps = tl.where(valid & here, RULE(0, *y, RATIO)[0], 0)
    # a count that the compiler cannot know: unrolled, six sums and their derivatives need too many registers
    x_taps = tl.where(valid & here, RULE(0, *x, RATIO)[0], 0)
    zero = tl.zeros((BLOCK_C,), SUM)
    y_lower, y_upper, y_size, x_lower, x_upper, x_size = zero, zero, zero, zero, zero, zero
    for first in range(0, channels, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        at = grad + pooled_offset(k, i, j, grad_k, grad_h, grad_w, ALIGNED) + offsets_of(c, grad_c, WIDE)
        value = tl.load(at, mask=channel_mask(c, channels, ALIGNED), other=0).to(SUM)
        plane = (
            features
            + image_offset(image, features_n, ALIGNED)
            + plane_offset(c, i, j, features_c, features_g, PH, PW, GH, GW, ALIGNED, WIDE)
        )
        for a in range(y_taps):
            _, iy, wy, dy_lower, dy_upper, dy_size = RULE(a, *y, RATIO)
            row, row_lower, row_upper, row_size = zero, zero, zero, zero
            for b in range(x_taps):
                _, ix, wx, dx_lower, dx_upper, dx_size = RULE(b, *x, RATIO)
                cell = cell_offset(iy, ix, features_h, features_w, ALIGNED, WIDE)
                mask = channel_mask(c, tl.where((iy >= 0) & (ix >= 0), channels, 0), ALIGNED)
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
