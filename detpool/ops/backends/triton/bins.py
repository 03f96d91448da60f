"""Bin rules as Triton functions: from a RoI to the bins of both axes, inside the kernels, as ``detpool.ops.bins`` says.

All are scalars. Positions are POSITION, float32 or float64; the scale comes as the bits of a float64, since Triton
passes floats in float32.
"""

import triton
import triton.language as tl

SIZES = [
    *("images", "count", "channels", "height", "width", "scale_bits", "level", "stride"),
    *(f"{name}_{axis}" for name in ("features", "grad", "out", "argmax") for axis in "nkghw"),
]
"""Arguments of kernels whose values do not change the machine code: other sizes run what is compiled already."""


@triton.jit
def load_roi(rois, levels, k, level, images, POSITION: tl.constexpr):
    """Image and edges x1, y1, x2, y2 of RoI k, zeros if it is not valid; whether it is valid, and whether it is here.

    Valid: an image that exists, finite numbers, ``x1 <= x2`` and ``y1 <= y2``. Here: on this level.
    """
    at = rois + 5 * k
    image = tl.load(at)
    x1, y1 = tl.load(at + 1).to(POSITION), tl.load(at + 2).to(POSITION)
    x2, y2 = tl.load(at + 3).to(POSITION), tl.load(at + 4).to(POSITION)
    # a number minus itself is 0 unless the number is infinite or NaN
    finite = (x1 - x1) + (y1 - y1) + (x2 - x2) + (y2 - y2) == 0
    valid = finite & (image >= 0) & (image < images) & (image == tl.floor(image)) & (x1 <= x2) & (y1 <= y2)
    here = valid | True
    if levels is not None:
        here = tl.load(levels + k) == level
    return (
        tl.where(valid, image, 0).to(tl.int64),
        tl.where(valid, x1, 0),
        tl.where(valid, y1, 0),
        tl.where(valid, x2, 0),
        tl.where(valid, y2, 0),
        valid,
        here,
    )


@triton.jit
def load_offset(offsets, k, axis, i, j, PH: tl.constexpr, PW: tl.constexpr, POSITION: tl.constexpr):
    """The offset of bin (i, j) along an axis, 0 for x and 1 for y; 0 without offsets."""
    offset = tl.cast(0, POSITION)
    if offsets is not None:
        offset = tl.load(offsets + ((k * 2 + axis) * PH + i) * PW + j).to(POSITION)
    return offset


@triton.jit
def make_bin(low, high, offset, p, scale_bits, length, COUNT: tl.constexpr, BINS: tl.constexpr, POSITION: tl.constexpr):
    """Bin p of an axis: origin, lower, upper and size; the extent of the box, and whether that moves with the edges."""
    scale = scale_bits.to(tl.float64, bitcast=True).to(POSITION)
    origin, start, extent, moves = _edges(low, high, scale, BINS)
    step = _divide(extent, tl.cast(COUNT, POSITION))
    lower = start + tl.cast(p, POSITION) * step
    upper = start + (tl.cast(p, POSITION) + 1) * step
    if BINS == "ps_rounded":
        upper = tl.minimum(upper, length - 1 - origin)
    shift = offset * extent
    return origin, lower + shift, upper + shift, step, extent, moves


@triton.jit
def bin_of_program(PH: tl.constexpr, PW: tl.constexpr):
    """RoI, row and column of the bin that this program works on."""
    number = tl.program_id(0)
    return (number // (PH * PW)).to(tl.int64), number // PW % PH, number % PW


@triton.jit
def load_bin(
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
    y, x, finite = make_axes(edges, offsets, k, i, j, height, width, scale_bits, PH, PW, BINS, POSITION)
    return image, y, x, valid & finite, here


@triton.jit
def make_axes(
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
def window(origin, lower, upper, length):
    """The first and last + 1 cell that a bin touches."""
    first = tl.minimum(tl.maximum(origin + tl.floor(lower), 0), length)
    last = tl.minimum(tl.maximum(origin + tl.ceil(upper), 0), length)
    return first.to(tl.int32), tl.maximum(first, last).to(tl.int32)


@triton.jit
def _edges(low, high, scale, BINS: tl.constexpr):
    """Origin, start and extent of a box in cells; whether the extent moves with the edges."""
    origin = low * 0
    moves = origin == 0
    if BINS == "rounded" or BINS == "ps_rounded":
        last: tl.constexpr = 1 if BINS == "rounded" else 0
        start = origin
        origin = _round(_bounded(low * scale))
        extent = tl.maximum(_round(_bounded(high * scale)) - origin + last, 1)
    elif BINS == "rfcn" or BINS == "rfcn_centered":
        centre: tl.constexpr = 0.5 if BINS == "rfcn_centered" else 0
        start = _bounded(_round(low) * scale)
        extent = tl.maximum(_bounded((_round(high) + 1) * scale) - start, tl.cast(0.1, low.dtype))
        start -= centre
    else:
        tl.static_assert(BINS == "aligned" or BINS == "continuous" or BINS == "at_least_one")
        shift: tl.constexpr = 0.5 if BINS == "aligned" else 0
        start = _bounded(low * scale - shift)
        extent = _bounded(high * scale - shift) - start
        if BINS == "at_least_one":
            moves = extent >= 1
            extent = tl.maximum(extent, 1)
    return origin, start, extent, moves


@triton.jit
def _bounded(x):
    most: tl.constexpr = 1e300 if x.dtype == tl.float64 else 1e30
    return tl.minimum(tl.maximum(x, -most), most)


@triton.jit
def _round(x):
    whole = tl.where(x < 0, tl.ceil(x), tl.floor(x))
    return whole + tl.where(tl.abs(x - whole) >= 0.5, tl.where(x < 0, -1, 1), 0)


@triton.jit
def _divide(x, y):
    """Division rounded to the nearest, which ``/`` is not in float32."""
    if x.dtype == tl.float64:
        quotient = x / y
    else:
        quotient = tl.div_rn(x, y)
    return quotient


@triton.jit(do_not_specialize=SIZES)
def assign_levels(boxes, stride, out, count, levels, shift, canonical_scale, BLOCK: tl.constexpr):
    """The level of each box (K, 4), rows ``stride`` apart, as ``detpool.ops.levels.assign_levels`` says.

    A program serves a block of boxes.
    """
    k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    at, mask = boxes + stride * k, k < count
    x1, y1 = tl.load(at, mask=mask, other=0), tl.load(at + 1, mask=mask, other=0)
    x2, y2 = tl.load(at + 2, mask=mask, other=0), tl.load(at + 3, mask=mask, other=0)
    area = (x2 - x1) * (y2 - y1)
    side = tl.sqrt(tl.maximum(area, 0))
    level = tl.floor(shift + tl.log2(tl.maximum(side / canonical_scale, 1e-30)) + 1e-6)
    level = tl.where(area == area, tl.minimum(tl.maximum(level, 0), levels - 1), 0)
    tl.store(out + k, level.to(tl.int64), mask=mask)
