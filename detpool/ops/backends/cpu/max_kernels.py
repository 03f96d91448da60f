"""The maximum and its gradients; conventions as in ``sum_kernels``.

The place of a maximum of cells is a cell; of points, their number as :data:`~..reference.POINT_BITS` says.
"""

import numpy as np

from ..reference import POINT_BITS
from .compiling import compiled, kernel
from .layout_kernels import bin_of, block_of, copy, load_bins, place_of, transpose


@compiled
def _first_maximum(source, step, shift, cells, n, best, where):
    """best[c] = the maximum of source[cell step + shift, c] over n cells, where[c] = the first cell that holds it.

    Four cells at a time, so n is a multiple of four: with one, the compiler turns each selection into a masked store,
    which is many times slower.
    """
    for q in range(0, n, 4):
        p0, p1, p2, p3 = cells[q], cells[q + 1], cells[q + 2], cells[q + 3]
        f0, f1 = source[p0 * step + shift], source[p1 * step + shift]
        f2, f3 = source[p2 * step + shift], source[p3 * step + shift]
        if q == 0:
            for c in range(best.shape[0]):
                best[c] = f0[c]
                where[c] = p0
        for c in range(best.shape[0]):
            b, w = best[c], where[c]
            # r wins if it is larger, or if it is the first NaN
            r = f0[c]
            wins = (r > b) | ((r != r) & (b == b))
            b, w = r if wins else b, p0 if wins else w
            r = f1[c]
            wins = (r > b) | ((r != r) & (b == b))
            b, w = r if wins else b, p1 if wins else w
            r = f2[c]
            wins = (r > b) | ((r != r) & (b == b))
            b, w = r if wins else b, p2 if wins else w
            r = f3[c]
            wins = (r > b) | ((r != r) & (b == b))
            best[c], where[c] = r if wins else b, p3 if wins else w


@compiled
def _larger(a, b):
    """The larger of two numbers, the first of equal ones; NaN if one is."""
    return a if (a >= b) | (a != a) else b


@compiled
def _maximum(source, step, shift, cells, n, best):
    """As :func:`_first_maximum`, without places."""
    for q in range(0, n, 4):
        f0, f1 = source[cells[q] * step + shift], source[cells[q + 1] * step + shift]
        f2, f3 = source[cells[q + 2] * step + shift], source[cells[q + 3] * step + shift]
        if q == 0:
            for c in range(best.shape[0]):
                best[c] = _larger(_larger(f0[c], f1[c]), _larger(f2[c], f3[c]))
        else:
            for c in range(best.shape[0]):
                best[c] = _larger(best[c], _larger(_larger(f0[c], f1[c]), _larger(f2[c], f3[c])))


@kernel
def max_of_cells(features, rois, numbers, span, group, g, windows_y, windows_x, channels_last, out, argmax):
    """The maximum over cells, and its places where ``argmax`` has room for them."""
    with_places = argmax.size > 0
    shared = g.group_rows * g.group_columns == 1
    i0, i1, j0, j1 = block_of(group, g)
    tiled = shared and not channels_last
    tile = np.empty((g.rows * g.columns if tiled else 0, features.shape[2]), out.dtype)
    # vectors of 32 bits are what the loop over channels can do, so places go by way of a tile always
    where_tile = np.empty((g.rows * g.columns if tiled else 1, features.shape[2]), np.int32)
    cells = np.empty(0, np.int32)
    for n in range(span[0], span[1]):
        k = numbers[n]
        source = features[int(rois[k, 0]) if group < 0 else 0]
        for i in range(i0, i1):
            for j in range(j0, j1):
                p = i * g.columns + j
                best, where = bin_of(out, tile, k, p, shared, channels_last), where_tile[p if tiled else 0]
                y0, y1 = windows_y[n * g.rows + i, 0], windows_y[n * g.rows + i, 1]
                x0, x1 = windows_x[n * g.columns + j, 0], windows_x[n * g.columns + j, 1]
                if y0 >= y1 or x0 >= x1:
                    for c in range(best.shape[0]):
                        best[c] = 0
                        where[c] = -1
                else:
                    if (y1 - y0) * (x1 - x0) + 3 > cells.shape[0]:
                        cells = np.empty(2 * (y1 - y0) * (x1 - x0) + 3, np.int32)
                    count = 0
                    for y in range(y0, y1):
                        for x in range(x0, x1):
                            cells[count] = y * g.width + x
                            count += 1
                    while count % 4:  # a repeated cell changes nothing
                        cells[count] = cells[count - 1]
                        count += 1
                    step, shift = place_of(i, j, group, g)
                    if with_places:
                        _first_maximum(source, step, shift, cells, count, best, where)
                    else:
                        _maximum(source, step, shift, cells, count, best)
                if with_places and not tiled:
                    copy(where, argmax[k, p] if channels_last else argmax[p, k])
        if tiled:
            transpose(tile, out[k])
            if with_places:
                transpose(where_tile, argmax[k])


