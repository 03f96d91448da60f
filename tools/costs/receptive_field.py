"""Theoretical receptive fields, found by asking the network which rows of the image a cell cannot do without."""

from __future__ import annotations

import copy
import functools
import math

import torch
from torch import Tensor, nn

SIZES = (256, 512, 1024, 2048)
"""Rows of the images that are tried, in pixels: what reads all rows of the last is said to read the whole image."""
WIDTH = 64
"""Columns of the images."""


def receptive_fields(backbone: nn.Module) -> dict[str, float | None]:
    """How many rows of the image a cell in the middle of each map depends on, in pixels.

    Rows that are not a number make all that is computed of them not a number, whatever the weights: with all rows from
    r on spoiled, the cell is as long as it reads one of them. Where it begins and ends to be is found by halving.

    Args:
        backbone: images (N, 3, H, W) to maps by name.

    Returns:
        by map; infinity where a cell reads the whole image, None where a layer turns what is not a number into one, so
        that nothing can be told. Columns are not looked at: kernels are square, or used along either axis.
    """
    network = copy.deepcopy(backbone).cpu().double().eval()
    found: dict[str, float | None] = {}
    for rows in SIZES:

        @functools.cache
        def spoiled(first: int, last: int, rows: int = rows) -> dict[str, bool]:
            """Whether the cell in the middle of each map sees one of the rows first .. last - 1."""
            # In double precision, of which PyTorch computes convolutions itself: libraries may transform blocks of cells
            # at once, and so spoil neighbours.
            image = torch.zeros(1, 3, rows, WIDTH, dtype=torch.float64)
            image[:, :, first:last] = torch.nan
            with torch.inference_mode():
                maps: dict[str, Tensor] = network(image)
            return {name: bool(m[:, :, m.shape[2] // 2, m.shape[3] // 2].isnan().any()) for name, m in maps.items()}

        for name in spoiled(0, rows):
            if name in found and found[name] != math.inf:
                continue
            if not spoiled(0, rows)[name]:
                found[name] = None
            elif spoiled(0, 1)[name] or spoiled(rows - 1, rows)[name]:
                found[name] = math.inf  # or larger than this image
            else:
                end = _last(rows, lambda r, name=name: spoiled(r, rows)[name])  # type: ignore[misc]
                begin = _last(rows, lambda r, name=name: spoiled(0, rows - r)[name])  # type: ignore[misc]
                found[name] = end + 1 - (rows - begin - 1)
        if math.inf not in found.values():
            break
    return found


def _last(rows: int, holds: functools.partial[bool]) -> int:
    """The last r in 0 .. rows - 1 that something holds for, which holds for all before."""
    low, high = 0, rows
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
