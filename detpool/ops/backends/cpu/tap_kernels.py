"""From bins to what they read: what ``detpool.ops.sampling`` says, compiled, along one image axis, 0 for y, 1 for x.

Taps are merged: a bin has each cell once. Numbers are rounded after every operation as in ``bin_kernels``.
"""

from typing import NamedTuple

import numpy as np

from . import SAMPLING_RULES
from .bin_kernels import bins_along, box_edges, most_cells, place_bin, window
from .compiling import exact, exact_kernel, inlined

CELLS, POINTS, COUNTED_POINTS, INTEGRAL = range(len(SAMPLING_RULES))


class Taps(NamedTuple):
    """A table of the taps of the bins of some RoIs along an axis.

    Bin p of the n-th of them is row ``n P + p``, or where bins depend on both axes (*joint*) bin (i, j) is row
    ``(n PH + i) PW + j`` of the tables of both axes.
    """

    cell: np.ndarray
    """(rows, T) int32"""
    weight: np.ndarray
    """(rows, T)"""
    number: np.ndarray
    """(rows,) int32: how many taps there are"""
    by_start: np.ndarray
    """(rows, T): derivatives of the weights with respect to the start of the box in cells; no rows unless asked for"""
    by_extent: np.ndarray
    """the same with respect to the extent of the box"""


class Points(NamedTuple):
    """A table of the single points of bins along an axis; rows as those of :class:`Taps`."""

    cell: np.ndarray
    """(rows, G) int32: the lower of the two cells around a point, -1 for one that reads nothing"""
    share: np.ndarray
    """(rows, G): the weight of the upper cell"""
    number: np.ndarray
    """(rows,) int32: how many points there are"""
    by_extent: np.ndarray
    """(rows, G): derivative of the position with respect to the extent of the box, NaN where it does not move"""


# Below loops over axes, since numba compiles a function anew for each constant that it is called with.


@exact_kernel
def most_taps(rois, numbers, g):
    """Taps that a bin of RoIs ``numbers`` may have along y and x, where that depends on the RoIs."""
    most = np.empty(2, np.int64)
    for axis in range(2):
        most[axis] = min(most_cells(rois, numbers, axis, g) + 3, bins_along(g, axis)[1])
    return most[0], most[1]


@exact_kernel
def most_points(rois, numbers, g):
    """Points that a bin of RoIs ``numbers`` may have along y and x."""
    most = np.full(2, max(g.ratio, 1))
    if g.ratio <= 0:
        for axis in range(2):
            limit = 2 * bins_along(g, axis)[1] + 6
            most[axis] = max(min(most_cells(rois, numbers, axis, g), limit), 1)
    return most[0], most[1]


@inlined
def _add(taps, row, cell, weight, by_start, by_extent):
    """Add a tap to a row, merged with the same cell among the last two; numbers are float64, for one compilation."""
    n = taps.number[row]
    place = n
    for back in range(max(n - 2, 0), n):
        if taps.cell[row, back] == cell:
            place = back
    slopes = taps.by_start.shape[0] > 0
    if place == n:
        taps.cell[row, n] = cell
        taps.weight[row, n] = 0
        if slopes:
            taps.by_start[row, n] = 0
            taps.by_extent[row, n] = 0
        taps.number[row] = n + 1
    taps.weight[row, place] += weight
    if slopes:
        taps.by_start[row, place] += by_start
        taps.by_extent[row, place] += by_extent


@exact
def _hat_mean(start, size):
    """``sampling._HatMean`` with its derivatives by start and size."""
    left = min(max((-1 - start) / size, 0.0), 1.0)
    top = min(max(-start / size, 0.0), 1.0)
    right = min(max((1 - start) / size, 0.0), 1.0)
    rising = (top - left) * (1 + start + size * ((left + top) / 2))
    falling = (right - top) * (1 - start - size * ((top + right) / 2))
    by_size = ((top * top - left * left) - (right * right - top * top)) / 2
    return rising + falling, (top - left) - (right - top), by_size


