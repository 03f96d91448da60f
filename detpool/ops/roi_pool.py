"""RoI max pooling."""

from collections.abc import Sequence

from torch import Tensor

from . import axes
from . import boxes as box_formats
from .window_max import window_max


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
    box_formats.check_features(input)
    height, width = box_formats.pair(output_size, "output_size")
    scale = box_formats.check_scale(spatial_scale)
    batch, coords = box_formats.to_rois(boxes, input)
    edges = axes.round_half_away(coords.detach() * scale)
    size = (edges[:, 2:] - edges[:, :2] + 1).clamp(min=1)
    x_bins = axes.rounded_bins(edges[:, 0], size[:, 0], width)
    y_bins = axes.rounded_bins(edges[:, 1], size[:, 1], height)
    y_windows = axes.cell_windows(y_bins, input.shape[2])[:, :, 0]
    x_windows = axes.cell_windows(x_bins, input.shape[3])[:, :, 0]
    return window_max(input, batch, y_windows, x_windows, backend=backend)
