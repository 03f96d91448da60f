"""RoIAlign of rotated boxes."""

from collections.abc import Sequence

from torch import Tensor

from .inputs import Boxes
from .pool import pool
from .spec import ROTATED


def roi_align_rotated(
    input: Tensor,
    boxes: Boxes,
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    sampling_ratio: int | Sequence[int] = -1,
    *,
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    """RoIAlign of rotated boxes (Ma et al., arXiv:1703.01086, with bilinear points), as in Detectron2.

    The bins and points of an aligned :func:`roi_align`, turned about the box's centre.

    Args:
        input, output_size, spatial_scale, sampling_ratio, backend: see :func:`pool`.
        boxes: (K, 6) rows (image index, x centre, y centre, width, height, angle), or a list of N tensors (L, 5), in
            pixels and degrees; positive angles turn counter-clockwise as the image is seen, y pointing down.
        reduction: "mean" or "max" over a bin's points.

    Returns:
        (K, C, height, width), dtype of ``input``; differentiable with respect to ``input`` and boxes, angle included.

    Raises:
        TypeError, ValueError, BackendError: as :func:`pool`. On the reference backend also for adaptive sampling of
            boxes so large that a bin takes more than 64 points along an axis, or in a traced graph, where the number of
            points must be known.
    """
    return pool(
        input,
        boxes,
        output_size,
        spatial_scale,
        bins=ROTATED,
        reduction=reduction,
        sampling_ratio=sampling_ratio,
        backend=backend,
    )
