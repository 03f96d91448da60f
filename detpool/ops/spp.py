"""Spatial pyramid pooling of RoIs."""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import boxes as box_formats
from .roi_pool import roi_pool


def spp(
    input: Tensor,
    boxes: box_formats.Boxes,
    levels: Sequence[int | Sequence[int]] = (1, 2, 3, 6),
    spatial_scale: float = 1.0,
    *,
    backend: str | None = None,
) -> Tensor:
    """Spatial pyramid pooling over RoIs (He et al., SPP-Net, arXiv:1406.4729, section 4): RoI max pooling on several
    grids.

    Args:
        input: features (N, C, H, W), floating.
        boxes: (K, 5) rows (image index, x1, y1, x2, y2), or a list of N tensors (L, 4), in pixels; ``x1 <= x2``,
            ``y1 <= y2``.
        levels: the grids, each an integer or (height, width); SPP-Net's detector has 1, 2, 3 and 6.
        spatial_scale: feature cells per pixel of box coordinates.
        backend: backend by name; None takes the first that can serve the call.

    Returns:
        (K, C, bins of all grids): grid after grid, each in row-major order; dtype of ``input``.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, device or value; the message names it.
        BackendError: ``backend`` cannot serve the call.
    """
    if not isinstance(levels, Sequence) or len(levels) == 0:
        raise ValueError(f"levels must be a sequence of at least one grid, got {levels!r}")
    sizes = [box_formats.pair(level, "levels") for level in levels]
    return torch.cat([roi_pool(input, boxes, size, spatial_scale, backend=backend).flatten(2) for size in sizes], dim=2)
