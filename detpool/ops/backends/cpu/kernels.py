"""Serial numba kernels over a range of work; ``detpool.ops.backends.cpu`` splits the work and lays out the tensors.

Features are *vectors*: (N G, H W, C), inner loops over the C channels that a bin reads; G = GH GW groups of channels,
of which bin (i, j) reads ``i GH // PH * GW + j GW // PW``. Pooled tensors are (K, PH PW, C) if ``channels_last``, else
(K, C, PH PW). Tables of taps and points are those of ``tap_kernels``.
"""

import math

import numpy as np

from .compiling import compiled

POINT_BITS = 15
"""A point's number is its row shifted by so many bits, plus its column."""


@compiled
def _copy(source, target):
    """target[c] = source[c]. Not ``target[:] = source``, whose error message takes numba two seconds to compile."""
    for c in range(target.shape[0]):
        target[c] = source[c]


@compiled
def transpose(source, target):
    """target[j, i] = source[i, j], in tiles that fit the first-level cache."""
    rows, columns = source.shape
    for i0 in range(0, rows, 16):
        for j0 in range(0, columns, 16):
            for i in range(i0, min(i0 + 16, rows)):
                for j in range(j0, min(j0 + 16, columns)):
                    target[j, i] = source[i, j]


@compiled
def planes_to_vectors(source, image, groups, width, rows, spans, target):
    """Rows ``rows[0] .. rows[1] - 1`` of one image from (N, C G, H W) to vectors, of each only ``spans`` (N, H, 2)."""
    channels = target.shape[2]
    for group in range(groups):
        for row in range(rows[0], rows[1]):
            first, last = row * width + spans[image, row, 0], row * width + spans[image, row, 1]
            for p0 in range(first, last, 16):
                for c in range(channels):
                    plane = source[image, c * groups + group, p0 : min(p0 + 16, last)]
                    for p in range(plane.shape[0]):
                        target[image * groups + group, p0 + p, c] = plane[p]


@compiled
def pixels_to_vectors(source, image, groups, width, rows, spans, target):
    """As :func:`planes_to_vectors`, from (N, H W, C G)."""
    channels = target.shape[2]
    for row in range(rows[0], rows[1]):
        for p in range(row * width + spans[image, row, 0], row * width + spans[image, row, 1]):
            pixel = source[image, p]
            for group in range(groups):
                vector = target[image * groups + group, p]
                for c in range(channels):
                    vector[c] = pixel[c * groups + group]


@compiled
def order_channels(pixels, groups, first, last):
    """In place, channels ``g C + c`` of pixels (N H W, C G) become ``c G + g``."""
    channels = pixels.shape[1] // groups
    vector = np.empty(pixels.shape[1], pixels.dtype)
    for p in range(first, last):
        _copy(pixels[p], vector)
        for group in range(groups):
            for c in range(channels):
                pixels[p, c * groups + group] = vector[group * channels + c]


@compiled
def _bin_taps(y, iy, wy, ny, x, ix, wx, nx, width, step, shift, cells, weights):
    """All taps of one bin as positions ``cell step + shift`` among the vectors of an image; returns their number."""
    n = 0
    for a in range(ny[y]):
        first = iy[y, a] * width
        for b in range(nx[x]):
            cells[n] = (first + ix[x, b]) * step + shift
            weights[n] = wy[y, a] * wx[x, b]
            n += 1
    return n


@compiled
def span_taps(images, numbers, taps_y, taps_x, spans, width):
    """``spans`` (N, H, 2): of each row of an image the first and last + 1 column that the bins of RoIs may read."""
    iy, _, ny = taps_y
    ix, _, nx = taps_x
    spans[:, :, 0] = width
    spans[:, :, 1] = 0
    if images.shape[0] == 0:
        return
    rows, columns = ny.shape[0] // images.shape[0], nx.shape[0] // images.shape[0]
    for k in numbers:
        first, last = width, 0
        for row in range(k * columns, (k + 1) * columns):
            for b in range(nx[row]):
                first, last = min(first, ix[row, b]), max(last, ix[row, b] + 1)
        for row in range(k * rows, (k + 1) * rows):
            for a in range(ny[row]):
                span = spans[images[k], iy[row, a]]
                span[0], span[1] = min(span[0], first), max(span[1], last)


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
def _load_bins(pooled, k, channels_last, c0, tile):
    """tile[bin, c] = channel c0 + c of RoI k."""
    bins, channels = tile.shape
    if channels_last:
        for p in range(bins):
            # a slice rather than row[c0 + c], whose sum might be negative for all that the compiler knows
            row, target = pooled[k, p, c0 : c0 + channels], tile[p]
            for c in range(channels):
                target[c] = row[c]
    else:
        for c in range(channels):
            row = pooled[k, c0 + c]
            for p in range(bins):
                tile[p, c] = row[p]


