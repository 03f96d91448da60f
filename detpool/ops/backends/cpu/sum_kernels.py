"""The weighted sum and its gradients, each serially over RoIs; ``primitives`` splits the work and lays out tensors.

Features are *vectors* (``layout_kernels``): inner loops go over the channels that a bin reads. ``numbers`` are the RoIs
of one map, image after image, tables of taps hold theirs in that order, and a kernel works on
``numbers[span[0] : span[1]]``, and on all bins or, if ``group`` is not -1, on those that read one group of channels of
one image, whose vectors alone ``features`` holds.

Pooled tensors are (K, PH PW, C) if ``channels_last``, else (K, C, PH PW); or (PH PW, K, C) where bins read different
groups: no two threads that each pool a group write to one cache line.
"""

from typing import NamedTuple

import numpy as np

from .compiling import compiled, inlined, kernel
from .layout_kernels import bin_of, block_of, copy, load_bins, place_of, transpose


class Part(NamedTuple):
    """What a task adds up of the gradient of a map: some channels of a group."""

    first: int
    """of the channels of pooled gradients that it reads"""
    target: int
    """the first that it writes of the vectors ``cell step + shift``"""
    channels: int
    step: int
    shift: int


@inlined
def _bin_taps(y, x, taps_y, taps_x, width, step, shift, cells, weights):
    """All taps of a bin, rows y and x of the tables, as positions among the vectors of an image; returns their number.

    The position of a cell is ``cell step + shift``.
    """
    n = 0
    for a in range(taps_y.number[y]):
        first = taps_y.cell[y, a] * width
        for b in range(taps_x.number[x]):
            cells[n] = (first + taps_x.cell[x, b]) * step + shift
            weights[n] = taps_y.weight[y, a] * taps_x.weight[x, b]
            n += 1
    return n


@compiled
def add_scaled_rows(source, cells, weights, n, out):
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
def add_to_rows(target, c0, cells, weights, n, values):
    """target[cell, c0 + c] += weight * values[c] for every tap."""
    channels = values.shape[0]
    for t in range(n):
        row, w = target[cells[t], c0 : c0 + channels], weights[t]
        for c in range(channels):
            row[c] += w * values[c]


@compiled
def _rows_of(n, i, j, g, joint):
    """The rows of the tables of taps that bin (i, j) of the n-th RoI in them has."""
    if joint:
        row = (n * g.rows + i) * g.columns + j
        return row, row
    return n * g.rows + i, n * g.columns + j


@kernel
def sum_taps(features, rois, numbers, span, group, g, joint, taps_y, taps_x, channels_last, out):
    """The weighted sum."""
    most = taps_y.cell.shape[1] * taps_x.cell.shape[1]
    cells, weights = np.empty(most, np.int64), np.empty(most, out.dtype)
    shared = g.group_rows * g.group_columns == 1
    i0, i1, j0, j1 = block_of(group, g)
    tiled = shared and not channels_last
    tile = np.empty((g.rows * g.columns if tiled else 0, features.shape[2]), out.dtype)
    for n in range(span[0], span[1]):
        k = numbers[n]
        source = features[int(rois[k, 0]) if group < 0 else 0]
        for i in range(i0, i1):
            for j in range(j0, j1):
                y, x = _rows_of(n, i, j, g, joint)
                step, shift = place_of(i, j, group, g)
                taps = _bin_taps(y, x, taps_y, taps_x, g.width, step, shift, cells, weights)
                target = bin_of(out, tile, k, i * g.columns + j, shared, channels_last)
                add_scaled_rows(source, cells, weights, taps, target)
        if tiled:
            transpose(tile, out[k])


