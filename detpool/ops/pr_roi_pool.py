"""Precise RoI pooling: the exact mean of the bilinear surface over each bin."""

from collections.abc import Sequence

from torch import Tensor

from . import bins
from . import boxes as box_formats
from .sampled import Sampled
from .sampling import INTEGRAL
from .separable import check_groups


def pr_roi_pool(
    input: Tensor,
    boxes: box_formats.Boxes,
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
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
        input: features (N, C, H, W), floating.
        boxes: (K, 5) rows (image index, x1, y1, x2, y2), or a list of N tensors (L, 4), in pixels;
            ``x1 <= x2`` and ``y1 <= y2``.
        output_size: bins as (height, width), or one integer for both.
        spatial_scale: feature cells per pixel of box coordinates.
        aligned: shift by half a cell, as in :func:`roi_align`; the paper does not.
        position_sensitive: bin (i, j) reads input channel ``(c PH + i) PW + j`` for output channel c, as
            :func:`ps_roi_pool`.
        backend: backend by name; None takes the first that can serve the call.

    Returns:
        (K, C, height, width), or (K, C / (height width), height, width) if position-sensitive; dtype and memory format
        of ``input``; differentiable with respect to ``input`` and boxes.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, device or value; the message names it.
        BackendError: ``backend`` cannot serve the call.
    """
    batch, coords, size, scale = box_formats.prepare(input, boxes, output_size, spatial_scale)
    groups = size if position_sensitive else (1, 1)
    check_groups(input.shape[1], size, groups)
    y, x = (bins.aligned if aligned else bins.continuous)(coords.to(INTEGRAL.dtype), scale, size)
    return Sampled(input, batch, y, x, INTEGRAL, groups=groups, backend=backend).mean()
