"""Precise RoI pooling: the exact mean of the bilinear surface over each bin."""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import axes
from . import boxes as box_formats
from .separable import check_groups, separable_sum


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
    box_formats.check_features(input)
    height, width = box_formats.pair(output_size, "output_size")
    groups = (height, width) if position_sensitive else (1, 1)
    check_groups(input.shape[1], (height, width), groups)
    scale = box_formats.check_scale(spatial_scale)
    batch, coords = box_formats.to_rois(boxes, input)
    # The weights are differences of numbers that grow with the coordinates: float64 keeps them exact for tiny boxes.
    edges = coords.to(torch.float64) * scale - (0.5 if aligned else 0.0)
    size = edges[:, 2:] - edges[:, :2]
    y = axes.integral_taps(axes.continuous_bins(edges[:, 1], size[:, 1], height), input.shape[2])
    x = axes.integral_taps(axes.continuous_bins(edges[:, 0], size[:, 0], width), input.shape[3]).transposed()
    y, x = (axes.Taps(taps.index, taps.weight.to(coords.dtype)) for taps in (y, x))
    return separable_sum(input, batch, y, x, groups=groups, backend=backend)
