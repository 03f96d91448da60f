"""RoIAlign of rotated boxes."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from . import axes
from . import boxes as box_formats
from .separable import separable_sum

MOST_POINTS = 64
"""Points a bin and axis that adaptive sampling may take: a rotated box is not separable, so memory grows with their
square."""


def roi_align_rotated(
    input: Tensor,
    boxes: box_formats.Boxes,
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    *,
    backend: str | None = None,
) -> Tensor:
    """RoIAlign of rotated boxes (Ma et al., arXiv:1703.01086, with bilinear points), as in Detectron2.

    The bins and points of an aligned :func:`roi_align`, turned about the box's centre.

    Args:
        input: features (N, C, H, W), floating.
        boxes: (K, 6) rows (image index, x centre, y centre, width, height, angle), or a list of N tensors (L, 5), in
            pixels and degrees; positive angles turn counter-clockwise as the image is seen, y pointing down.
        output_size: bins as (height, width), or one integer for both.
        spatial_scale: feature cells per pixel of box coordinates.
        sampling_ratio: points a bin along each axis; zero or less: as many as the bin has cells, rounded up.
        backend: backend by name; None takes the first that can serve the call.

    Returns:
        (K, C, height, width), dtype of ``input``; differentiable with respect to ``input`` and boxes, angle included.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, device or value; the message names it. Adaptive
            sampling of boxes so large that a bin takes more than 64 points along an axis, or in a traced graph, where
            the number of points must be known.
        BackendError: ``backend`` cannot serve the call.
    """
    box_formats.check_features(input)
    height, width = box_formats.pair(output_size, "output_size")
    scale = box_formats.check_scale(spatial_scale)
    batch, coords = box_formats.to_rois(boxes, input, coordinates=5)
    centre = coords[:, :2] * scale - 0.5
    extent = coords[:, 2:4] * scale
    # Bins of the box before it is turned, relative to its centre; a length that no point leaves keeps all of them.
    y, y_exists, y_count = _positions(extent[:, 1], height, sampling_ratio)
    x, x_exists, x_count = _positions(extent[:, 0], width, sampling_ratio)
    angle = coords[:, 4, None, None] * (math.pi / 180)
    along_y, along_x = y.flatten(1)[:, :, None], x.flatten(1)[:, None]
    rows = along_y * angle.cos() - along_x * angle.sin() + centre[:, 1, None, None]
    columns = along_y * angle.sin() + along_x * angle.cos() + centre[:, 0, None, None]
    reads = y_exists.flatten(1)[:, :, None] & x_exists.flatten(1)[:, None]
    for positions, length in ((rows, input.shape[2]), (columns, input.shape[3])):
        reads = reads & (positions >= -1) & (positions <= length)
    y_taps = axes.bilinear_taps(rows, reads, input.shape[2])
    x_taps = axes.bilinear_taps(columns, reads, input.shape[3])
    y_taps = axes.Taps(y_taps.index, y_taps.weight / y_count[:, None, None, None])
    x_taps = axes.Taps(x_taps.index, x_taps.weight / x_count[:, None, None, None])
    values = separable_sum(input, batch, y_taps, x_taps, backend=backend)
    return values.unflatten(3, (width, -1)).unflatten(2, (height, -1)).sum(dim=(3, 5))


def _positions(extent: Tensor, bins: int, ratio: int) -> tuple[Tensor, Tensor, Tensor]:
    """(K, P, G) points relative to the centre, which of them exist, and (K,) how many a bin has."""
    step = extent / bins
    if ratio > 0:
        count, most = torch.full_like(step, ratio), ratio
    elif torch.compiler.is_compiling():
        raise ValueError("sampling_ratio must be positive where roi_align_rotated is traced")
    else:
        count = axes.ceil(step)
        most = max(1, int(count.max())) if count.numel() else 1
        if most > MOST_POINTS:
            raise ValueError(
                f"boxes need {most} points a bin along one axis, more than {MOST_POINTS}: set a positive sampling_ratio"
            )
    number = torch.arange(most, dtype=step.dtype, device=step.device)
    exists = (number < count[:, None])[:, None].expand(-1, bins, -1)
    count = count.clamp(min=1)
    start = -extent / 2
    lower = start[:, None] + torch.arange(bins, dtype=step.dtype, device=step.device) * step[:, None]
    return lower[:, :, None] + ((number + 0.5) * step[:, None] / count[:, None])[:, None], exists, count
