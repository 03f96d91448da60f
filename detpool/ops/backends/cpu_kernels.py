"""Serial numba kernels over a range of work; ``cpu`` splits the work and lays out the tensors.

"Vector" kernels serve features (N, H * W, C), inner loops over channels. "Group" kernels serve position-sensitive bins:
one group of channels at a time, of features (N, C', GH * GW, H * W) unless they say otherwise.

Taps come compacted, a row for each bin of an axis: cells ``index[row, :count[row]]`` and their weights. Row of bin (i,
j) of RoI
k: ``k * PH + i`` along y and ``k * PW + j`` along x, or ``(k * PH + i) * PW + j`` for both where taps are joint.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

# Reductions over channels may be reordered, always in the same way, so that they vectorise; NaN and infinity are kept.
_FAST = {"contract", "reassoc", "nsz"}


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` as a numba kernel that releases the GIL, cached on disk where a folder can be written."""
    # Division by 0 as in NumPy: Python's error for it would keep loops from being vectorised.
    try:
        return numba.njit(nogil=True, cache=True, fastmath=_FAST, error_model="numpy")(function)
    except RuntimeError:  # no folder to cache in can be written
        return numba.njit(nogil=True, fastmath=_FAST, error_model="numpy")(function)


@compiled
def compact(index, weight, out_index, out_weight, count, slot):
    """Drop absent taps and merge repeated cells; ``slot[row, t]`` tells where tap t went, -1 for nowhere.

    Neighbouring sampling points repeat one of the last two cells, so no more than those are looked at.
    """
    for row in range(index.shape[0]):
        n = 0
        for t in range(index.shape[1]):
            cell = index[row, t]
            place = -1
            if cell >= 0:
                for back in range(max(n - 2, 0), n):
                    if out_index[row, back] == cell:
                        place = back
                if place < 0:
                    place = n
                    out_index[row, n] = cell
                    out_weight[row, n] = weight[row, t]
                    n += 1
                else:
                    out_weight[row, place] += weight[row, t]
            slot[row, t] = place
        count[row] = n


@compiled
def expand(compacted, slot, out):
    """Give every tap the value of the place it went to in :func:`compact`."""
    for row in range(slot.shape[0]):
        for t in range(slot.shape[1]):
            place = slot[row, t]
            out[row, t] = compacted[row, place] if place >= 0 else 0


@compiled
def _bin_taps(y, iy, wy, ny, x, ix, wx, nx, width, groups, group, cells, weights):
    """All taps of one bin as positions among the vectors of an image, of ``groups`` a cell; returns their number."""
    n = 0
    for a in range(ny[y]):
        first = iy[y, a] * width
        for b in range(nx[x]):
            cells[n] = (first + ix[x, b]) * groups + group
            weights[n] = wy[y, a] * wx[x, b]
            n += 1
    return n


@compiled
def _copy(source, target):
    """target[c] = source[c]. Not ``target[:] = source``, whose error message takes numba two seconds to compile."""
    for c in range(target.shape[0]):
        target[c] = source[c]


@compiled
def _transpose(source, target):
    """target[j, i] = source[i, j], in tiles that fit the first-level cache."""
    rows, columns = source.shape
    for i0 in range(0, rows, 16):
        for j0 in range(0, columns, 16):
            for i in range(i0, min(i0 + 16, rows)):
                for j in range(j0, min(j0 + 16, columns)):
                    target[j, i] = source[i, j]


@compiled
def vectors_to_planes(source, image, c0, channels, target):
    """Channels c0 .. of one image from (N, H * W, C) to (N, C, H * W)."""
    _transpose(source[image, :, c0 : c0 + channels], target[image, c0 : c0 + channels])


@compiled
def planes_to_vectors(source, image, first, last, target):
    """Cells first .. last - 1 of one image from (N, C, H * W) to (N, H * W, C)."""
    channels = source.shape[1]
    for p0 in range(first, last, 16):
        for c in range(channels):
            plane = source[image, c, p0 : min(p0 + 16, last)]
            for p in range(plane.shape[0]):
                target[image, p0 + p, c] = plane[p]


@compiled
def _add_scaled_rows(source, cells, weights, n, out):
    """out[c] = sum over taps of weight * source[cell, c], four taps at a time to save passes over ``out``."""
    channels = out.shape[0]
    quads = n // 4
    for q in range(quads):
        f0, f1 = source[cells[4 * q]], source[cells[4 * q + 1]]
        f2, f3 = source[cells[4 * q + 2]], source[cells[4 * q + 3]]
        w0, w1, w2, w3 = weights[4 * q], weights[4 * q + 1], weights[4 * q + 2], weights[4 * q + 3]
        if q == 0:
            for c in range(channels):
                out[c] = w0 * f0[c] + w1 * f1[c] + w2 * f2[c] + w3 * f3[c]
        else:
            for c in range(channels):
                out[c] += w0 * f0[c] + w1 * f1[c] + w2 * f2[c] + w3 * f3[c]
    if quads == 0:
        for c in range(channels):
            out[c] = 0
    for t in range(4 * quads, n):
        f0, w0 = source[cells[t]], weights[t]
        for c in range(channels):
            out[c] += w0 * f0[c]


