"""RoI max pooling."""

from collections.abc import Sequence

from torch import Tensor

from .inputs import Boxes
from .pool import pool


def roi_pool(
    input: Tensor,
    boxes: Boxes,
    output_size: int | Sequence[int],
    spatial_scale: float | Sequence[float] = 1.0,
    *,
    backend: str | None = None,
) -> Tensor:
    """RoI max pooling of Fast R-CNN (Girshick, arXiv:1504.08083, section 2.1), as in its Caffe code and torchvision.

    Along each axis, with C's ``round``: ``start = round(x1 s)``, ``size = max(round(x2 s) - start + 1, 1)``; bin p of P
    is the cells ``floor(p size / P) + start .. ceil((p + 1) size / P) + start - 1`` inside the image. Output: the
    maximum, 0 for a bin without cells; its gradient goes to the first maximum in row-major order. Boxes get no
    gradient: they are rounded.

    Args:
        input, boxes, output_size, spatial_scale, backend: see :func:`pool`.

    Returns:
        (K, C, height, width), dtype and memory format of ``input``.

    Raises:
        TypeError, ValueError, BackendError: as :func:`pool`.
    """
    return pool(
        input, boxes, output_size, spatial_scale, bins="rounded", sampling="cells", reduction="max", backend=backend
    )
