"""RoIAlign: the mean, or the maximum, of bilinear samples."""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import axes
from . import boxes as box_formats
from .separable import separable_sum


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
    box_formats.check_features(input)
    height, width = box_formats.pair(output_size, "output_size")
    scale = box_formats.check_scale(spatial_scale)
    if reduction not in ("mean", "max"):
        raise ValueError(f"reduction must be 'mean' or 'max', got {reduction!r}")
    batch, coords = box_formats.to_rois(boxes, input)
    edges = coords * scale - (0.5 if aligned else 0.0)
    size = edges[:, 2:] - edges[:, :2]
    if not aligned:
        size = size.clamp(min=1)
    x_bins = axes.continuous_bins(edges[:, 0], size[:, 0], width)
    y_bins = axes.continuous_bins(edges[:, 1], size[:, 1], height)
    if reduction == "mean":
        y = axes.point_taps(y_bins, input.shape[2], sampling_ratio)
        x = axes.point_taps(x_bins, input.shape[3], sampling_ratio).transposed()
        return separable_sum(input, batch, y, x, backend=backend)
    return _maximum(input, batch, y_bins, x_bins, sampling_ratio, backend)


def _maximum(
    input: Tensor, batch: Tensor, y_bins: axes.Bins, x_bins: axes.Bins, sampling_ratio: int, backend: str | None
) -> Tensor:
    """Primitive 1 with one bin a point, then an ordinary maximum over the points of each bin."""
    y = axes.points(y_bins, input.shape[2], sampling_ratio)
    x = axes.points(x_bins, input.shape[3], sampling_ratio)
    k, height, _, rows = y.exists.shape
    width, columns = x.exists.shape[1], x.exists.shape[3]
    y_taps = axes.Taps(y.index.reshape(k, height * rows, 1, 2), y.weight.reshape(k, height * rows, 1, 2))
    x_taps = axes.Taps(x.index.reshape(k, 1, width * columns, 2), x.weight.reshape(k, 1, width * columns, 2))
    values = separable_sum(input, batch, y_taps, x_taps, backend=backend)
    values = values.unflatten(3, (width, columns)).unflatten(2, (height, rows))
    exists = y.exists.view(k, 1, height, rows, 1, 1) & x.exists.view(k, 1, 1, 1, width, columns)
    values = values.masked_fill(~exists, -torch.inf).transpose(3, 4).flatten(4)
    some = exists.transpose(3, 4).flatten(4).any(dim=4)
    return values.max(dim=4).values.where(some, 0.0)
