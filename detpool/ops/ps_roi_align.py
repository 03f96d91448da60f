"""Position-sensitive RoIAlign: bilinear samples, every bin from channels of its own."""

from collections.abc import Sequence

from torch import Tensor

from .inputs import Boxes
from .pool import pool


def ps_roi_align(
    input: Tensor,
    boxes: Boxes,
    output_size: int | Sequence[int],
    spatial_scale: float | Sequence[float] = 1.0,
    sampling_ratio: int | Sequence[int] = -1,
    *,
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    """Position-sensitive RoIAlign (Li et al., Light-Head R-CNN, arXiv:1711.07264), as in torchvision.

    :func:`roi_align` with ``aligned=True`` in which output channel c of bin (i, j) reads input channel ``(c PH + i) PW
    + j``. A box without extent gives 0 with adaptive sampling (torchvision: NaN).

    Args:
        input: features (N, C, H, W), floating; C divisible by height x width of the output.
        boxes, output_size, spatial_scale, sampling_ratio, backend: see :func:`pool`.
        reduction: "mean" or "max" over a bin's points, or another name that :func:`pool` knows.

    Returns:
        (K, C / (height width), height, width), dtype and memory format of ``input``; differentiable with respect to
        ``input`` and boxes.

    Raises:
        TypeError, ValueError, BackendError: as :func:`pool`.
    """
    return pool(
        input,
        boxes,
        output_size,
        spatial_scale,
        channels="position_sensitive",
        reduction=reduction,
        sampling_ratio=sampling_ratio,
        backend=backend,
    )
