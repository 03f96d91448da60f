"""From RoIs to the taps of their bins, along one image axis: what ``bins`` and ``sampling`` say, compiled.

Numbers are rounded after every operation to the dtype of the RoIs, so that bins lie exactly where the reference has
them. Rows of a table: bin p of RoI k is row ``k P + p``, or where bins depend on both axes (``joint``) bin (i, j) is
row ``(k PH + i) PW + j`` of the tables of both. Taps are merged: a bin has each cell once.
"""

import math

import numpy as np

from .compiling import exact

BIN_RULES = ("continuous", "aligned", "at_least_one", "rounded", "rfcn", "rfcn_centered", "ps_rounded")
CONTINUOUS, ALIGNED, AT_LEAST_ONE, ROUNDED, RFCN, RFCN_CENTERED, PS_ROUNDED = range(7)
CELLS, POINTS, COUNTED_POINTS, INTEGRAL = range(4)


@exact
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
def box_edges(rule, low, high, scale, limit, like):
    """Origin, start and extent of a box in cells; whether low, high and extent are free to move (not clipped)."""
    r = like.dtype.type
    scale, limit = r(scale), r(limit)
    origin = start = r(0)
    free = True
    if rule in (ROUNDED, PS_ROUNDED):
        origin = _round(_clip(r(low * scale), limit), like)
        extent = r(_round(_clip(r(high * scale), limit), like) - origin)
        if rule == ROUNDED:
            extent = r(extent + r(1))
        extent = max(extent, r(1))
        return origin, start, extent, False, False, False
    if rule in (RFCN, RFCN_CENTERED):
        start = _clip(r(_round(low, like) * scale), limit)
        extent = max(r(_clip(r(r(_round(high, like) + r(1)) * scale), limit) - start), r(0.1))
        if rule == RFCN_CENTERED:
            start = r(start - r(0.5))
        return origin, start, extent, False, False, False
    start, end = r(low * scale), r(high * scale)
    if rule == ALIGNED:
        start, end = r(start - r(0.5)), r(end - r(0.5))
    low_free, high_free = abs(start) <= limit, abs(end) <= limit
    start, end = _clip(start, limit), _clip(end, limit)
    extent = r(end - start)
    if rule == AT_LEAST_ONE:
        free = extent >= 1
        extent = max(extent, r(1))
    return origin, start, extent, low_free, high_free, free


@exact
def most_cells(rois, numbers, axis, rule, scale, limit, bins):
    """The size of the largest bin, rounded up."""
    most = 0.0
    for n in range(numbers.shape[0]):
        k = numbers[n]
        extent = box_edges(rule, rois[k, 2 - axis], rois[k, 4 - axis], scale, limit, rois)[2]
        most = max(most, extent / bins)
    return math.ceil(min(most, 1e9))


@exact
def _bin(p, bins, rule, origin, start, extent, shift, length, like):
    """Lower and upper edge, without the origin, and size of a bin."""
    r = like.dtype.type
    step = r(extent / r(bins))
    lower = r(r(start + r(r(p) * step)) + shift)
    upper = r(r(start + r(r(p + 1) * step)) + shift)
    if rule == PS_ROUNDED:
        upper = min(upper, r(r(length - 1) - origin))
    return lower, upper, step


@exact
def _window(lower, upper, origin, length, like):
    r = like.dtype.type
    first = int(min(max(r(origin + np.floor(lower)), 0), length))
    last = int(min(max(r(origin + np.ceil(upper)), 0), length))
    return first, max(first, last)


@exact
def make_windows(rois, numbers, axis, rule, scale, limit, length, bins, out):
    """``out`` (K, P, 2) int32: the first and last + 1 cell of each bin."""
    zero = rois.dtype.type(0)
    for n in range(numbers.shape[0]):
        k = numbers[n]
        origin, start, extent = box_edges(rule, rois[k, 2 - axis], rois[k, 4 - axis], scale, limit, rois)[:3]
        for p in range(bins):
            lower, upper, _ = _bin(p, bins, rule, origin, start, extent, zero, length, rois)
            out[k, p, 0], out[k, p, 1] = _window(lower, upper, origin, length, rois)


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