@compiled
def _add_at(where, values, base, step, shift, cells, out):
    """out[where[c] step + shift, base + c] += values[c], where ``where[c]`` is one of the cells."""
    for c in range(values.shape[0]):
        # as unsigned numbers one comparison finds both kinds of cells that are outside, -1 among them
        cell = np.uint32(np.int32(where[c]))
        if cell < cells:
            out[cell * step + shift, base + np.uint64(c)] += values[c]


@kernel
def add_to_cells(grad, numbers, span, group, g, part, argmax, channels_last, out):
    """The gradient of :func:`max_of_cells` for one image."""
    i0, i1, j0, j1 = block_of(group, g)
    shared = g.group_rows * g.group_columns == 1
    tiled = shared and not channels_last
    last = part.first + part.channels
    grad_tile = np.empty((g.rows * g.columns if tiled else 1, part.channels), out.dtype)
    where_tile = np.empty((g.rows * g.columns if tiled else 1, part.channels), argmax.dtype)
    base, step, shift = np.uint64(part.target), np.uint64(part.step), np.uint64(part.shift)
    plane_cells = out.shape[0] // step
    for n in range(span[0], span[1]):
        k = numbers[n]
        if tiled:
            load_bins(grad, k, True, False, part.first, grad_tile)
            load_bins(argmax, k, True, False, part.first, where_tile)
        for i in range(i0, i1):
            for j in range(j0, j1):
                p = i * g.columns + j
                if tiled:
                    values, where = grad_tile[p], where_tile[p]
                elif channels_last:
                    values, where = grad[k, p, part.first : last], argmax[k, p, part.first : last]
                else:
                    values, where = grad_tile[0], where_tile[0]
                    copy(grad[p, k, part.first : last], values)
                    copy(argmax[p, k, part.first : last], where)
                if shared:  # by constants, or the multiplication takes a tenth of the time
                    _add_at(where, values, base, np.uint64(1), np.uint64(0), plane_cells, out)
                else:
                    _add_at(where, values, base, step, shift, plane_cells, out)


@compiled
def _bilinear_rows(source, step, shift, y, v, x, u, g):
    """The four vectors ``cell step + shift`` around a point, and their weights."""
    r = source.dtype.type
    # At the border both rows are the last, with half the weight: 0 times an infinite one would not be 0.
    y1, v = (y + 1, r(v)) if y + 1 < g.height else (y, r(0.5))
    x1, u = (x + 1, r(u)) if x + 1 < g.width else (x, r(0.5))
    low, high, left, right = y * g.width * step + shift, y1 * g.width * step + shift, x * step, x1 * step
    rows = source[low + left], source[low + right], source[high + left], source[high + right]
    return rows, ((r(1) - v) * (r(1) - u), (r(1) - v) * u, v * (r(1) - u), v * u)


@kernel
def max_of_points(features, rois, numbers, span, group, g, points_y, points_x, channels_last, out, argmax):
    """The maximum over bilinear points, and its places where ``argmax`` has room for them."""
    with_places = argmax.size > 0
    shared = g.group_rows * g.group_columns == 1
    i0, i1, j0, j1 = block_of(group, g)
    tiled = shared and not channels_last
    bins = g.rows * g.columns if tiled else 0
    tile = np.empty((bins, features.shape[2]), out.dtype)
    where_tile = np.empty((bins if with_places else 1, features.shape[2]), np.int32)
    for n in range(span[0], span[1]):
        k = numbers[n]
        source = features[int(rois[k, 0]) if group < 0 else 0]
        for i in range(i0, i1):
            for j in range(j0, j1):
                best = bin_of(out, tile, k, i * g.columns + j, shared, channels_last)
                if with_places:
                    where = bin_of(argmax, where_tile, k, i * g.columns + j, shared, channels_last)
                else:
                    where = where_tile[0]  # which tells the first point from others
                p, q = n * g.rows + i, n * g.columns + j
                step, shift = place_of(i, j, group, g)
                for c in range(best.shape[0]):
                    best[c] = 0
                    where[c] = -1
                for a in range(points_y.number[p]):
                    for b in range(points_x.number[q]):
                        number = (a << POINT_BITS) + b
                        y, x = points_y.cell[p, a], points_x.cell[q, b]
                        if y < 0 or x < 0:
                            for c in range(best.shape[0]):
                                m, w = best[c], where[c]
                                wins = (w < 0) | (m < 0)
                                best[c], where[c] = 0 if wins else m, number if wins else w
                            continue
                        v, u = points_y.share[p, a], points_x.share[q, b]
                        rows, weights = _bilinear_rows(source, step, shift, y, v, x, u, g)
                        f0, f1, f2, f3 = rows
                        w0, w1, w2, w3 = weights
                        for c in range(best.shape[0]):
                            value = (w0 * f0[c] + w1 * f1[c]) + (w2 * f2[c] + w3 * f3[c])
                            m, w = best[c], where[c]
                            wins = (w < 0) | (value > m) | ((value != value) & (m == m))
                            best[c], where[c] = value if wins else m, number if wins else w
        if tiled:
            transpose(tile, out[k])
            if with_places:
                transpose(where_tile, argmax[k])


