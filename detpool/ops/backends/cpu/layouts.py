"""Tensors as the arrays that the kernels read and write, with as few copies as there can be."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import layout_kernels as kernels
from .threads import run

COPY_BLOCK = 1 << 17
"""Elements that one task brings into another layout: of fewer, waking a thread for them takes longer."""
ZERO_BLOCK = 1 << 18
"""Elements that one task sets to zero."""


def flatten(tensor: Tensor, channels_last: bool) -> Any:
    """The array (N, H W, C) or (N, C, H W); of ``tensor`` itself if it has that layout, else of a copy."""
    tensor = tensor.detach()
    if channels_last:
        return tensor.permute(0, 2, 3, 1).contiguous().flatten(1, 2).numpy()
    return tensor.contiguous().flatten(2).numpy()


def fill_zeros(array: Any) -> None:
    """Set a contiguous array to zero, on all threads."""
    flat = array.reshape(-1)
    blocks = -(-flat.size // ZERO_BLOCK)
    run(blocks, lambda n: flat[n * ZERO_BLOCK : (n + 1) * ZERO_BLOCK].fill(0))


def to_vectors(features: Tensor, groups: int, dtype: torch.dtype, find_spans: Callable[[int], Any]) -> Any:
    """The vectors (N, H W G, C) of ``features``: themselves if they are channels_last, in one group and of ``dtype``.

    Args:
        features: (N, C G, H, W).
        groups: G; input channel ``c G + g`` is channel c of group g.
        dtype: float32 or float64.
        find_spans: returns (N, H, 2) int32 of N images, the first and last + 1 column of each row that will be read;
            other cells stay undefined in a copy.
    """
    features = features.detach().to(dtype)
    images, channels, height, width = features.shape
    # whether the channels of a cell are next to each other, or will be in a copy
    pixels = not features.is_contiguous() or channels == 1
    if pixels and groups == 1:
        return flatten(features, True)
    # PyTorch's memory, which it keeps for the next call
    target = torch.empty((images, height * width, groups, channels // groups), dtype=dtype).numpy()
    array = (
        flatten(features, True).reshape(images, height * width, channels // groups, groups)
        if pixels
        else features.numpy()
    )
    spans, rows = find_spans(images), max(1, COPY_BLOCK // (width * channels))
    blocks = -(-height // rows)

    def task(number: int) -> None:
        image, block = divmod(number, blocks)
        some = block * rows, min(height, (block + 1) * rows)
        if pixels:
            kernels.group_channels(array[image], spans[image], some, target[image])
            return
        for group in range(groups):
            kernels.planes_to_vectors(array[image, group::groups], spans[image], some, target[image, :, group])

    if images * blocks == 1:
        task(0)
    else:
        run(images * blocks, task)
    return target.reshape(images, height * width * groups, channels // groups)


def group_to_vectors(planes: Any, spans: Any) -> Any:
    """The vectors (1, H W, C) of some channels of an image, planes (C, H, W).

    Args:
        planes: any strides.
        spans: (H, 2), of this image.
    """
    target = np.empty((1, planes.shape[1] * planes.shape[2], planes.shape[0]), planes.dtype)
    kernels.planes_to_vectors(planes, spans, (0, planes.shape[1]), target[0])
    return target


def order_channels(pixels: Any, groups: int) -> None:
    """In place, channels ``g C + c`` of pixels (N, H W, C G) become ``c G + g``."""
    flat = pixels.reshape(-1, groups, pixels.shape[2] // groups)
    cells = max(1, COPY_BLOCK // pixels.shape[2])
    run(-(-len(flat) // cells), lambda n: kernels.order_channels(flat, n * cells, min((n + 1) * cells, len(flat))))