@compiled
def _row(k, i, j, bins, joint, axis):
    """The row of a table of taps that bin (i, j) of RoI k has."""
    if joint:
        return (k * bins[0] + i) * bins[1] + j
    return k * bins[0] + i if axis == 0 else k * bins[1] + j


@compiled
def sum_taps(features, images, numbers, taps_y, taps_x, joint, bins, groups, width, channels_last, out, tile):
    """The weighted sum for RoIs ``numbers``; ``out`` is contiguous by way of ``tile`` (PH PW, C)."""
    iy, wy, ny = taps_y
    ix, wx, nx = taps_x
    cells = np.empty(iy.shape[1] * ix.shape[1], np.int64)
    weights = np.empty(iy.shape[1] * ix.shape[1], wy.dtype)
    for k in numbers:
        target = out[k] if channels_last else tile
        for i in range(bins[0]):
            for j in range(bins[1]):
                y, x = _row(k, i, j, bins, joint, 0), _row(k, i, j, bins, joint, 1)
                group = i * groups[0] // bins[0] * groups[1] + j * groups[1] // bins[1]
                n = _bin_taps(y, iy, wy, ny, x, ix, wx, nx, width, 1, 0, cells, weights)
                source = features[images[k] * groups[0] * groups[1] + group]
                _add_scaled_rows(source, cells, weights, n, target[i * bins[1] + j])
        if not channels_last:
            transpose(tile, out[k])


@compiled
def add_grads(
    grad, numbers, group, taps_y, taps_x, joint, bins, groups, width, c0, channels_last, out, o0, channels, step, shift
):
    """The transpose of :func:`sum_taps` for one image and group: channels c0 .. of RoIs ``numbers``, in their order.

    Adds to channels o0 .. o0 + channels - 1 of ``out`` (H W step, C), vectors ``cell step + shift``.
    """
    iy, wy, ny = taps_y
    ix, wx, nx = taps_x
    cells = np.empty(iy.shape[1] * ix.shape[1], np.int64)
    weights = np.empty(iy.shape[1] * ix.shape[1], wy.dtype)
    height, breadth = bins[0] // groups[0], bins[1] // groups[1]
    i0, j0 = group // groups[1] * height, group % groups[1] * breadth
    shared = groups[0] * groups[1] == 1
    tile = np.empty((bins[0] * bins[1] if shared else 1, channels), wy.dtype)
    for k in numbers:
        if shared:
            _load_bins(grad, k, channels_last, c0, tile)
        for i in range(i0, i0 + height):
            for j in range(j0, j0 + breadth):
                p = i * bins[1] + j
                values = tile[p if shared else 0]
                if not shared:
                    for c in range(channels):
                        values[c] = grad[k, p, c0 + c] if channels_last else grad[k, c0 + c, p]
                y, x = _row(k, i, j, bins, joint, 0), _row(k, i, j, bins, joint, 1)
                n = _bin_taps(y, iy, wy, ny, x, ix, wx, nx, width, step, shift, cells, weights)
                _add_to_rows(out, o0, cells, weights, n, values)