@exact
def _add(row, n, cell, w, by_start, by_extent, index, weight, start, extent, derivatives):
    """Add a tap to a row of ``n``, merged with the same cell among the last two; returns the new number."""
    place = n
    for back in range(max(n - 2, 0), n):
        if index[row, back] == cell:
            place = back
    if place == n:
        index[row, n] = cell
        weight[row, n] = 0
        if derivatives:
            start[row, n] = 0
            extent[row, n] = 0
        n += 1
    weight[row, place] += w
    if derivatives:
        start[row, place] += by_start
        extent[row, place] += by_extent
    return n


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
def make_taps(
    rois,
    numbers,
    axis,
    rule,
    sampling,
    ratio,
    scale,
    limit,
    length,
    bins,
    offsets,
    index,
    weight,
    count,
    by_start,
    by_extent,
):
    """The taps of the bins of RoIs ``numbers`` along an axis, 0 for y and 1 for x.

    ``index`` int32, ``weight`` (rows, T) and ``count`` (rows,) are written; so are the derivatives of the weights with
    respect to start and extent of the box in cells, unless these two tables are empty. ``offsets`` (K, 2, PH, PW) move
    bins, or are empty.
    """
    r = rois.dtype.type
    derivatives = by_start.shape[0] > 0
    joint = offsets.shape[0] > 0
    across = offsets.shape[3 - axis] if joint else 1
    for n in range(numbers.shape[0]):
        k = numbers[n]
        origin, start, extent = box_edges(rule, rois[k, 2 - axis], rois[k, 4 - axis], scale, limit, rois)[:3]
        for p in range(bins):
            for q in range(across):
                row, offset = k * bins + p, r(0)
                if joint:
                    i, j = (p, q) if axis == 0 else (q, p)
                    row = (k * offsets.shape[2] + i) * offsets.shape[3] + j
                    offset = r(offsets[k, 1 - axis, i, j])
                shift = r(offset * extent)
                lower, upper, step = _bin(p, bins, rule, origin, start, extent, shift, length, rois)
                m = 0
                if sampling == CELLS:
                    first, last = _window(lower, upper, origin, length, rois)
                    for cell in range(first, last):
                        m = _add(
                            row, m, cell, 1 / (last - first), 0, 0, index, weight, by_start, by_extent, derivatives
                        )
                elif sampling == INTEGRAL:
                    low, high = r(origin + lower), r(origin + upper)
                    first = int(min(max(np.floor(low), 0), length))
                    last = int(min(max(np.ceil(high), -1), length - 1)) + 1
                    if step > 0:
                        for cell in range(first, last):
                            w, a, b = _hat_mean(low - cell, step)
                            e = a * (p / bins + offset) + b / bins
                            m = _add(row, m, cell, w, a, e, index, weight, by_start, by_extent, derivatives)
                else:
                    base = r(origin + lower)
                    centred = sampling == POINTS
                    points, first_number, taken = _points_of_bin(base, step, ratio, length, rois)
                    divisor = points
                    if not centred:
                        divisor = r(0)
                        for t in range(taken):
                            y = _position(base, step, r(t), points, False, rois)
                            if y >= -0.5 and y <= length - 0.5:
                                divisor = r(divisor + r(1))
                        divisor = max(divisor, r(1))
                    for t in range(taken):
                        number = r(first_number + r(t))
                        y = _position(base, step, number, points, centred, rois)
                        reads = (y >= -1 and y <= length) if centred else (y >= -0.5 and y <= length - 0.5)
                        if reads:
                            cell, share, moves = _bilinear(y, length, rois)
                            slope = (1.0 if moves else 0.0) / divisor
                            along = slope * ((p + (number + (0.5 if centred else 0.0)) / points) / bins + offset)
                            m = _add(
                                row,
                                m,
                                cell,
                                r(r(1) - share) / divisor,
                                -slope,
                                -along,
                                index,
                                weight,
                                by_start,
                                by_extent,
                                derivatives,
                            )
                            if cell + 1 < length:
                                m = _add(
                                    row,
                                    m,
                                    cell + 1,
                                    share / divisor,
                                    slope,
                                    along,
                                    index,
                                    weight,
                                    by_start,
                                    by_extent,
                                    derivatives,
                                )
                count[row] = m


@exact
def make_points(rois, numbers, axis, rule, ratio, scale, limit, length, bins, cell, share, by_extent, count):
    """The single points of bins along an axis, tables of rows ``k P + p``.

    ``cell`` (rows, G) int32 is the lower of the two cells around a point, -1 for one that reads nothing; ``share`` the
    weight of the upper; ``by_extent`` the derivative of the position with respect to the extent of the box, NaN where
    the position does not move; ``count`` (rows,) how many points there are.
    """
    r = rois.dtype.type
    for n in range(numbers.shape[0]):
        k = numbers[n]
        origin, start, extent = box_edges(rule, rois[k, 2 - axis], rois[k, 4 - axis], scale, limit, rois)[:3]
        for p in range(bins):
            row = k * bins + p
            lower, _, step = _bin(p, bins, rule, origin, start, extent, r(0), length, rois)
            base = r(origin + lower)
            points, first_number, taken = _points_of_bin(base, step, ratio, length, rois)
            count[row] = taken
            for t in range(taken):
                number = r(first_number + r(t))
                y = _position(base, step, number, points, True, rois)
                low, upper_share, moves = _bilinear(y, length, rois)
                cell[row, t] = low if y >= -1 and y <= length else -1
                share[row, t] = upper_share
                by_extent[row, t] = (p + (number + 0.5) / points) / bins if moves else np.nan


@exact
def merge_taps(index, weight, out_index, out_weight, count):
    """The taps (rows, T) of a rule of a user's own, without absent ones and with repeated neighbours merged."""
    for row in range(index.shape[0]):
        n = 0
        for t in range(index.shape[1]):
            if index[row, t] >= 0:
                w = weight[row, t]
                n = _add(row, n, index[row, t], w, 0, 0, out_index, out_weight, out_weight, out_weight, False)
        count[row] = n


@exact
def finish_roi_grads(rois, numbers, axis, rule, scale, limit, by_start, by_extent, out):
    """Gradients of the low and high edge of boxes, in pixels, from those of start and extent (K, 2), in cells."""
    for n in range(numbers.shape[0]):
        k = numbers[n]
        _, _, _, low, high, free = box_edges(rule, rois[k, 2 - axis], rois[k, 4 - axis], scale, limit, rois)
        along = by_extent[k, axis] if free else 0.0
        out[k, 2 - axis] = scale * (by_start[k, axis] - along) if low else 0.0
        out[k, 4 - axis] = scale * along if high else 0.0


@exact
def finish_offset_grads(rois, numbers, axis, rule, scale, limit, out):
    """Turn gradients of shifts in cells, ``out`` (K, 2, PH, PW), into those of offsets."""
    for n in range(numbers.shape[0]):
        k = numbers[n]
        extent = box_edges(rule, rois[k, 2 - axis], rois[k, 4 - axis], scale, limit, rois)[2]
        for i in range(out.shape[2]):
            for j in range(out.shape[3]):
                out[k, 1 - axis, i, j] *= extent
