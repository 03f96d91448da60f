"""Tensors as the arrays that the kernels read and write, with as few copies as there can be."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...layout import is_channels_last, memory_format
from . import kernels
from .threads import run

CELL_BLOCK = 512
"""Cells of one task that changes the layout of features."""
ZERO_BLOCK = 1 << 18
"""Elements that one task sets to zero."""


def empty(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool) -> Tensor:
    return torch.empty(shape, dtype=dtype, memory_format=memory_format(channels_last))


def flatten(tensor: Tensor, channels_last: bool) -> Any:
    """The array (N, H W, C) or (N, C, H W); of ``tensor`` itself if it has that layout, else of a copy."""
    tensor = tensor.detach().contiguous(memory_format=memory_format(channels_last))
    if channels_last:
        return tensor.permute(0, 2, 3, 1).flatten(1, 2).numpy()
    return tensor.flatten(2).numpy()


def fill_zeros(array: Any) -> None:
    """Set a contiguous array to zero, on all threads."""
    flat = array.reshape(-1)
    blocks = -(-flat.size // ZERO_BLOCK)
    run(blocks, lambda n: flat[n * ZERO_BLOCK : (n + 1) * ZERO_BLOCK].fill(0))


def to_vectors(features: Tensor, groups: int, dtype: torch.dtype, spans: Callable[[], Any] | None = None) -> Any:
    """The array (N G, H W, C / G) of ``features``; of themselves if they are channels_last in one group and ``dtype``.

    Args:
        features: (N, C, H, W).
        groups: G; input channel ``c G + g`` becomes channel c of group g.
        dtype: float32 or float64.
        spans: returns (N, H, 2) int32, the first and last + 1 column of each row that will be read, where there is
            something to copy; other cells may stay undefined. None: all are read.
    """
    features = features.detach().to(dtype)
    pixels = is_channels_last(features) or features.shape[1] == 1 or not features.is_contiguous()
    source = flatten(features, pixels)
    if pixels and groups == 1:
        return source
    images, channels, height, width = features.shape
    # PyTorch's memory, which it keeps for the next call
    target = torch.empty((images * groups, height * width, channels // groups), dtype=dtype).numpy()
    kernel = kernels.pixels_to_vectors if pixels else kernels.planes_to_vectors
    rows = max(1, CELL_BLOCK // width)
    blocks = -(-height // rows)
    columns = np.tile(np.array([0, width], np.int32), (images, height, 1)) if spans is None else spans()

    def task(number: int) -> None:
        image, block = divmod(number, blocks)
        kernel(source, image, groups, width, (block * rows, min(height, (block + 1) * rows)), columns, target)

    run(images * blocks, task)
    return target


def order_channels(pixels: Any, groups: int) -> None:
    """In place, channels ``g C + c`` of pixels (N, H W, C G) become ``c G + g``."""
    flat = pixels.reshape(-1, pixels.shape[2])
    blocks = -(-len(flat) // CELL_BLOCK)
    run(blocks, lambda n: kernels.order_channels(flat, groups, n * CELL_BLOCK, min((n + 1) * CELL_BLOCK, len(flat))))