@exact
def _points_of_bin(base, step, ratio, length, like):
    """Points per bin, of which number the first is that may read anything, and how many from there."""
    r = like.dtype.type
    if ratio > 0:
        return r(ratio), r(0), ratio
    count = np.ceil(step)
    limit = 2 * length + 6
    first = r(0)
    if count > limit:
        spacing = r(step / max(count, r(1)))
        skipped = r(r(r(-1) - base) / (spacing if spacing > 0 else r(1)))
        first = max(r(np.floor(r(skipped - r(2)))), r(0))
    taken = int(min(max(r(count - first), r(0)), r(limit)))
    return max(count, r(1)), first, taken


@exact
def _position(base, step, number, count, centred, like):
    r = like.dtype.type
    if centred:
        return r(base + r(r(r(number + r(0.5)) * step) / count))
    return r(base + r(number * r(step / count)))


@exact
def _bilinear(y, length, like):
    """The lower of the two cells around a position clipped to the map, the share of the upper, and whether y moves."""
    r = like.dtype.type
    moves = y >= 0 and y <= length - 1
    y = min(max(y, r(0)), r(length - 1))
    low = np.floor(y)
    return int(low), r(y - low), moves


@inlined
def _add_points(taps, row, p, offset, base, step, bins, length, g, like):
    r = like.dtype.type
    centred = g.sampling == POINTS
    points, first_number, taken = _points_of_bin(base, step, g.ratio, length, like)
    divisor = points
    if not centred:
        divisor = r(0)
        for t in range(taken):
            y = _position(base, step, r(t), points, False, like)
            if y >= -0.5 and y <= length - 0.5:
                divisor = r(divisor + r(1))
        divisor = max(divisor, r(1))
    for t in range(taken):
        number = r(first_number + r(t))
        y = _position(base, step, number, points, centred, like)
        reads = (y >= -1 and y <= length) if centred else (y >= -0.5 and y <= length - 0.5)
        if reads:
            cell, share, moves = _bilinear(y, length, like)
            slope = (1.0 if moves else 0.0) / divisor
            along = slope * ((p + (number + (0.5 if centred else 0.0)) / points) / bins + offset)
            _add(taps, row, cell, np.float64(r(r(1) - share) / divisor), -slope, -along)
            if cell + 1 < length:
                _add(taps, row, cell + 1, np.float64(share / divisor), slope, along)


@exact
def _row_and_offset(n, k, axis, p, q, g, offsets):
    """Of bin p along an axis, q along the other, of the n-th RoI, k: its row, and the offset that moves it."""
    if offsets.shape[0] == 0:
        return n * bins_along(g, axis)[0] + p, 0.0
    i, j = (p, q) if axis == 0 else (q, p)
    return (n * g.rows + i) * g.columns + j, np.float64(offsets[k, 1 - axis, i, j])


@exact_kernel
def tabulate_taps(rois, numbers, span, g, offsets, taps_y, taps_x):
    """Write the taps of RoIs ``numbers[span[0] : span[1]]``.

    ``offsets`` (K, 2, PH, PW), x before y, move bins in units of the size of the RoI, or are empty.
    """
    r = rois.dtype.type
    for axis in range(2):
        taps = taps_y if axis == 0 else taps_x
        bins, length = bins_along(g, axis)
        across = g.rows * g.columns // bins if offsets.shape[0] > 0 else 1
        for n in range(span[0], span[1]):
            k = numbers[n]
            origin, start, extent = box_edges(rois, k, axis, g, rois)[:3]
            for p in range(bins):
                for q in range(across):
                    row, offset = _row_and_offset(n, k, axis, p, q, g, offsets)
                    taps.number[row] = 0
                    lower, upper, step = place_bin(p, axis, g, origin, start, extent, r(r(offset) * extent), rois)
                    if g.sampling == CELLS:
                        first, last = window(lower, upper, origin, length, rois)
                        for cell in range(first, last):
                            _add(taps, row, cell, 1 / (last - first), 0.0, 0.0)
                    else:
                        _add_points(taps, row, p, offset, r(origin + lower), step, bins, length, g, rois)