@kernel
def add_grads(grad, numbers, span, group, g, part, joint, taps_y, taps_x, channels_last, out):
    """The transpose of :func:`sum_taps` for one image: adds the gradients of RoIs, in their order, to ``out``."""
    most = taps_y.cell.shape[1] * taps_x.cell.shape[1]
    cells, weights = np.empty(most, np.int64), np.empty(most, out.dtype)
    i0, i1, j0, j1 = block_of(group, g)
    shared = g.group_rows * g.group_columns == 1
    last = part.first + part.channels
    tile = np.empty((g.rows * g.columns if shared else 1, part.channels), out.dtype)
    for n in range(span[0], span[1]):
        k = numbers[n]
        if shared:
            load_bins(grad, k, True, channels_last, part.first, tile)
        for i in range(i0, i1):
            for j in range(j0, j1):
                p = i * g.columns + j
                values = tile[p if shared else 0]
                if not shared:
                    copy(grad[k, p, part.first : last] if channels_last else grad[p, k, part.first : last], values)
                y, x = _rows_of(n, i, j, g, joint)
                taps = _bin_taps(y, x, taps_y, taps_x, g.width, part.step, part.shift, cells, weights)
                add_to_rows(out, part.target, cells, weights, taps, values)


@kernel
def add_roi_grads(
    grad, features, rois, numbers, span, g, joint, taps_y, taps_x, channels_last, by_start, by_extent, by_shift
):
    """Gradients of the start and extent (K, 2) of boxes in cells, y before x; of the shifts (K, 2, PH, PW) if joint.

    ``features`` are the vectors of all groups.
    """
    zero = by_start.dtype.type(0)
    channels = features.shape[2]
    tile = np.empty((g.rows * g.columns, channels), by_start.dtype)
    for n in range(span[0], span[1]):
        k = numbers[n]
        load_bins(grad, k, g.group_rows * g.group_columns == 1, channels_last, 0, tile)
        source = features[int(rois[k, 0])]
        for i in range(g.rows):
            for j in range(g.columns):
                y, x = _rows_of(n, i, j, g, joint)
                step, shift = place_of(i, j, -1, g)
                values = tile[i * g.columns + j]
                y_start, x_start, y_extent, x_extent = zero, zero, zero, zero
                for a in range(taps_y.number[y]):
                    cell = taps_y.cell[y, a] * g.width
                    along, along_start, along_extent = zero, zero, zero
                    for b in range(taps_x.number[x]):
                        vector = source[(cell + taps_x.cell[x, b]) * step + shift]
                        dot = zero
                        for c in range(channels):
                            dot += values[c] * vector[c]
                        along += taps_x.weight[x, b] * dot
                        along_start += taps_x.by_start[x, b] * dot
                        along_extent += taps_x.by_extent[x, b] * dot
                    y_start += taps_y.by_start[y, a] * along
                    y_extent += taps_y.by_extent[y, a] * along
                    x_start += taps_y.weight[y, a] * along_start
                    x_extent += taps_y.weight[y, a] * along_extent
                by_start[k, 0] += y_start
                by_start[k, 1] += x_start
                by_extent[k, 0] += y_extent
                by_extent[k, 1] += x_extent
                if joint:
                    by_shift[k, 1, i, j] = y_start
                    by_shift[k, 0, i, j] = x_start


@kernel
def add_tap_grads(
    grad, features, rois, numbers, span, g, joint, cells_y, weights_y, cells_x, weights_x, channels_last, by_y, by_x
):
    """Gradients of the weights (rows, T) of taps that a rule of a user's own has made, of all RoIs in their order.

    ``features`` are the vectors of all groups. A cell of -1 is no tap.
    """
    zero = by_y.dtype.type(0)
    channels = features.shape[2]
    tile = np.empty((g.rows * g.columns, channels), by_y.dtype)
    for n in range(span[0], span[1]):
        k = numbers[n]
        load_bins(grad, k, g.group_rows * g.group_columns == 1, channels_last, 0, tile)
        source = features[int(rois[k, 0])]
        for i in range(g.rows):
            for j in range(g.columns):
                y, x = _rows_of(k, i, j, g, joint)
                step, shift = place_of(i, j, -1, g)
                values = tile[i * g.columns + j]
                for a in range(cells_y.shape[1]):
                    if cells_y[y, a] < 0:
                        continue
                    along = zero
                    for b in range(cells_x.shape[1]):
                        if cells_x[x, b] < 0:
                            continue
                        vector = source[(cells_y[y, a] * g.width + cells_x[x, b]) * step + shift]
                        dot = zero
                        for c in range(channels):
                            dot += values[c] * vector[c]
                        along += weights_x[x, b] * dot
                        by_x[x, b] += weights_y[y, a] * dot
                    by_y[y, a] += along
