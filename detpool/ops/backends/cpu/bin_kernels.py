"""From RoIs to bins along one image axis, 0 for y and 1 for x: what ``detpool.ops.bins`` says, compiled.

Numbers are rounded after every operation to the dtype of the array ``like``, so that bins lie exactly where the
reference has them.
"""

import math
from typing import NamedTuple

import numpy as np
import torch

from ...bins import LARGEST
from .compiling import exact, exact_kernel

BIN_RULES = ("continuous", "aligned", "at_least_one", "rounded", "rfcn", "rfcn_centered", "ps_rounded")
CONTINUOUS, ALIGNED, AT_LEAST_ONE, ROUNDED, RFCN, RFCN_CENTERED, PS_ROUNDED = range(7)
_LARGEST_SINGLE, _LARGEST_DOUBLE = LARGEST[torch.float32], LARGEST[torch.float64]


class Geometry(NamedTuple):
    """How one map is pooled, in numbers that kernels take."""

    rule: int
    """place in :data:`BIN_RULES`; -1 for rotated boxes"""
    sampling: int
    """place in ``tap_kernels.SAMPLING_RULES``; -1 for a rule of a user's own"""
    ratio: int
    scale: float
    height: int
    width: int
    rows: int
    columns: int
    group_rows: int
    group_columns: int


@exact_kernel
def first_invalid(rois, images):
    """The first row that is not valid, -1 if all are: image index, finite numbers, ordered edges (sides if rotated)."""
    for k in range(rois.shape[0]):
        image = rois[k, 0]
        valid = image >= 0 and image < images and image == math.floor(image)
        for n in range(1, rois.shape[1]):
            valid = valid and math.isfinite(rois[k, n])
        if rois.shape[1] == 5:
            valid = valid and rois[k, 1] <= rois[k, 3] and rois[k, 2] <= rois[k, 4]
        else:
            valid = valid and rois[k, 3] >= 0 and rois[k, 4] >= 0
        if not valid:
            return k
    return -1


@exact
def bins_along(g, axis):
    """How many bins there are along an axis, and how many cells."""
    return (g.rows, g.height) if axis == 0 else (g.columns, g.width)


@exact
def _round(x, like):
    r = like.dtype.type
    whole = np.trunc(x)
    if abs(r(x - whole)) >= 0.5:
        whole = r(whole + (r(1) if x > 0 else r(-1)))
    return r(whole)


@exact
def _clip(x, limit):
    return min(max(x, -limit), limit)


@exact
def box_edges(rois, k, axis, g, like):
    """Origin, start and extent of a box in cells; whether low, high and extent are free to move (not clipped)."""
    r = like.dtype.type
    low, high, scale = r(rois[k, 2 - axis]), r(rois[k, 4 - axis]), r(g.scale)
    limit = r(_LARGEST_SINGLE if like.itemsize == 4 else _LARGEST_DOUBLE)
    origin = start = r(0)
    free = True
    if g.rule in (ROUNDED, PS_ROUNDED):
        origin = _round(_clip(r(low * scale), limit), like)
        extent = r(_round(_clip(r(high * scale), limit), like) - origin)
        if g.rule == ROUNDED:
            extent = r(extent + r(1))
        extent = max(extent, r(1))
        return origin, start, extent, False, False, False
    if g.rule in (RFCN, RFCN_CENTERED):
        start = _clip(r(_round(low, like) * scale), limit)
        extent = max(r(_clip(r(r(_round(high, like) + r(1)) * scale), limit) - start), r(0.1))
        if g.rule == RFCN_CENTERED:
            start = r(start - r(0.5))
        return origin, start, extent, False, False, False
    start, end = r(low * scale), r(high * scale)
    if g.rule == ALIGNED:
        start, end = r(start - r(0.5)), r(end - r(0.5))
    low_free, high_free = abs(start) <= limit, abs(end) <= limit
    start, end = _clip(start, limit), _clip(end, limit)
    extent = r(end - start)
    if g.rule == AT_LEAST_ONE:
        free = extent >= 1
        extent = max(extent, r(1))
    return origin, start, extent, low_free, high_free, free


@exact
def place_bin(p, axis, g, origin, start, extent, shift, like):
    """Lower and upper edge, without the origin, and size of bin p."""
    r = like.dtype.type
    bins, length = bins_along(g, axis)
    step = r(extent / r(bins))
    lower = r(r(start + r(r(p) * step)) + shift)
    upper = r(r(start + r(r(p + 1) * step)) + shift)
    if g.rule == PS_ROUNDED:
        upper = min(upper, r(r(length - 1) - origin))
    return lower, upper, step


@exact
def most_cells(rois, numbers, axis, g):
    """The size of the largest bin of RoIs ``numbers``, rounded up."""
    most = 0.0
    for k in numbers:
        most = max(most, box_edges(rois, k, axis, g, rois)[2] / bins_along(g, axis)[0])
    return math.ceil(min(most, 1e9))


@exact
def window(lower, upper, origin, length, like):
    """The first and last + 1 cell of a bin."""
    r = like.dtype.type
    first = int(min(max(r(origin + np.floor(lower)), 0), length))
    last = int(min(max(r(origin + np.ceil(upper)), 0), length))
    return first, max(first, last)


@exact_kernel
def span_rois(rois, numbers, g, spans):
    """``spans`` (N, H, 2): of each row of an image the first and last + 1 column that the bins of RoIs may read.

    All points and cells of an upright box lie at most one cell outside it.
    """
    spans[:, :, 0] = g.width
    spans[:, :, 1] = 0
    reach = np.empty((2, 2), np.int64)
    for k in numbers:
        for axis in range(2):
            length = bins_along(g, axis)[1]
            origin, start, extent = box_edges(rois, k, axis, g, rois)[:3]
            reach[axis, 0] = int(min(max(np.floor(origin + start) - 1, 0.0), length - 1.0))
            reach[axis, 1] = int(min(max(np.ceil(origin + start + extent) + 2, 1.0), length + 0.0))
        for row in range(reach[0, 0], reach[0, 1]):
            span = spans[int(rois[k, 0]), row]
            span[0], span[1] = min(span[0], reach[1, 0]), max(span[1], reach[1, 1])


@exact_kernel
def finish_roi_grads(rois, numbers, g, by_start, by_extent, by_shift, out):
    """Gradients of RoIs in pixels, ``out`` (K, 5), from those of start and extent (K, 2), y before x, in cells.

    Turns those of shifts in cells (K, 2, PH, PW), if there are any, into gradients of offsets.
    """
    for k in numbers:
        for axis in range(2):
            _, _, extent, low, high, free = box_edges(rois, k, axis, g, rois)
            along = by_extent[k, axis] if free else 0.0
            out[k, 2 - axis] = g.scale * (by_start[k, axis] - along) if low else 0.0
            out[k, 4 - axis] = g.scale * along if high else 0.0
            if by_shift.shape[0] > 0:
                for i in range(g.rows):
                    for j in range(g.columns):
                        by_shift[k, 1 - axis, i, j] *= extent
