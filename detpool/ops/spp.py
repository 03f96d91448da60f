"""Spatial pyramid pooling of RoIs."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .inputs import Boxes, pair
from .roi_pool import roi_pool


def spp(
    input: Tensor,
    boxes: Boxes,
    levels: Sequence[int | Sequence[int]] = (1, 2, 3, 6),
    spatial_scale: float | Sequence[float] = 1.0,
    *,
    backend: str | None = None,
) -> Tensor:
    """Spatial pyramid pooling over RoIs: RoI max pooling on several grids.

    He et al., SPP-Net, arXiv:1406.4729, section 4.

    Args:
        input, boxes, spatial_scale, backend: see :func:`pool`.
        levels: the grids, each an integer or (height, width); SPP-Net's detector has 1, 2, 3 and 6.

    Returns:
        (K, C, bins of all grids): grid after grid, each in row-major order; dtype of ``input``.

    Raises:
        TypeError, ValueError, BackendError: as :func:`pool`.
    """
    grids = grids_of(levels)
    return torch.cat([roi_pool(input, boxes, grid, spatial_scale, backend=backend).flatten(2) for grid in grids], dim=2)


def grids_of(levels: Sequence[int | Sequence[int]]) -> list[tuple[int, int]]:
    """The grids of a spatial pyramid, at least one, as (height, width). Raises ValueError if they are not such."""
    if not isinstance(levels, Sequence) or isinstance(levels, str) or len(levels) == 0:
        raise ValueError(f"levels must be a sequence of at least one grid, got {levels!r}")
    return [pair(level, "levels") for level in levels]
