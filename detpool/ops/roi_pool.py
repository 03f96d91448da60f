"""RoI max pooling."""

from collections.abc import Sequence

from torch import Tensor

from . import bins
from . import boxes as box_formats
from .reductions import maximum
from .sampled import Sampled
from .sampling import CELLS


def roi_pool(
    input: Tensor,
    boxes: box_formats.Boxes,
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    *,
    backend: str | None = None,
) -> Tensor:
    """RoI max pooling of Fast R-CNN (Girshick, arXiv:1504.08083, section 2.1), as in its Caffe code and torchvision.

    Along each axis, with C's ``round``: ``start = round(x1 s)``, ``size = max(round(x2 s) - start + 1, 1)``; bin p of P
    is the cells ``floor(p size / P) + start .. ceil((p + 1) size / P) + start - 1`` inside the image. Output: the
    maximum, 0 for a bin without cells; its gradient goes to the first maximum in row-major order. Boxes get no
    gradient: they are rounded.

    Args:
        input: features (N, C, H, W), floating.
        boxes: (K, 5) rows (image index, x1, y1, x2, y2), or a list of N tensors (L, 4), in pixels;
            ``x1 <= x2`` and ``y1 <= y2``.
        output_size: bins as (height, width), or one integer for both.
        spatial_scale: feature cells per pixel of box coordinates.
        backend: backend by name; None takes the first that can serve the call.

    Returns:
        (K, C, height, width), dtype and memory format of ``input``.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, device or value; the message names it.
        BackendError: ``backend`` cannot serve the call.
    """
    batch, coords, size, scale = box_formats.prepare(input, boxes, output_size, spatial_scale)
    return maximum(Sampled(input, batch, *bins.rounded(coords, scale, size), CELLS, backend=backend))
