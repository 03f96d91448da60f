"""Theoretical receptive fields, found by asking the network which rows of the image a cell cannot do without."""

from __future__ import annotations

import copy
import functools
from bisect import bisect
from collections.abc import Sequence

import torch
from torch import Tensor, nn

SIZES = (256, 512, 1024, 2048)
"""Rows of the images that are tried, in pixels: what reads all rows of the last is said to read the whole image."""
WIDTH = 64
"""Columns of the images."""
_IMAGE = "image"


def receptive_fields(backbone: nn.Module) -> dict[str, int | str | None]:
    """How many rows of the image a cell in the middle of each map depends on, in pixels.

    Rows that are not a number make all that is computed of them not a number, whatever the weights: with all rows from
    r on spoiled, the cell is as long as it reads one of them. Where what it reads begins and ends is found by halving.

    Args:
        backbone: images (N, 3, H, W) to maps by name.

    Returns:
        by map; "image" where a cell reads the whole image, None where layers turn what is not a number into one, so
        that nothing can be told. Columns are not looked at: kernels are square, or used along either axis.
    """
    network = copy.deepcopy(backbone).cpu().double().eval()
    found: dict[str, int | str | None] = {}
    for rows in SIZES:
        found |= _reaches(network, rows, [name for name, reach in found.items() if reach == _IMAGE])
        if _IMAGE not in found.values():
            break
    return found


def _reaches(network: nn.Module, rows: int, names: Sequence[str]) -> dict[str, int | str | None]:
    """As `receptive_fields`, of some maps (of none: all) of an image of so many rows."""

    @functools.cache
    def spoiled(first: int, last: int) -> dict[str, bool]:
        """Whether the cell in the middle of each map reads one of the rows first .. last - 1."""
        # Double precision, whose convolutions are PyTorch's own: libraries may transform blocks of cells at once, and
        # so spoil neighbours.
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