@compiled
def _add_to_rows(target, c0, cells, weights, n, values):
    """target[cell, c0 + c] += weight * values[c] for every tap."""
    channels = values.shape[0]
    for t in range(n):
        row, w = target[cells[t], c0 : c0 + channels], weights[t]
        for c in range(channels):
            row[c] += w * values[c]


@compiled
def vector_sum(features, batch, taps_y, taps_x, joint, bins, groups, width, first, last, channels_last, out, tile):
    """The separable sum for RoIs first .. last - 1; out is (K, PH * PW, C), or (K, C, PH * PW) by way of ``tile``.

    With groups, features are (N, H * W * GH * GW, C).
    """
    iy, wy, ny = taps_y
    ix, wx, nx = taps_x
    rows, columns = bins
    count = groups[0] * groups[1]
    cells = np.empty(iy.shape[1] * ix.shape[1], np.int64)
    weights = np.empty(iy.shape[1] * ix.shape[1], wy.dtype)
    for k in range(first, last):
        source = features[batch[k]]
        target = out[k] if channels_last else tile
        for i in range(rows):
            for j in range(columns):
                y = (k * rows + i) * columns + j if joint else k * rows + i
                x = (k * rows + i) * columns + j if joint else k * columns + j
                group = i * groups[0] // rows * groups[1] + j * groups[1] // columns
                n = _bin_taps(y, iy, wy, ny, x, ix, wx, nx, width, count, group, cells, weights)
                _add_scaled_rows(source, cells, weights, n, target[i * columns + j])
        if not channels_last:
            _transpose(tile, out[k])


@compiled
def _load_grad(grad, k, channels_last, c0, tile):
    """tile[bin, c] = gradient of channel c0 + c."""
    bins, channels = tile.shape
    if channels_last:
        for p in range(bins):
            # a slice rather than row[c0 + c], whose sum might be negative for all that the compiler knows
            row, target = grad[k, p, c0 : c0 + channels], tile[p]
            for c in range(channels):
                target[c] = row[c]
    else:
        for c in range(channels):
            row = grad[k, c0 + c]
            for p in range(bins):
                tile[p, c] = row[p]


@compiled
def vector_transpose(
    grad, rois, image, taps_y, taps_x, joint, bins, width, c0, channels, grad_last, out_last, cells_in_plane, out
):
    """The transposed sum into channels c0 .. c0 + channels - 1 of one image, over its ``rois`` in their order.

    out is (N, H * W, C), of zeros, or (N, C, H * W), of anything.
    """
    iy, wy, ny = taps_y
    ix, wx, nx = taps_x
    rows, columns = bins
    cells = np.empty(iy.shape[1] * ix.shape[1], np.int64)
    weights = np.empty(iy.shape[1] * ix.shape[1], wy.dtype)
    tile = np.empty((rows * columns, channels), wy.dtype)
    base = c0 if out_last else 0
    plane = out[image] if out_last else np.zeros((cells_in_plane, channels), wy.dtype)
    for k in rois:
        _load_grad(grad, k, grad_last, c0, tile)
        for i in range(rows):
            for j in range(columns):
                y = (k * rows + i) * columns + j if joint else k * rows + i
                x = (k * rows + i) * columns + j if joint else k * columns + j
                n = _bin_taps(y, iy, wy, ny, x, ix, wx, nx, width, 1, 0, cells, weights)
                _add_to_rows(plane, base, cells, weights, n, tile[i * columns + j])
    if not out_last:
        _transpose(plane, out[image, c0 : c0 + channels])


@compiled
def vector_weight_grads(
    grad, features, batch, taps_y, taps_x, joint, bins, width, first, last, grad_last, grad_wy, grad_wx
):
    """Gradients of the compacted weights of RoIs first .. last - 1."""
    iy, wy, ny = taps_y
    ix, wx, nx = taps_x
    rows, columns = bins
    channels = features.shape[2]
    tile = np.empty((rows * columns, channels), wy.dtype)
    for k in range(first, last):
        source = features[batch[k]]
        _load_grad(grad, k, grad_last, 0, tile)
        for i in range(rows):
            for j in range(columns):
                y = (k * rows + i) * columns + j if joint else k * rows + i
                x = (k * rows + i) * columns + j if joint else k * columns + j
                g = tile[i * columns + j]
                for a in range(ny[y]):
                    cell = iy[y, a] * width
                    along_y = wy.dtype.type(0)
                    for b in range(nx[x]):
                        f = source[cell + ix[x, b]]
                        dot = wy.dtype.type(0)
                        for c in range(channels):
                            dot += g[c] * f[c]
                        along_y += wx[x, b] * dot
                        grad_wx[x, b] += wy[y, a] * dot
                    grad_wy[y, a] += along_y


