"""Tensors between their layouts and that of the pooling kernels.

That is *vectors*: (N, H W G, C), of each cell the C channels of each of G groups.
"""

import numpy as np

from .compiling import compiled, kernel


@compiled
def copy(source, target):
    """target[c] = source[c]. Not ``target[:] = source``, whose error message takes numba two seconds to compile."""
    for c in range(target.shape[0]):
        target[c] = source[c]


@kernel
def transpose(source, target):
    """target[j, i] = source[i, j].

    Eight columns at a time, each a run of stores: one at a time, or in square tiles, takes two to four times as long.
    """
    rows, columns = source.shape
    for j0 in range(0, columns - 7, 8):
        block, runs = source[:, j0 : j0 + 8], target[j0 : j0 + 8]
        for i in range(rows):
            for j in range(8):
                runs[j, i] = block[i, j]
    for j in range(columns // 8 * 8, columns):
        for i in range(rows):
            target[j, i] = source[i, j]


@kernel
def planes_to_vectors(planes, spans, rows, target):
    """Rows ``rows[0] .. rows[1] - 1`` of an image (C, H, W), of each the columns ``spans`` (H, 2), to vectors."""
    channels, _, width = planes.shape
    for row in range(rows[0], rows[1]):
        first, last = spans[row, 0], spans[row, 1]
        vectors = target[row * width + first : row * width + last]
        for c0 in range(0, channels - 7, 8):  # as in transpose
            block, runs = planes[c0 : c0 + 8, row, first:last], vectors[:, c0 : c0 + 8]
            for x in range(runs.shape[0]):
                for c in range(8):
                    runs[x, c] = block[c, x]
        for c in range(channels // 8 * 8, channels):
            plane = planes[c, row, first:last]
            for x in range(plane.shape[0]):
                vectors[x, c] = plane[x]


@kernel
def group_channels(pixels, spans, rows, target):
    """As :func:`planes_to_vectors`, from pixels (H W, C, G) to (H W, G, C)."""
    width = pixels.shape[0] // spans.shape[0]
    for row in range(rows[0], rows[1]):
        for cell in range(row * width + spans[row, 0], row * width + spans[row, 1]):
            transpose(pixels[cell], target[cell])


@kernel
def order_channels(pixels, first, last):
    """In place, the numbers (G, C) of pixels ``first .. last - 1`` become (C, G)."""
    _, groups, channels = pixels.shape
    copied = np.empty((groups, channels), pixels.dtype)
    for p in range(first, last):
        for group in range(groups):
            copy(pixels[p, group], copied[group])
        transpose(copied, pixels[p].reshape(channels, groups))


@compiled
def load_bins(pooled, k, shared, channels_last, c0, tile):
    """tile[bin, c] = channel c0 + c of RoI k; layouts as in ``sum_kernels``."""
    bins, channels = tile.shape
    if shared and not channels_last:
        transpose(pooled[k, c0 : c0 + channels], tile)
        return
    for p in range(bins):
        # a slice rather than row[c0 + c], whose sum might be negative for all that the compiler knows
        row = pooled[k, p, c0 : c0 + channels] if channels_last else pooled[p, k, c0 : c0 + channels]
        copy(row, tile[p])


@compiled
def bin_of(pooled, tile, k, p, shared, channels_last):
    """Where bin p of RoI k is written, (C,): in a tile, which is transposed later, or in the result."""
    if channels_last:
        return pooled[k, p]
    return tile[p] if shared else pooled[p, k]


@compiled
def block_of(group, g):
    """Rows ``i0 .. i1 - 1`` and columns ``j0 .. j1 - 1`` of the bins that read a group of channels; of all if -1."""
    if group < 0:
        return 0, g.rows, 0, g.columns
    rows, columns = g.rows // g.group_rows, g.columns // g.group_columns
    i0, j0 = group // g.group_columns * rows, group % g.group_columns * columns
    return i0, i0 + rows, j0, j0 + columns


@compiled
def place_of(i, j, group, g):
    """(step, shift): of a cell, bin (i, j) reads vector ``cell step + shift`` of an image.

    Where there are those of one group alone (``group`` is not -1), that is vector ``cell``.
    """
    if group >= 0:
        return 1, 0
    own = i * g.group_rows // g.rows * g.group_columns + j * g.group_columns // g.columns
    return g.group_rows * g.group_columns, own
