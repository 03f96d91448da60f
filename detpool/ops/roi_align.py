"""RoIAlign: the mean, or the maximum, of bilinear samples."""

from collections.abc import Sequence

from torch import Tensor

from . import bins
from . import boxes as box_formats
from .reductions import maximum, mean
from .sampled import Sampled
from .sampling import POINTS


def roi_align(
    input: Tensor,
    boxes: box_formats.Boxes,
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
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
        input: features (N, C, H, W), floating.
        boxes: (K, 5) rows (image index, x1, y1, x2, y2), or a list of N tensors (L, 4), in pixels;
            ``x1 <= x2`` and ``y1 <= y2``.
        output_size: bins as (height, width), or one integer for both.
        spatial_scale: feature cells per pixel of box coordinates.
        sampling_ratio: G, points a bin along each axis; zero or less: ``ceil(size / P)`` for each RoI and axis.
        aligned: shift by half a cell, so that integer coordinates are the corners of cells and not their centres.
        reduction: "mean" or "max" over a bin's points.
        backend: backend by name; None takes the first that can serve the call.

    Returns:
        (K, C, height, width), dtype and memory format of ``input``; differentiable with respect to ``input`` and boxes.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, device or value; the message names it.
        BackendError: ``backend`` cannot serve the call.
    """
    if reduction not in ("mean", "max"):
        raise ValueError(f"reduction must be 'mean' or 'max', got {reduction!r}")
    batch, coords, size, scale = box_formats.prepare(input, boxes, output_size, spatial_scale)
    y, x = (bins.aligned if aligned else bins.at_least_one)(coords, scale, size)
    samples = Sampled(input, batch, y, x, POINTS, ratio=sampling_ratio, backend=backend)
    return mean(samples) if reduction == "mean" else maximum(samples)
