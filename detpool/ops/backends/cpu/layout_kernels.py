"""Tensors between their layouts and that of the pooling kernels, *vectors*: (N G, H W, C), the C channels of each of G
groups next to each other."""

import numpy as np

from .compiling import compiled, kernel


@compiled
def copy(source, target):
    """target[c] = source[c]. Not ``target[:] = source``, whose error message takes numba two seconds to compile."""
    for c in range(target.shape[0]):
        target[c] = source[c]


@kernel
def transpose(source, target):
    """target[j, i] = source[i, j], in tiles that fit the first-level cache."""
    rows, columns = source.shape
    for i0 in range(0, rows, 16):
        for j0 in range(0, columns, 16):
            for i in range(i0, min(i0 + 16, rows)):
                for j in range(j0, min(j0 + 16, columns)):
                    target[j, i] = source[i, j]


@kernel
def planes_to_vectors(planes, spans, rows, target):
    """Rows ``rows[0] .. rows[1] - 1`` of an image (C, H, W) to vectors (H W, C), of each only the columns ``spans``
    (H, 2)."""
    channels, _, width = planes.shape
    for row in range(rows[0], rows[1]):
        first, last = spans[row, 0], spans[row, 1]
        for x0 in range(first, last, 16):
            for c in range(channels):
                plane = planes[c, row, x0 : min(x0 + 16, last)]
                for x in range(plane.shape[0]):
                    target[row * width + x0 + x, c] = plane[x]


@kernel
def pixels_to_vectors(pixels, spans, rows, target):
    """As :func:`planes_to_vectors`, from pixels (H, W, C G) to (G, H W, C)."""
    groups, _, channels = target.shape
    width = pixels.shape[1]
    for row in range(rows[0], rows[1]):
        for x in range(spans[row, 0], spans[row, 1]):
            pixel = pixels[row, x]
            for group in range(groups):
                vector = target[group, row * width + x]
                for c in range(channels):
                    vector[c] = pixel[c * groups + group]


@kernel
def order_channels(pixels, groups, first, last):
    """In place, channels ``g C + c`` of pixels (N H W, C G) become ``c G + g``."""
    channels = pixels.shape[1] // groups
    vector = np.empty(pixels.shape[1], pixels.dtype)
    for p in range(first, last):
        copy(pixels[p], vector)
        for group in range(groups):
            for c in range(channels):
                pixels[p, c * groups + group] = vector[group * channels + c]


@compiled
def load_bins(pooled, k, channels_last, c0, tile):
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
def load_bin(pooled, k, p, channels_last, c0, vector):
    """vector[c] = channel c0 + c of bin p of RoI k."""
    for c in range(vector.shape[0]):
        vector[c] = pooled[k, p, c0 + c] if channels_last else pooled[k, c0 + c, p]


@compiled
def store_bins(tile, k, channels_last, block, columns, pooled):
    """The inverse, of all channels and the bins of ``block`` (:func:`block_of`) in row-major order."""
    i0, i1, j0, j1 = block
    if not channels_last and tile.shape[0] == pooled.shape[2]:
        transpose(tile, pooled[k])
        return
    n = 0
    for i in range(i0, i1):
        for j in range(j0, j1):
            p = i * columns + j
            for c in range(tile.shape[1]):
                if channels_last:
                    pooled[k, p, c] = tile[n, c]
                else:
                    pooled[k, c, p] = tile[n, c]
            n += 1


@compiled
def block_of(group, g):
    """Rows ``i0 .. i1 - 1`` and columns ``j0 .. j1 - 1`` of the bins that read a group of channels."""
    rows, columns = g.rows // g.group_rows, g.columns // g.group_columns
    i0, j0 = group // g.group_columns * rows, group % g.group_columns * columns
    return i0, i0 + rows, j0, j0 + columns
