"""RoIAlign: the mean, or the maximum, of bilinear samples."""

from collections.abc import Sequence

from torch import Tensor

from .inputs import Boxes
from .pool import pool


def roi_align(
    input: Tensor,
    boxes: Boxes,
    output_size: int | Sequence[int],
    spatial_scale: float | Sequence[float] = 1.0,
    sampling_ratio: int | Sequence[int] = -1,
    aligned: bool = False,
    *,
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    """RoIAlign of Mask R-CNN (He et al., arXiv:1703.06870, section 3), as in torchvision.

    Along each axis ``start = x1 s - 0.5`` if aligned, else ``x1 s``; ``size = (x2 - x1) s``, at least 1 if not aligned.
    Point t of G in bin p of P lies at ``start + (p + (t + 0.5) / G) size / P``. A point more than one cell outside the
    image reads 0 but counts; other points are clamped to the image.

    Args:
        input, boxes, output_size, spatial_scale, backend: see :func:`pool`.
        sampling_ratio: G, points per bin along each axis; zero or less: ``ceil(size / P)`` for each RoI and axis.
        aligned: shift by half a cell, so that integer coordinates are the corners of cells and not their centres.
        reduction: "mean" or "max" over a bin's points, or another name that :func:`pool` knows.

    Returns:
        (K, C, height, width), dtype and memory format of ``input``; differentiable with respect to ``input`` and boxes.

    Raises:
        TypeError, ValueError, BackendError: as :func:`pool`.
    """
    bins = "aligned" if aligned else "at_least_one"
    return pool(
        input,
        boxes,
        output_size,
        spatial_scale,
        bins=bins,
        reduction=reduction,
        sampling_ratio=sampling_ratio,
        backend=backend,
    )
