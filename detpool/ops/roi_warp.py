"""RoIWarp: bilinear samples in a rounded box."""

from collections.abc import Sequence

from torch import Tensor

from . import bins
from . import boxes as box_formats
from .reductions import maximum, mean
from .sampled import Sampled
from .sampling import POINTS


def roi_warp(
    input: Tensor,
    boxes: box_formats.Boxes,
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    *,
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    """RoIWarp of multi-task network cascades (Dai et al., arXiv:1512.04412, section 3.2).

    The box is rounded as in :func:`roi_pool`; bins and bilinear points within it are continuous, as in
    :func:`roi_align`.

    Args:
        input: features (N, C, H, W), floating.
        boxes: (K, 5) rows (image index, x1, y1, x2, y2), or a list of N tensors (L, 4), in pixels; ``x1 <= x2``,
            ``y1 <= y2``.
        output_size: bins as (height, width), or one integer for both.
        spatial_scale: feature cells per pixel of box coordinates.
        sampling_ratio: points a bin along each axis; zero or less: as many as the bin has cells, rounded up.
        reduction: "mean" or "max" over a bin's points.
        backend: backend by name; None takes the first that can serve the call.

    Returns:
        (K, C, height, width), dtype and memory format of ``input``. Boxes get no gradient: they are rounded.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, device or value; the message names it.
        BackendError: ``backend`` cannot serve the call.
    """
    if reduction not in ("mean", "max"):
        raise ValueError(f"reduction must be 'mean' or 'max', got {reduction!r}")
    batch, coords, size, scale = box_formats.prepare(input, boxes, output_size, spatial_scale)
    samples = Sampled(input, batch, *bins.rounded(coords, scale, size), POINTS, ratio=sampling_ratio, backend=backend)
    return mean(samples) if reduction == "mean" else maximum(samples)
