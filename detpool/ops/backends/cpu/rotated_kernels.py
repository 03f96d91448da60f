"""RoIAlign of rotated boxes and its gradients; conventions as in ``sum_kernels``, all channels in one group."""

import math

import numpy as np

from .compiling import compiled, kernel
from .layout_kernels import load_bins, transpose
from .sum_kernels import add_scaled_rows, add_to_rows


@compiled
def _frame(roi, g):
    """Of a rotated box in cells: centre, size, cosine and sine, points per bin, each y before x where there are two."""
    r = roi.dtype.type
    scale, half = r(g.scale), r(0.5)
    angle = roi[5] * r(math.pi / 180)
    size_y, size_x = roi[4] * scale, roi[3] * scale
    points_y, points_x = g.ratio, g.ratio
    if g.ratio <= 0:
        points_y, points_x = math.ceil(size_y / r(g.rows)), math.ceil(size_x / r(g.columns))
    centre_y, centre_x = roi[2] * scale - half, roi[1] * scale - half
    return centre_y, centre_x, size_y, size_x, r(math.cos(angle)), r(math.sin(angle)), points_y, points_x


@compiled
def _point(frame, g, i, j, a, b):
    """Shares of the size that the point lies from the centre; the lower cell, upper shares and mobility of both axes.

    The cells are -1 if it reads nothing.
    """
    centre_y, centre_x, size_y, size_x, cosine, sine, points_y, points_x = frame
    zero = centre_y * 0
    half = zero + 0.5
    share_y = (i + (a + half) / points_y) / g.rows - half
    share_x = (j + (b + half) / points_x) / g.columns - half
    y = share_y * size_y * cosine - share_x * size_x * sine + centre_y
    x = share_y * size_y * sine + share_x * size_x * cosine + centre_x
    if not (y >= -1 and y <= g.height and x >= -1 and x <= g.width):
        return share_y, share_x, -1, -1, half, half, False, False
    moves_y, moves_x = y >= 0 and y <= g.height - 1, x >= 0 and x <= g.width - 1
    y, x = min(max(y, zero), zero + g.height - 1), min(max(x, zero), zero + g.width - 1)
    low_y, low_x = int(y), int(x)
    return share_y, share_x, low_y, low_x, y - low_y, x - low_x, moves_y, moves_x


@compiled
def _taps(frame, g, i, j, cells, weights):
    """The cells of a bin and their weights; returns their number."""
    points_y, points_x = frame[6], frame[7]
    n = 0
    for a in range(points_y):
        for b in range(points_x):
            _, _, y, x, v, u, _, _ = _point(frame, g, i, j, a, b)
            if y < 0:
                continue
            for dy in range(2 if y + 1 < g.height else 1):
                for dx in range(2 if x + 1 < g.width else 1):
                    cells[n] = (y + dy) * g.width + x + dx
                    weights[n] = (v if dy else 1 - v) * (u if dx else 1 - u) / (points_y * points_x)
                    n += 1
    return n


@compiled
def _most_taps(rois, numbers, span, g):
    most = 0
    for n in range(span[0], span[1]):
        k = numbers[n]
        frame = _frame(rois[k], g)
        most = max(most, 4 * frame[6] * frame[7])
    return most


@kernel
def sum_rotated(features, rois, numbers, span, group, g, channels_last, out):
    """The mean of the points of each bin."""
    most = _most_taps(rois, numbers, span, g)
    cells, weights = np.empty(most, np.int64), np.empty(most, out.dtype)
    tile = np.empty((0 if channels_last else g.rows * g.columns, features.shape[2]), out.dtype)
    for n in range(span[0], span[1]):
        k = numbers[n]
        frame = _frame(rois[k], g)
        target, source = out[k] if channels_last else tile, features[int(rois[k, 0])]
        for i in range(g.rows):
            for j in range(g.columns):
                n = _taps(frame, g, i, j, cells, weights)
                add_scaled_rows(source, cells, weights, n, target[i * g.columns + j])
        if not channels_last:
            transpose(tile, out[k])


@kernel
def add_rotated_grads(grad, numbers, span, group, g, part, rois, channels_last, out):
    """The transpose of :func:`sum_rotated` for one image."""
    most = _most_taps(rois, numbers, span, g)
    cells, weights = np.empty(most, np.int64), np.empty(most, out.dtype)
    tile = np.empty((g.rows * g.columns, part.channels), out.dtype)
    for n in range(span[0], span[1]):
        k = numbers[n]
        frame = _frame(rois[k], g)
        load_bins(grad, k, True, channels_last, part.first, tile)
        for i in range(g.rows):
            for j in range(g.columns):
                n = _taps(frame, g, i, j, cells, weights)
                add_to_rows(out, part.target, cells, weights, n, tile[i * g.columns + j])


@kernel
def add_rotated_roi_grads(grad, features, rois, numbers, span, g, channels_last, out):
    """``out`` (K, 6): gradients of centre, width, height in pixels and angle in degrees."""
    channels = features.shape[2]
    tile = np.empty((g.rows * g.columns, channels), out.dtype)
    zero = out.dtype.type(0)
    for n in range(span[0], span[1]):
        k = numbers[n]
        frame = _frame(rois[k], g)
        _, _, size_y, size_x, cosine, sine, points_y, points_x = frame
        source = features[int(rois[k, 0])]
        load_bins(grad, k, True, channels_last, 0, tile)
        for i in range(g.rows):
            for j in range(g.columns):
                values = tile[i * g.columns + j]
                for a in range(points_y):
                    for b in range(points_x):
                        share_y, share_x, y, x, v, u, moves_y, moves_x = _point(frame, g, i, j, a, b)
                        if y < 0:
                            continue
                        by_y, by_x = zero, zero
                        for dy in range(2 if y + 1 < g.height else 1):
                            for dx in range(2 if x + 1 < g.width else 1):
                                vector = source[(y + dy) * g.width + x + dx]
                                dot = zero
                                for c in range(channels):
                                    dot += values[c] * vector[c]
                                by_y += (u if dx else 1 - u) * (dot if dy else -dot)
                                by_x += (v if dy else 1 - v) * (dot if dx else -dot)
                        by_y = by_y / (points_y * points_x) if moves_y else zero
                        by_x = by_x / (points_y * points_x) if moves_x else zero
                        out[k, 1] += g.scale * by_x
                        out[k, 2] += g.scale * by_y
                        out[k, 3] += g.scale * share_x * (cosine * by_x - sine * by_y)
                        out[k, 4] += g.scale * share_y * (cosine * by_y + sine * by_x)
                        along_y, along_x = share_y * size_y, share_x * size_x
                        turned = (along_y * cosine - along_x * sine) * by_x - (along_y * sine + along_x * cosine) * by_y
                        out[k, 5] += turned * (math.pi / 180)
