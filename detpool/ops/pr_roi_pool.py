"""Precise RoI pooling: the exact mean of the bilinear surface over each bin."""

from collections.abc import Sequence

from torch import Tensor

from .inputs import Boxes
from .pool import pool


def pr_roi_pool(
    input: Tensor,
    boxes: Boxes,
    output_size: int | Sequence[int],
    spatial_scale: float | Sequence[float] = 1.0,
    *,
    aligned: bool = False,
    position_sensitive: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Precise RoI pooling of IoU-Net (Jiang et al., arXiv:1807.11590, equations 4 to 6).

    The features are the surface ``f(x, y) = sum F[i, j] max(0, 1 - |y - i|) max(0, 1 - |x - j|)``, which is zero
    outside the image. Output: the integral of f over the bin divided by the bin's area, 0 with zero gradients for a box
    without area. Nothing is rounded, so the output is continuously differentiable with respect to boxes.

    Args:
        input, boxes, output_size, spatial_scale, backend: see :func:`pool`.
        aligned: shift by half a cell, as in :func:`roi_align`; the paper does not.
        position_sensitive: bin (i, j) reads input channel ``(c PH + i) PW + j`` for output channel c, as
            :func:`ps_roi_pool`.

    Returns:
        (K, C, height, width), or (K, C / (height width), height, width) if position-sensitive; dtype and memory format
        of ``input``; differentiable with respect to ``input`` and boxes.

    Raises:
        TypeError, ValueError, BackendError: as :func:`pool`.
    """
    return pool(
        input,
        boxes,
        output_size,
        spatial_scale,
        bins="aligned" if aligned else "continuous",
        sampling="integral",
        channels="position_sensitive" if position_sensitive else "shared",
        backend=backend,
    )
