"""Serial numba kernels over a range of work; ``cpu`` splits the work and lays out the tensors.

"Vector" kernels serve bins that read all channels: features (N, H * W, C), inner loops over channels. "Plane" kernels
serve position-sensitive bins: features (N, C, H, W), one plane at a time, which then stays in the first-level cache.

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


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    try:
        return numba.njit(nogil=True, cache=True, fastmath=_FAST)(function)
    except RuntimeError:  # no folder to cache in can be written
        return numba.njit(nogil=True, fastmath=_FAST)(function)


@_compiled
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


@_compiled
def expand(compacted, slot, out):
    """Give every tap the value of the place it went to in :func:`compact`."""
    for row in range(slot.shape[0]):
        for t in range(slot.shape[1]):
            place = slot[row, t]
            out[row, t] = compacted[row, place] if place >= 0 else 0


@_compiled
def _bin_taps(y, iy, wy, ny, x, ix, wx, nx, width, cells, weights):
    """All taps of one bin as positions in the image plane; returns their number."""
    n = 0
    for a in range(ny[y]):
        first = iy[y, a] * width
        for b in range(nx[x]):
            cells[n] = first + ix[x, b]
            weights[n] = wy[y, a] * wx[x, b]
            n += 1
    return n


@_compiled
def _transpose(source, target):
    """target[j, i] = source[i, j], in tiles that fit the first-level cache."""
    rows, columns = source.shape
    for i0 in range(0, rows, 16):
        for j0 in range(0, columns, 16):
            for i in range(i0, min(i0 + 16, rows)):
                for j in range(j0, min(j0 + 16, columns)):
                    target[j, i] = source[i, j]


@_compiled
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


@_compiled
def vector_sum(features, batch, taps_y, taps_x, joint, bins, width, first, last, channels_last, out, tile):
    """The separable sum for RoIs first .. last - 1; out is (K, PH * PW, C), or (K, C, PH * PW) by way of ``tile``."""
    iy, wy, ny = taps_y
    ix, wx, nx = taps_x
    rows, columns = bins
    cells = np.empty(iy.shape[1] * ix.shape[1], np.int64)
    weights = np.empty(iy.shape[1] * ix.shape[1], wy.dtype)
    for k in range(first, last):
        source = features[batch[k]]
        target = out[k] if channels_last else tile
        for i in range(rows):
            for j in range(columns):
                y = (k * rows + i) * columns + j if joint else k * rows + i
                x = (k * rows + i) * columns + j if joint else k * columns + j
                n = _bin_taps(y, iy, wy, ny, x, ix, wx, nx, width, cells, weights)
                _add_scaled_rows(source, cells, weights, n, target[i * columns + j])
        if not channels_last:
            _transpose(tile, out[k])


@_compiled
def _load_grad(grad, k, channels_last, c0, tile):
    """tile[bin, c] = gradient of channel c0 + c."""
    bins, channels = tile.shape
    if channels_last:
        for p in range(bins):
            row = grad[k, p]
            for c in range(channels):
                tile[p, c] = row[c0 + c]
    else:
        for c in range(channels):
            row = grad[k, c0 + c]
            for p in range(bins):
                tile[p, c] = row[p]


@_compiled
def _store_plane(plane, image, c0, channels_last, out):
    """Write an accumulated block of channels, (H * W, block), to out (N, H * W, C) or (N, C, H * W)."""
    cells, channels = plane.shape
    if channels_last:
        for p in range(cells):
            row = out[image, p]
            for c in range(channels):
                row[c0 + c] = plane[p, c]
    else:
        for p0 in range(0, cells, 16):
            for c in range(channels):
                row = out[image, c0 + c]
                for p in range(p0, min(p0 + 16, cells)):
                    row[p] = plane[p, c]


@_compiled
def vector_transpose(
    grad, rois, image, taps_y, taps_x, joint, bins, width, c0, channels, grad_last, out_last, cells_in_plane, out
):
    """The transposed sum into channels c0 .. c0 + channels - 1 of one image, over its ``rois`` in their order."""
    iy, wy, ny = taps_y
    ix, wx, nx = taps_x
    rows, columns = bins
    cells = np.empty(iy.shape[1] * ix.shape[1], np.int64)
    weights = np.empty(iy.shape[1] * ix.shape[1], wy.dtype)
    tile = np.empty((rows * columns, channels), wy.dtype)
    plane = np.zeros((cells_in_plane, channels), wy.dtype)
    for k in rois:
        _load_grad(grad, k, grad_last, c0, tile)
        for i in range(rows):
            for j in range(columns):
                y = (k * rows + i) * columns + j if joint else k * rows + i
                x = (k * rows + i) * columns + j if joint else k * columns + j
                n = _bin_taps(y, iy, wy, ny, x, ix, wx, nx, width, cells, weights)
                g = tile[i * columns + j]
                for t in range(n):
                    target, w = plane[cells[t]], weights[t]
                    for c in range(channels):
                        target[c] += w * g[c]
    _store_plane(plane, image, c0, out_last, out)


@_compiled
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


@_compiled
def vector_max(features, batch, y_windows, x_windows, width, first, last, channels_last, out, argmax, tile, where_tile):
    """The window maximum for RoIs first .. last - 1; layouts as in :func:`vector_sum`."""
    rows, columns = y_windows.shape[1], x_windows.shape[1]
    channels = features.shape[2]
    for k in range(first, last):
        source = features[batch[k]]
        values = out[k] if channels_last else tile
        places = argmax[k] if channels_last else where_tile
        for i in range(rows):
            for j in range(columns):
                best, where = values[i * columns + j], places[i * columns + j]
                y0, y1 = y_windows[k, i, 0], y_windows[k, i, 1]
                x0, x1 = x_windows[k, j, 0], x_windows[k, j, 1]
                if y0 >= y1 or x0 >= x1:
                    for c in range(channels):
                        best[c] = 0
                        where[c] = -1
                    continue
                row = source[y0 * width + x0]
                start = np.int32(y0 * width + x0)
                for c in range(channels):
                    best[c] = row[c]
                    where[c] = start
                for y in range(y0, y1):
                    for x in range(x0, x1):
                        cell = np.int32(y * width + x)
                        row = source[cell]
                        for c in range(channels):
                            # the first NaN wins over every number
                            wins = (row[c] > best[c]) | ((row[c] != row[c]) & (best[c] == best[c]))
                            where[c] = cell if wins else where[c]
                            best[c] = row[c] if wins else best[c]
        if not channels_last:
            _transpose(tile, out[k])
            _transpose(where_tile, argmax[k])


@_compiled
def vector_scatter(grad, argmax, rois, image, c0, channels, bins, grad_last, out_last, cells_in_plane, out):
    """The gradient of the window maximum for channels c0 .. c0 + channels - 1 of one image."""
    tile = np.empty((bins, channels), out.dtype)
    where = np.empty((bins, channels), np.int32)
    plane = np.zeros((cells_in_plane, channels), out.dtype)
    for k in rois:
        _load_grad(grad, k, grad_last, c0, tile)
        _load_grad(argmax, k, grad_last, c0, where)
        for p in range(bins):
            for c in range(channels):
                cell = where[p, c]
                if cell >= 0:
                    plane[cell, c] += tile[p, c]
    _store_plane(plane, image, c0, out_last, out)


@_compiled
def _block(position, bins, groups):
    """First and last + 1 bin, along one axis, of a group."""
    size = bins // groups
    return position * size, position * size + size


@_compiled
def plane_sum(features, batch, taps_y, taps_x, joint, bins, groups, first, last, out):
    """The separable sum for output channels first .. last - 1; features (N, C, H, W), out (K, C', PH, PW)."""
    iy, wy, ny = taps_y
    ix, wx, nx = taps_x
    rows, columns = bins
    for c in range(first, last):
        for u in range(groups[0]):
            i0, i1 = _block(u, rows, groups[0])
            for v in range(groups[1]):
                j0, j1 = _block(v, columns, groups[1])
                channel = (c * groups[0] + u) * groups[1] + v
                for k in range(batch.shape[0]):
                    plane = features[batch[k], channel]
                    for i in range(i0, i1):
                        for j in range(j0, j1):
                            y = (k * rows + i) * columns + j if joint else k * rows + i
                            x = (k * rows + i) * columns + j if joint else k * columns + j
                            total = wy.dtype.type(0)
                            for a in range(ny[y]):
                                row = plane[iy[y, a]]
                                along = wy.dtype.type(0)
                                for b in range(nx[x]):
                                    along += wx[x, b] * row[ix[x, b]]
                                total += wy[y, a] * along
                            out[k, c, i, j] = total


@_compiled
def plane_transpose(grad, batch, taps_y, taps_x, joint, bins, groups, first, last, out):
    """The transposed sum from output channels first .. last - 1; grad (K, C', PH, PW), out (N, C, H, W) of zeros."""
    iy, wy, ny = taps_y
    ix, wx, nx = taps_x
    rows, columns = bins
    for c in range(first, last):
        for u in range(groups[0]):
            i0, i1 = _block(u, rows, groups[0])
            for v in range(groups[1]):
                j0, j1 = _block(v, columns, groups[1])
                channel = (c * groups[0] + u) * groups[1] + v
                for k in range(batch.shape[0]):
                    plane = out[batch[k], channel]
                    for i in range(i0, i1):
                        for j in range(j0, j1):
                            y = (k * rows + i) * columns + j if joint else k * rows + i
                            x = (k * rows + i) * columns + j if joint else k * columns + j
                            g = grad[k, c, i, j]
                            for a in range(ny[y]):
                                row = plane[iy[y, a]]
                                w = g * wy[y, a]
                                for b in range(nx[x]):
                                    row[ix[x, b]] += w * wx[x, b]


@_compiled
def plane_weight_grads(grad, features, batch, taps_y, taps_x, joint, bins, groups, first, last, grad_wy, grad_wx):
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
