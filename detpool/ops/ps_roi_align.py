"""Position-sensitive RoIAlign: bilinear samples, every bin from channels of its own."""

from collections.abc import Sequence

from torch import Tensor

from . import bins
from . import boxes as box_formats
from .reductions import maximum, mean
from .sampled import Sampled
from .sampling import POINTS
from .separable import check_groups


def ps_roi_align(
    input: Tensor,
    boxes: box_formats.Boxes,
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    *,
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    """Position-sensitive RoIAlign (Li et al., Light-Head R-CNN, arXiv:1711.07264), as in torchvision.

    :func:`roi_align` with ``aligned=True`` in which output channel c of bin (i, j) reads input channel ``(c PH + i) PW
    + j``. A box without extent gives 0 with adaptive sampling (torchvision: NaN).

    Args:
        input: features (N, C, H, W), floating; C divisible by height x width of the output.
        boxes: (K, 5) rows (image index, x1, y1, x2, y2), or a list of N tensors (L, 4), in pixels; ``x1 <= x2``,
            ``y1 <= y2``.
        output_size: bins as (height, width), or one integer for both.
        spatial_scale: feature cells per pixel of box coordinates.
        sampling_ratio: points a bin along each axis; zero or less: as many as the bin has cells, rounded up.
        reduction: "mean" or "max" over a bin's points.
        backend: backend by name; None takes the first that can serve the call.

    Returns:
        (K, C / (height width), height, width), dtype and memory format of ``input``; differentiable with respect to
        ``input`` and boxes.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, device or value; the message names it.
        BackendError: ``backend`` cannot serve the call.
    """
    if reduction not in ("mean", "max"):
        raise ValueError(f"reduction must be 'mean' or 'max', got {reduction!r}")
    batch, coords, size, scale = box_formats.prepare(input, boxes, output_size, spatial_scale)
    check_groups(input.shape[1], size, size)
    y, x = bins.aligned(coords, scale, size)
    samples = Sampled(input, batch, y, x, POINTS, ratio=sampling_ratio, groups=size, backend=backend)
    return mean(samples) if reduction == "mean" else maximum(samples)