@compiled
def add_roi_grads(
    grad,
    features,
    images,
    numbers,
    taps_y,
    taps_x,
    slopes_y,
    slopes_x,
    joint,
    bins,
    groups,
    width,
    channels_last,
    by_start,
    by_extent,
    by_shift,
):
    """Gradients of the start and extent (K, 2) of boxes in cells, y before x; of the shifts (K, 2, PH, PW) if joint."""
    iy, wy, ny = taps_y
    ix, wx, nx = taps_x
    ys, ye = slopes_y
    xs, xe = slopes_x
    zero = wy.dtype.type(0)
    channels = features.shape[2]
    tile = np.empty((bins[0] * bins[1], channels), wy.dtype)
    for k in numbers:
        _load_bins(grad, k, channels_last, 0, tile)
        for i in range(bins[0]):
            for j in range(bins[1]):
                y, x = _row(k, i, j, bins, joint, 0), _row(k, i, j, bins, joint, 1)
                group = i * groups[0] // bins[0] * groups[1] + j * groups[1] // bins[1]
                source, g = features[images[k] * groups[0] * groups[1] + group], tile[i * bins[1] + j]
                y_start, x_start, y_extent, x_extent = zero, zero, zero, zero
                for a in range(ny[y]):
                    cell = iy[y, a] * width
                    along, along_start, along_extent = zero, zero, zero
                    for b in range(nx[x]):
                        f = source[cell + ix[x, b]]
                        dot = zero
                        for c in range(channels):
                            dot += g[c] * f[c]
                        along += wx[x, b] * dot
                        along_start += xs[x, b] * dot
                        along_extent += xe[x, b] * dot
                    y_start += ys[y, a] * along
                    y_extent += ye[y, a] * along
                    x_start += wy[y, a] * along_start
                    x_extent += wy[y, a] * along_extent
                by_start[k, 0] += y_start
                by_start[k, 1] += x_start
                by_extent[k, 0] += y_extent
                by_extent[k, 1] += x_extent
                if joint:
                    by_shift[k, 1, i, j] = y_start
                    by_shift[k, 0, i, j] = x_start


@compiled
def _rotated_frame(roi, bins, ratio, scale):
    """Of a rotated box in cells: centre, size, cosine and sine, points per bin, each y before x where there are two."""
    r = roi.dtype.type
    angle = roi[5] * r(math.pi / 180)
    size_y, size_x = roi[4] * r(scale), roi[3] * r(scale)
    points_y, points_x = ratio, ratio
    if ratio <= 0:
        points_y = math.ceil(size_y / r(bins[0]))
        points_x = math.ceil(size_x / r(bins[1]))
    centre_y, centre_x = roi[2] * r(scale) - r(0.5), roi[1] * r(scale) - r(0.5)
    return centre_y, centre_x, size_y, size_x, r(math.cos(angle)), r(math.sin(angle)), points_y, points_x


@compiled
def _rotated_point(frame, bins, i, j, a, b, height, width):
    """Shares of the size that the point lies from the centre, and the lower cell, upper shares and mobility of both
    axes; the cells are -1 if it reads nothing."""
    centre_y, centre_x, size_y, size_x, cosine, sine, points_y, points_x = frame
    half = centre_y * 0 + 0.5
    share_y = (i + (a + half) / points_y) / bins[0] - half
    share_x = (j + (b + half) / points_x) / bins[1] - half
    y = share_y * size_y * cosine - share_x * size_x * sine + centre_y
    x = share_y * size_y * sine + share_x * size_x * cosine + centre_x
    if not (y >= -1 and y <= height and x >= -1 and x <= width):
        return share_y, share_x, -1, -1, half, half, False, False
    moves_y, moves_x = y >= 0 and y <= height - 1, x >= 0 and x <= width - 1
    y, x = min(max(y, half * 0), half * 0 + height - 1), min(max(x, half * 0), half * 0 + width - 1)
    low_y, low_x = int(y), int(x)
    return share_y, share_x, low_y, low_x, y - low_y, x - low_x, moves_y, moves_x


@compiled
def _rotated_taps(frame, bins, i, j, height, width, cells, weights):
    """The taps of a bin of a rotated box, like :func:`_bin_taps`."""
    points_y, points_x = frame[6], frame[7]
    n = 0
    for a in range(points_y):
        for b in range(points_x):
            _, _, y, x, v, u, _, _ = _rotated_point(frame, bins, i, j, a, b, height, width)
            if y < 0:
                continue
            for dy in range(2 if y + 1 < height else 1):
                for dx in range(2 if x + 1 < width else 1):
                    cells[n] = (y + dy) * width + x + dx
                    weights[n] = (v if dy else 1 - v) * (u if dx else 1 - u) / (points_y * points_x)
                    n += 1
    return n


