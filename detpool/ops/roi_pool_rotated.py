"""RoI max pooling of rotated boxes."""

from collections.abc import Sequence

from torch import Tensor

from .inputs import Boxes
from .pool import pool
from .spec import ROTATED


def roi_pool_rotated(
    input: Tensor,
    boxes: Boxes,
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    *,
    backend: str | None = None,
) -> Tensor:
    """RoI max pooling of rotated boxes (Ma et al., arXiv:1703.01086, algorithm 1).

    A bin of h x w cells, along the sides of the box, has ``ceil(h) x ceil(w)`` points, evenly spread; each reads the
    cell that it lies in, and those outside the image none. Output: the maximum, 0 for a bin without cells. The paper
    takes pixel coordinates for the centres of cells, half a cell from here, where they are as in an aligned RoIAlign.

    Args:
        input, output_size, spatial_scale, backend: see :func:`pool`.
        boxes: as :func:`roi_align_rotated`.

    Returns:
        (K, C, height, width), dtype of ``input``; differentiable with respect to ``input``. Boxes get no gradient:
        positions are rounded.

    Raises:
        TypeError, ValueError, BackendError: as :func:`roi_align_rotated` with adaptive sampling.
    """
    return pool(
        input, boxes, output_size, spatial_scale, bins=ROTATED, sampling="cells", reduction="max", backend=backend
    )
