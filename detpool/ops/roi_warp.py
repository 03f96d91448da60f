"""RoIWarp: bilinear samples in a rounded box."""

from collections.abc import Sequence

from torch import Tensor

from .inputs import Boxes
from .pool import pool


def roi_warp(
    input: Tensor,
    boxes: Boxes,
    output_size: int | Sequence[int],
    spatial_scale: float | Sequence[float] = 1.0,
    sampling_ratio: int | Sequence[int] = -1,
    *,
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    """RoIWarp of multi-task network cascades (Dai et al., arXiv:1512.04412, section 3.2).

    The box is rounded as in :func:`roi_pool`; bins and bilinear points within it are continuous, as in
    :func:`roi_align`.

    Args:
        input, boxes, output_size, spatial_scale, sampling_ratio, backend: see :func:`pool`.
        reduction: "mean" or "max" over a bin's points, or another name that :func:`pool` knows.

    Returns:
        (K, C, height, width), dtype and memory format of ``input``. Boxes get no gradient: they are rounded.

    Raises:
        TypeError, ValueError, BackendError: as :func:`pool`.
    """
    return pool(
        input,
        boxes,
        output_size,
        spatial_scale,
        bins="rounded",
        reduction=reduction,
        sampling_ratio=sampling_ratio,
        backend=backend,
    )