@compiled
def _first_maximum(source, cells, n, best, where):
    """best[c] = the maximum of source[cell, c] over n cells, a multiple of four; where[c] = the first cell that holds
    it.

    Four cells at a time: with one, the compiler turns each selection into a masked store, which is many times slower.
    """
    for q in range(0, n, 4):
        p0, p1, p2, p3 = cells[q], cells[q + 1], cells[q + 2], cells[q + 3]
        f0, f1, f2, f3 = source[p0], source[p1], source[p2], source[p3]
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
def vector_max(features, batch, y_windows, x_windows, width, first, last, channels_last, out, argmax, tile, where_tile):
    """The window maximum for RoIs first .. last - 1; layouts as in :func:`vector_sum`."""
    rows, columns = y_windows.shape[1], x_windows.shape[1]
    cells = np.empty(0, np.int32)
    for k in range(first, last):
        source = features[batch[k]]
        values = out[k] if channels_last else tile
        for i in range(rows):
            for j in range(columns):
                p = i * columns + j
                best, where = values[p], where_tile[0 if channels_last else p]
                y0, y1 = y_windows[k, i, 0], y_windows[k, i, 1]
                x0, x1 = x_windows[k, j, 0], x_windows[k, j, 1]
                if y0 >= y1 or x0 >= x1:
                    for c in range(best.shape[0]):
                        best[c] = 0
                        where[c] = -1
                    if channels_last:
                        _copy(where, argmax[k, p])
                    continue
                if (y1 - y0) * (x1 - x0) + 3 > cells.shape[0]:
                    cells = np.empty(2 * (y1 - y0) * (x1 - x0) + 3, np.int32)
                n = 0
                for y in range(y0, y1):
                    for x in range(x0, x1):
                        cells[n] = y * width + x
                        n += 1
                while n % 4:  # a repeated cell changes nothing
                    cells[n] = cells[n - 1]
                    n += 1
                _first_maximum(source, cells, n, best, where)
                if channels_last:
                    _copy(where, argmax[k, p])
        if not channels_last:
            _transpose(tile, out[k])
            _transpose(where_tile, argmax[k])


@compiled
def vector_scatter(grad, argmax, rois, image, c0, channels, bins, grad_last, out_last, cells_in_plane, out):
    """The gradient of the window maximum for channels c0 .. c0 + channels - 1 of one image; layouts as above."""
    grad_tile = np.empty((0 if grad_last else bins, channels), out.dtype)
    where_tile = np.empty((0 if grad_last else bins, channels), argmax.dtype)
    base = np.uint64(c0 if out_last else 0)
    plane = out[image] if out_last else np.zeros((cells_in_plane, channels), out.dtype)
    for k in rois:
        if not grad_last:
            _load_grad(grad, k, grad_last, c0, grad_tile)
            _load_grad(argmax, k, grad_last, c0, where_tile)
        for p in range(bins):
            values = grad[k, p, c0 : c0 + channels] if grad_last else grad_tile[p]
            where = argmax[k, p, c0 : c0 + channels] if grad_last else where_tile[p]
            for c in range(channels):
                # as unsigned numbers one comparison finds both kinds of cells that are outside, -1 among them
                cell = np.uint32(np.int32(where[c]))
                if cell < cells_in_plane:
                    plane[cell, base + np.uint64(c)] += values[c]
    if not out_last:
        _transpose(plane, out[image, c0 : c0 + channels])


@compiled
def group_sum(features, rois, image, group, taps_y, taps_x, joint, bins, groups, width, out):
    """The separable sum for the bins of one group and the RoIs of one image.

    features (N, C', GH * GW, H * W): the planes of a group become rows of channels once, in a tile that stays in cache.
    out (PH * PW, K, C'): no two groups write to one cache line.
    """
    iy, wy, ny = taps_y
    ix, wx, nx = taps_x
    rows, columns = bins
    channels, plane_cells = features.shape[1], features.shape[3]
    cells = np.empty(iy.shape[1] * ix.shape[1], np.int64)
    weights = np.empty(iy.shape[1] * ix.shape[1], wy.dtype)
    tile = np.empty((plane_cells, channels), wy.dtype)
    for p0 in range(0, plane_cells, 64):
        for c in range(channels):
            plane = features[image, c, group]
            for p in range(p0, min(p0 + 64, plane_cells)):
                tile[p, c] = plane[p]
    height, breadth = rows // groups[0], columns // groups[1]
    i0, j0 = group // groups[1] * height, group % groups[1] * breadth
    for k in rois:
        for i in range(i0, i0 + height):
            for j in range(j0, j0 + breadth):
                y = (k * rows + i) * columns + j if joint else k * rows + i
                x = (k * rows + i) * columns + j if joint else k * columns + j
                n = _bin_taps(y, iy, wy, ny, x, ix, wx, nx, width, 1, 0, cells, weights)
                _add_scaled_rows(tile, cells, weights, n, out[i * columns + j, k])


