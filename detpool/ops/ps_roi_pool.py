"""Position-sensitive RoI pooling: the mean of the cells of each bin, every bin from channels of its own."""

from collections.abc import Sequence

from torch import Tensor

from . import axes, bins
from . import boxes as box_formats
from .sampled import Sampled
from .sampling import CELLS
from .separable import check_groups

CONVENTIONS = ("torchvision", "rfcn")


def ps_roi_pool(
    input: Tensor,
    boxes: box_formats.Boxes,
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    *,
    convention: str = "torchvision",
    backend: str | None = None,
) -> Tensor:
    """Position-sensitive RoI pooling of R-FCN (Dai et al., arXiv:1605.06409, equation 1).

    Output channel c of bin (i, j) is the mean of input channel ``(c PH + i) PW + j`` over the bin's cells, 0 if it has
    none. With C's ``round``, along each axis:

    - ``convention="rfcn"``, the paper's code: ``start = round(x1) s``, ``size = max((round(x2) + 1) s - start, 0.1)``;
      cells ``floor(p bin + start) .. ceil((p + 1) bin + start) - 1`` inside the image;
    - ``convention="torchvision"``: ``start = round(x1 s)``, ``size = max(round(x2 s) - start, 1)``; cells
      ``floor(p bin) + start .. ceil((p + 1) bin) + start - 1``, never the last row or column of the image. The gradient
      is that of this output (torchvision's own backward differs from its forward at the border).

    Args:
        input: features (N, C, H, W), floating; C divisible by height x width of the output.
        boxes: (K, 5) rows (image index, x1, y1, x2, y2), or a list of N tensors (L, 4), in pixels;
            ``x1 <= x2`` and ``y1 <= y2``.
        output_size: bins as (height, width), or one integer for both.
        spatial_scale: feature cells per pixel of box coordinates.
        convention: "torchvision" or "rfcn".
        backend: backend by name; None takes the first that can serve the call.

    Returns:
        (K, C / (height width), height, width), dtype and memory format of ``input``. Boxes get no gradient: they are
        rounded.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, device or value; the message names it.
        BackendError: ``backend`` cannot serve the call.
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"convention must be one of {', '.join(map(repr, CONVENTIONS))}, got {convention!r}")
    batch, coords, size, scale = box_formats.prepare(input, boxes, output_size, spatial_scale)
    check_groups(input.shape[1], size, size)
    if convention == "rfcn":
        return Sampled(input, batch, *bins.rfcn(coords, scale, size), CELLS, groups=size, backend=backend).mean()
    edges = axes.round_half_away(coords * scale)
    extent = (edges[:, 2:] - edges[:, :2]).clamp(min=1)
    y = axes.rounded_bins(edges[:, 1], extent[:, 1], size[0])
    x = axes.rounded_bins(edges[:, 0], extent[:, 0], size[1])
    lengths = (input.shape[2] - 1, input.shape[3] - 1)
    return Sampled(input, batch, y, x, CELLS, groups=size, lengths=lengths, backend=backend).mean()