@compiled
def sum_rotated(features, rois, numbers, bins, ratio, scale, height, width, channels_last, out, tile):
    """RoIAlign of rotated boxes ``numbers``; ``out`` and ``tile`` as in :func:`sum_taps`."""
    cells, weights = np.empty(0, np.int64), np.empty(0, out.dtype)
    for k in numbers:
        frame = _rotated_frame(rois[k], bins, ratio, scale)
        if 4 * frame[6] * frame[7] > cells.shape[0]:
            cells, weights = np.empty(4 * frame[6] * frame[7], np.int64), np.empty(4 * frame[6] * frame[7], out.dtype)
        target, source = out[k] if channels_last else tile, features[int(rois[k, 0])]
        for i in range(bins[0]):
            for j in range(bins[1]):
                n = _rotated_taps(frame, bins, i, j, height, width, cells, weights)
                _add_scaled_rows(source, cells, weights, n, target[i * bins[1] + j])
        if not channels_last:
            transpose(tile, out[k])


@compiled
def add_rotated_grads(grad, rois, numbers, bins, ratio, scale, height, width, c0, channels_last, out, o0, channels):
    """The transpose of :func:`sum_rotated` for one image, as :func:`add_grads`."""
    cells, weights = np.empty(0, np.int64), np.empty(0, out.dtype)
    tile = np.empty((bins[0] * bins[1], channels), out.dtype)
    for k in numbers:
        frame = _rotated_frame(rois[k], bins, ratio, scale)
        if 4 * frame[6] * frame[7] > cells.shape[0]:
            cells, weights = np.empty(4 * frame[6] * frame[7], np.int64), np.empty(4 * frame[6] * frame[7], out.dtype)
        _load_bins(grad, k, channels_last, c0, tile)
        for i in range(bins[0]):
            for j in range(bins[1]):
                n = _rotated_taps(frame, bins, i, j, height, width, cells, weights)
                _add_to_rows(out, o0, cells, weights, n, tile[i * bins[1] + j])


@compiled
def add_rotated_roi_grads(grad, features, rois, numbers, bins, ratio, scale, height, width, channels_last, out):
    """``out`` (K, 6): gradients of centre, width, height in pixels and angle in degrees."""
    channels = features.shape[2]
    tile = np.empty((bins[0] * bins[1], channels), out.dtype)
    zero = out.dtype.type(0)
    for k in numbers:
        frame = _rotated_frame(rois[k], bins, ratio, scale)
        _, _, size_y, size_x, cosine, sine, points_y, points_x = frame
        source = features[int(rois[k, 0])]
        _load_bins(grad, k, channels_last, 0, tile)
        for i in range(bins[0]):
            for j in range(bins[1]):
                g = tile[i * bins[1] + j]
                for a in range(points_y):
                    for b in range(points_x):
                        share_y, share_x, y, x, v, u, moves_y, moves_x = _rotated_point(
                            frame, bins, i, j, a, b, height, width
                        )
                        if y < 0:
                            continue
                        by_y, by_x = zero, zero
                        for dy in range(2 if y + 1 < height else 1):
                            for dx in range(2 if x + 1 < width else 1):
                                f = source[(y + dy) * width + x + dx]
                                dot = zero
                                for c in range(channels):
                                    dot += g[c] * f[c]
                                by_y += (u if dx else 1 - u) * (dot if dy else -dot)
                                by_x += (v if dy else 1 - v) * (dot if dx else -dot)
                        by_y = by_y / (points_y * points_x) if moves_y else zero
                        by_x = by_x / (points_y * points_x) if moves_x else zero
                        out[k, 1] += scale * by_x
                        out[k, 2] += scale * by_y
                        out[k, 3] += scale * share_x * (cosine * by_x - sine * by_y)
                        out[k, 4] += scale * share_y * (cosine * by_y + sine * by_x)
                        along_y, along_x = share_y * size_y, share_x * size_x
                        turned = (along_y * cosine - along_x * sine) * by_x - (along_y * sine + along_x * cosine) * by_y
                        out[k, 5] += turned * (math.pi / 180)


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
def max_of_cells(
    features, images, numbers, y_windows, x_windows, groups, width, channels_last, out, argmax, tile, where_tile
):
    """The maximum over cells for RoIs ``numbers``; layouts as in :func:`sum_taps`."""
    rows, columns = y_windows.shape[1], x_windows.shape[1]
    cells = np.empty(0, np.int32)
    for k in numbers:
        values = out[k] if channels_last else tile
        for i in range(rows):
            for j in range(columns):
                p = i * columns + j
                group = i * groups[0] // rows * groups[1] + j * groups[1] // columns
                source = features[images[k] * groups[0] * groups[1] + group]
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
            transpose(tile, out[k])
            transpose(where_tile, argmax[k])


