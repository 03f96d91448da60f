"""Theoretical receptive fields, determined by which image rows affect a cell of a feature map."""

from __future__ import annotations

import copy
import functools
from bisect import bisect
from collections.abc import Sequence

import torch
from torch import Tensor, nn

SIZES = (256, 512, 1024, 2048)
"""Heights of the images that are tried, in pixels. A cell that reads all rows of the last is said to read the image."""
WIDTH = 64
"""Width of the images in pixels."""
_IMAGE = "image"


def receptive_fields(backbone: nn.Module) -> dict[str, int | str | None]:
    """Returns the number of image rows, in pixels, on which the center cell of each map depends.

    NaN in the input makes every value that is computed from it NaN, whatever the weights are. Rows are set to NaN, and
    the first and last row that affect the cell are found by bisection.

    Args:
        backbone: network from images (N, 3, H, W) to maps by name.

    Returns:
        Number of rows by name of the map; "image" if the cell depends on the whole image; None if it cannot be
        determined because layers turn NaN into numbers. Columns are not tested, because kernels are square or are used
        along both axes.
    """
    network = copy.deepcopy(backbone).cpu().double().eval()
    found: dict[str, int | str | None] = {}
    for rows in SIZES:
        found |= _reaches(network, rows, [name for name, reach in found.items() if reach == _IMAGE])
        if _IMAGE not in found.values():
            break
    return found


def _reaches(network: nn.Module, rows: int, names: Sequence[str]) -> dict[str, int | str | None]:
    """Like `receptive_fields`, for the maps `names` (all if empty) and an image with `rows` rows."""

    @functools.cache
    def spoiled(first: int, last: int) -> dict[str, bool]:
        """Whether the center cell of each map depends on one of the rows first .. last - 1."""
        # Double precision, because it uses PyTorch's own convolutions: libraries may transform blocks of cells, which
        # spreads NaN to neighbors.
        image = torch.zeros(1, 3, rows, WIDTH, dtype=torch.float64)
        image[:, :, first:last] = torch.nan
        with torch.inference_mode():
            maps: dict[str, Tensor] = network(image)
        return {name: bool(m[:, :, m.shape[2] // 2, m.shape[3] // 2].isnan().any()) for name, m in maps.items()}

    def reach(name: str) -> int | str | None:
        if not spoiled(0, rows)[name]:
            return None
        if spoiled(0, 1)[name] or spoiled(rows - 1, rows)[name]:
            return _IMAGE
        end = bisect(range(rows), False, key=lambda row: not spoiled(row, rows)[name])
        begin = rows - bisect(range(rows), False, key=lambda row: not spoiled(0, rows - row)[name])
        return end - begin

    return {name: reach(name) for name in names or spoiled(0, rows)}
