"""Maps, windows and checks that several tests of pooling layers share."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

GEOMETRIES = [
    # kernel, stride, padding, (height, width) of the map
    ((2, 2), (2, 2), (0, 0), (4, 6)),
    ((3, 3), (2, 2), (0, 0), (7, 9)),
    ((3, 3), (2, 2), (1, 1), (7, 8)),
    ((3, 3), (1, 1), (1, 1), (1, 1)),
    ((2, 3), (1, 2), (1, 1), (5, 6)),
    ((1, 4), (3, 1), (0, 2), (7, 5)),
    ((1, 1), (1, 1), (0, 0), (1, 1)),
    ((5, 3), (2, 3), (2, 0), (6, 8)),
]
"""Odd and even sizes, windows that overlap, touch and leave gaps, and padding."""


def random_map(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def cells_of(
    values: np.ndarray, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> Iterator[tuple[int, int, np.ndarray]]:
    """(i, j, the values (N, C, cells) of the cells of window (i, j) that are inside the map)."""
    height, width = values.shape[2:]
    for i in range((height + 2 * padding[0] - kernel[0]) // stride[0] + 1):
        top = i * stride[0] - padding[0]
        for j in range((width + 2 * padding[1] - kernel[1]) // stride[1] + 1):
            left = j * stride[1] - padding[1]
            inside = values[:, :, max(top, 0) : top + kernel[0], max(left, 0) : left + kernel[1]]
            yield i, j, inside.reshape(*values.shape[:2], -1)


def reduced(values: Tensor, geometry: tuple, formula: Callable[[np.ndarray], np.ndarray]) -> Tensor:
    """``formula``, from (N, C, cells) to (N, C), of every window: what a layer should return."""
    kernel, stride, padding, _ = geometry
    found = {(i, j): formula(cells) for i, j, cells in cells_of(values.detach().numpy(), kernel, stride, padding)}
    rows, columns = (max(index[axis] for index in found) + 1 for axis in (0, 1))
    stacked = np.stack([np.stack([found[i, j] for j in range(columns)], axis=2) for i in range(rows)], axis=2)
    return torch.from_numpy(stacked)