@compiled
def add_to_argmax(grad, argmax, numbers, group, bins, groups, c0, channels_last, out, o0, channels, step, shift):
    """The gradient of :func:`max_of_cells` for one image and group, as :func:`add_grads`."""
    height, breadth = bins[0] // groups[0], bins[1] // groups[1]
    i0, j0 = group // groups[1] * height, group % groups[1] * breadth
    shared = groups[0] * groups[1] == 1
    tiled = shared and not channels_last
    grad_tile = np.empty((bins[0] * bins[1] if tiled else 1, channels), out.dtype)
    where_tile = np.empty((bins[0] * bins[1] if tiled else 1, channels), argmax.dtype)
    base, step, shift = np.uint64(o0), np.uint64(step), np.uint64(shift)
    plane_cells = out.shape[0] // step
    for k in numbers:
        if tiled:
            _load_bins(grad, k, False, c0, grad_tile)
            _load_bins(argmax, k, False, c0, where_tile)
        for i in range(i0, i0 + height):
            for j in range(j0, j0 + breadth):
                p = i * bins[1] + j
                if channels_last:
                    values, where = grad[k, p, c0 : c0 + channels], argmax[k, p, c0 : c0 + channels]
                elif shared:
                    values, where = grad_tile[p], where_tile[p]
                else:
                    values, where = grad_tile[0], where_tile[0]
                    for c in range(channels):
                        values[c], where[c] = grad[k, c0 + c, p], argmax[k, c0 + c, p]
                for c in range(channels):
                    # as unsigned numbers one comparison finds both kinds of cells that are outside, -1 among them
                    cell = np.uint32(np.int32(where[c]))
                    if cell < plane_cells:
                        out[cell * step + shift, base + np.uint64(c)] += values[c]


@compiled
def _bilinear_rows(source, y, v, x, u, height, width):
    """The four rows of features around a point, and their weights."""
    r = source.dtype.type
    # At the border both rows are the last, with half the weight: 0 times an infinite one would not be 0.
    y1, v = (y + 1, r(v)) if y + 1 < height else (y, r(0.5))
    x1, u = (x + 1, r(u)) if x + 1 < width else (x, r(0.5))
    rows = source[y * width + x], source[y * width + x1], source[y1 * width + x], source[y1 * width + x1]
    return rows, ((r(1) - v) * (r(1) - u), (r(1) - v) * u, v * (r(1) - u), v * u)


@compiled
def max_of_points(
    features,
    images,
    numbers,
    points_y,
    points_x,
    bins,
    groups,
    height,
    width,
    channels_last,
    out,
    argmax,
    tile,
    where_tile,
):
    """The maximum over bilinear points for RoIs ``numbers``; layouts as in :func:`sum_taps`."""
    cell_y, share_y, count_y = points_y
    cell_x, share_x, count_x = points_x
    for k in numbers:
        values, places = (out[k], argmax[k]) if channels_last else (tile, where_tile)
        for i in range(bins[0]):
            for j in range(bins[1]):
                p, y, x = i * bins[1] + j, k * bins[0] + i, k * bins[1] + j
                group = i * groups[0] // bins[0] * groups[1] + j * groups[1] // bins[1]
                source = features[images[k] * groups[0] * groups[1] + group]
                best, where = values[p], places[p]
                for c in range(best.shape[0]):
                    best[c] = 0
                    where[c] = -1
                for a in range(count_y[y]):
                    for b in range(count_x[x]):
                        number = (a << POINT_BITS) + b
                        if cell_y[y, a] < 0 or cell_x[x, b] < 0:
                            for c in range(best.shape[0]):
                                m, w = best[c], where[c]
                                wins = (w < 0) | (m < 0)
                                best[c], where[c] = 0 if wins else m, number if wins else w
                            continue
                        rows, weights = _bilinear_rows(
                            source, cell_y[y, a], share_y[y, a], cell_x[x, b], share_x[x, b], height, width
                        )
                        f0, f1, f2, f3 = rows
                        w0, w1, w2, w3 = weights
                        for c in range(best.shape[0]):
                            value = (w0 * f0[c] + w1 * f1[c]) + (w2 * f2[c] + w3 * f3[c])
                            m, w = best[c], where[c]
                            wins = (w < 0) | (value > m) | ((value != value) & (m == m))
                            best[c], where[c] = value if wins else m, number if wins else w
        if not channels_last:
            transpose(tile, out[k])
            transpose(where_tile, argmax[k])