@exact_kernel
def tabulate_integrals(rois, numbers, span, g, offsets, taps_y, taps_x):
    """As :func:`tabulate_taps` for :data:`INTEGRAL`, by itself since it takes as long to compile as all other rules.

    In float64, or the weights of tiny bins far from the first cell would be those of rounded edges.
    """
    like = np.empty(0, np.float64)
    for axis in range(2):
        taps = taps_y if axis == 0 else taps_x
        bins, length = bins_along(g, axis)
        across = g.rows * g.columns // bins if offsets.shape[0] > 0 else 1
        for n in range(span[0], span[1]):
            k = numbers[n]
            origin, start, extent = box_edges(rois, k, axis, g, like)[:3]
            for p in range(bins):
                for q in range(across):
                    row, offset = _row_and_offset(n, k, axis, p, q, g, offsets)
                    taps.number[row] = 0
                    lower, upper, step = place_bin(p, axis, g, origin, start, extent, offset * extent, like)
                    if step <= 0:
                        continue
                    low = origin + lower
                    first = int(min(max(np.floor(low), 0.0), length))
                    last = int(min(max(np.ceil(origin + upper), -1.0), length - 1)) + 1
                    for cell in range(first, last):
                        w, by_low, by_size = _hat_mean(low - cell, step)
                        _add(taps, row, cell, w, by_low, by_low * (p / bins + offset) + by_size / bins)


@exact_kernel
def merge_taps(index, weight, taps):
    """The taps (rows, T) of a rule of a user's own, without absent ones and with repeated neighbours merged."""
    for row in range(index.shape[0]):
        taps.number[row] = 0
        for t in range(index.shape[1]):
            if index[row, t] >= 0:
                _add(taps, row, index[row, t], np.float64(weight[row, t]), 0.0, 0.0)


@exact_kernel
def tabulate_points(rois, numbers, span, g, points_y, points_x):
    """Write the points of RoIs ``numbers[span[0] : span[1]]``."""
    r = rois.dtype.type
    for axis in range(2):
        points = points_y if axis == 0 else points_x
        bins, length = bins_along(g, axis)
        for n in range(span[0], span[1]):
            origin, start, extent = box_edges(rois, numbers[n], axis, g, rois)[:3]
            for p in range(bins):
                row = n * bins + p
                lower, _, step = place_bin(p, axis, g, origin, start, extent, r(0), rois)
                base = r(origin + lower)
                count, first_number, taken = _points_of_bin(base, step, g.ratio, length, rois)
                points.number[row] = taken
                for t in range(taken):
                    number = r(first_number + r(t))
                    y = _position(base, step, number, count, True, rois)
                    low, upper_share, moves = _bilinear(y, length, rois)
                    points.cell[row, t] = low if y >= -1 and y <= length else -1
                    points.share[row, t] = upper_share
                    points.by_extent[row, t] = (p + (number + 0.5) / count) / bins if moves else np.nan


@exact_kernel
def tabulate_windows(rois, numbers, span, g, windows_y, windows_x):
    """Write the first and last + 1 cell of the bins of those RoIs: (rows, 2) int32, rows as those of taps."""
    zero = rois.dtype.type(0)
    for axis in range(2):
        windows = windows_y if axis == 0 else windows_x
        bins, length = bins_along(g, axis)
        for n in range(span[0], span[1]):
            origin, start, extent = box_edges(rois, numbers[n], axis, g, rois)[:3]
            for p in range(bins):
                lower, upper, _ = place_bin(p, axis, g, origin, start, extent, zero, rois)
                windows[n * bins + p, 0], windows[n * bins + p, 1] = window(lower, upper, origin, length, rois)