@compiled
def group_transpose(grad, rois, image, group, taps_y, taps_x, joint, bins, groups, width, grad_last, out):
    """The transposed sum into the channels of one group of one image; grad as in :func:`_load_grad`."""
    iy, wy, ny = taps_y
    ix, wx, nx = taps_x
    rows, columns = bins
    channels, plane_cells = out.shape[1], out.shape[3]
    cells = np.empty(iy.shape[1] * ix.shape[1], np.int64)
    weights = np.empty(iy.shape[1] * ix.shape[1], wy.dtype)
    tile = np.zeros((plane_cells, channels), wy.dtype)
    values = np.empty(channels, wy.dtype)
    height, breadth = rows // groups[0], columns // groups[1]
    i0, j0 = group // groups[1] * height, group % groups[1] * breadth
    for k in rois:
        for i in range(i0, i0 + height):
            for j in range(j0, j0 + breadth):
                y = (k * rows + i) * columns + j if joint else k * rows + i
                x = (k * rows + i) * columns + j if joint else k * columns + j
                n = _bin_taps(y, iy, wy, ny, x, ix, wx, nx, width, 1, 0, cells, weights)
                p = i * columns + j
                for c in range(channels):
                    values[c] = grad[k, p, c] if grad_last else grad[k, c, p]
                _add_to_rows(tile, 0, cells, weights, n, values)
    for p0 in range(0, plane_cells, 64):
        for c in range(channels):
            plane = out[image, c, group]
            for p in range(p0, min(p0 + 64, plane_cells)):
                plane[p] = tile[p, c]


@compiled
def group_vector_transpose(grad, rois, image, group, taps_y, taps_x, joint, bins, groups, width, grad_last, out):
    """As :func:`group_transpose`, with out (N, H * W * GH * GW, C'), of zeros."""
    iy, wy, ny = taps_y
    ix, wx, nx = taps_x
    rows, columns = bins
    cells = np.empty(iy.shape[1] * ix.shape[1], np.int64)
    weights = np.empty(iy.shape[1] * ix.shape[1], wy.dtype)
    values = np.empty(out.shape[2], wy.dtype)
    height, breadth = rows // groups[0], columns // groups[1]
    i0, j0 = group // groups[1] * height, group % groups[1] * breadth
    for k in rois:
        for i in range(i0, i0 + height):
            for j in range(j0, j0 + breadth):
                y = (k * rows + i) * columns + j if joint else k * rows + i
                x = (k * rows + i) * columns + j if joint else k * columns + j
                count = groups[0] * groups[1]
                n = _bin_taps(y, iy, wy, ny, x, ix, wx, nx, width, count, group, cells, weights)
                p = i * columns + j
                for c in range(values.shape[0]):
                    values[c] = grad[k, p, c] if grad_last else grad[k, c, p]
                _add_to_rows(out[image], 0, cells, weights, n, values)


@compiled
def transpose_each(source, first, last, rows, columns, target):
    """Rows first .. last - 1, each of them as a matrix (rows, columns) that is transposed; also in place."""
    matrix = np.empty(rows * columns, source.dtype)
    for p in range(first, last):
        _copy(source[p], matrix)
        for j in range(columns):
            for i in range(rows):
                target[p, j * rows + i] = matrix[i * columns + j]


@compiled
def group_weight_grads(grad, features, batch, taps_y, taps_x, joint, bins, groups, first, last, grad_wy, grad_wx):
    """Gradients of the compacted weights of RoIs first .. last - 1."""
    iy, wy, ny = taps_y
    ix, wx, nx = taps_x
    rows, columns = bins
    for k in range(first, last):
        for c in range(grad.shape[1]):
            for i in range(rows):
                u = i * groups[0] // rows
                for j in range(columns):
                    v = j * groups[1] // columns
                    plane = features[batch[k], (c * groups[0] + u) * groups[1] + v]
                    y = (k * rows + i) * columns + j if joint else k * rows + i
                    x = (k * rows + i) * columns + j if joint else k * columns + j
                    g = grad[k, c, i, j]
                    for a in range(ny[y]):
                        row = plane[iy[y, a]]
                        along = wy.dtype.type(0)
                        for b in range(nx[x]):
                            f = g * row[ix[x, b]]
                            along += wx[x, b] * f
                            grad_wx[x, b] += wy[y, a] * f
                        grad_wy[y, a] += along