@compiled
def add_to_points(
    grad,
    argmax,
    numbers,
    group,
    points_y,
    points_x,
    bins,
    groups,
    height,
    width,
    c0,
    channels_last,
    out,
    o0,
    channels,
    step,
    shift,
):
    """The gradient of :func:`max_of_points` for one image and group, as :func:`add_grads`."""
    cell_y, share_y, _ = points_y
    cell_x, share_x, _ = points_x
    rows, breadth = bins[0] // groups[0], bins[1] // groups[1]
    i0, j0 = group // groups[1] * rows, group % groups[1] * breadth
    for k in numbers:
        for i in range(i0, i0 + rows):
            for j in range(j0, j0 + breadth):
                p, y, x = i * bins[1] + j, k * bins[0] + i, k * bins[1] + j
                for c in range(channels):
                    where = argmax[k, p, c0 + c] if channels_last else argmax[k, c0 + c, p]
                    if where < 0:
                        continue
                    g = grad[k, p, c0 + c] if channels_last else grad[k, c0 + c, p]
                    a, b = where >> POINT_BITS, where & ((1 << POINT_BITS) - 1)
                    cy, cx, v, u = cell_y[y, a], cell_x[x, b], share_y[y, a], share_x[x, b]
                    if cy < 0 or cx < 0:
                        continue
                    cell, right, below = (cy * width + cx) * step + shift, step, width * step
                    out[cell, o0 + c] += (1 - v) * (1 - u) * g
                    if cx + 1 < width:
                        out[cell + right, o0 + c] += (1 - v) * u * g
                    if cy + 1 < height:
                        out[cell + below, o0 + c] += v * (1 - u) * g
                        if cx + 1 < width:
                            out[cell + below + right, o0 + c] += v * u * g


@compiled
def add_point_roi_grads(
    grad,
    argmax,
    features,
    images,
    numbers,
    points_y,
    points_x,
    extents_y,
    extents_x,
    bins,
    groups,
    height,
    width,
    channels_last,
    by_start,
    by_extent,
):
    """Gradients of the start and extent (K, 2) of boxes in cells, y before x, through the points of maxima."""
    cell_y, share_y, _ = points_y
    cell_x, share_x, _ = points_x
    for k in numbers:
        for i in range(bins[0]):
            for j in range(bins[1]):
                p, y, x = i * bins[1] + j, k * bins[0] + i, k * bins[1] + j
                group = i * groups[0] // bins[0] * groups[1] + j * groups[1] // bins[1]
                source = features[images[k] * groups[0] * groups[1] + group]
                for c in range(features.shape[2]):
                    where = argmax[k, p, c] if channels_last else argmax[k, c, p]
                    if where < 0:
                        continue
                    a, b = where >> POINT_BITS, where & ((1 << POINT_BITS) - 1)
                    cy, cx, v, u = cell_y[y, a], cell_x[x, b], share_y[y, a], share_x[x, b]
                    if cy < 0 or cx < 0:
                        continue
                    g = grad[k, p, c] if channels_last else grad[k, c, p]
                    cell = cy * width + cx
                    f00 = source[cell, c]
                    f01 = source[cell + 1, c] if cx + 1 < width else f00 * 0
                    f10 = source[cell + width, c] if cy + 1 < height else f00 * 0
                    f11 = source[cell + width + 1, c] if cx + 1 < width and cy + 1 < height else f00 * 0
                    by_y = g * ((1 - u) * (f10 - f00) + u * (f11 - f01))
                    by_x = g * ((1 - v) * (f01 - f00) + v * (f11 - f10))
                    if extents_y[y, a] == extents_y[y, a]:
                        by_start[k, 0] += by_y
                        by_extent[k, 0] += by_y * extents_y[y, a]
                    if extents_x[x, b] == extents_x[x, b]:
                        by_start[k, 1] += by_x
                        by_extent[k, 1] += by_x * extents_x[x, b]