@compiled
def _decode(number):
    """The numbers along y and x of a point. If it read the tables too, gradients would take ten times as long."""
    return number >> POINT_BITS, number & ((1 << POINT_BITS) - 1)


@kernel
def add_to_points(grad, numbers, span, group, g, part, points_y, points_x, argmax, channels_last, out):
    """The gradient of :func:`max_of_points` for one image."""
    i0, i1, j0, j1 = block_of(group, g)
    shared = g.group_rows * g.group_columns == 1
    values = np.empty((g.rows * g.columns, part.channels), out.dtype)
    where = np.empty((g.rows * g.columns, part.channels), argmax.dtype)
    for n in range(span[0], span[1]):
        k = numbers[n]
        load_bins(grad, k, shared, channels_last, part.first, values)
        load_bins(argmax, k, shared, channels_last, part.first, where)
        for i in range(i0, i1):
            for j in range(j0, j1):
                row, column = n * g.rows + i, n * g.columns + j
                p = i * g.columns + j
                for c in range(part.channels):
                    if where[p, c] < 0:
                        continue
                    a, b = _decode(where[p, c])
                    y, x = points_y.cell[row, a], points_x.cell[column, b]
                    if y < 0 or x < 0:
                        continue
                    v, u = points_y.share[row, a], points_x.share[column, b]
                    cell, right, below = (y * g.width + x) * part.step + part.shift, part.step, g.width * part.step
                    channel = part.target + c
                    out[cell, channel] += (1 - v) * (1 - u) * values[p, c]
                    if x + 1 < g.width:
                        out[cell + right, channel] += (1 - v) * u * values[p, c]
                    if y + 1 < g.height:
                        out[cell + below, channel] += v * (1 - u) * values[p, c]
                        if x + 1 < g.width:
                            out[cell + below + right, channel] += v * u * values[p, c]


@kernel
def add_point_roi_grads(
    grad, features, rois, numbers, span, g, points_y, points_x, argmax, channels_last, by_start, by_extent
):
    """Gradients of the start and extent (K, 2) of boxes in cells, y before x, through the points of maxima.

    ``features`` are the vectors of all groups.
    """
    shared = g.group_rows * g.group_columns == 1
    values = np.empty((g.rows * g.columns, features.shape[2]), by_start.dtype)
    where = np.empty((g.rows * g.columns, features.shape[2]), argmax.dtype)
    for n in range(span[0], span[1]):
        k = numbers[n]
        load_bins(grad, k, shared, channels_last, 0, values)
        load_bins(argmax, k, shared, channels_last, 0, where)
        source = features[int(rois[k, 0])]
        for i in range(g.rows):
            for j in range(g.columns):
                p, row, column = i * g.columns + j, n * g.rows + i, n * g.columns + j
                step, shift = place_of(i, j, -1, g)
                for c in range(features.shape[2]):
                    if where[p, c] < 0:
                        continue
                    a, b = _decode(where[p, c])
                    y, x = points_y.cell[row, a], points_x.cell[column, b]
                    if y < 0 or x < 0:
                        continue
                    v, u = points_y.share[row, a], points_x.share[column, b]
                    place, right, below = (y * g.width + x) * step + shift, x + 1 < g.width, y + 1 < g.height
                    f00 = source[place, c]
                    f01 = source[place + step, c] if right else f00 * 0
                    f10 = source[place + g.width * step, c] if below else f00 * 0
                    f11 = source[place + (g.width + 1) * step, c] if below and right else f00 * 0
                    by_y = values[p, c] * ((1 - u) * (f10 - f00) + u * (f11 - f01))
                    by_x = values[p, c] * ((1 - v) * (f01 - f00) + v * (f11 - f10))
                    if points_y.by_extent[row, a] == points_y.by_extent[row, a]:
                        by_start[k, 0] += by_y
                        by_extent[k, 0] += by_y * points_y.by_extent[row, a]
                    if points_x.by_extent[column, b] == points_x.by_extent[column, b]:
                        by_start[k, 1] += by_x
                        by_extent[k, 1] += by_x * points_x.by_extent[column, b]
