"""Position-sensitive RoI pooling: the mean of the cells of each bin, every bin from channels of its own."""

from collections.abc import Sequence

from torch import Tensor

from .inputs import Boxes
from .pool import pool

BINS_OF_CONVENTION = {"torchvision": "ps_rounded", "rfcn": "rfcn"}


def ps_roi_pool(
    input: Tensor,
    boxes: Boxes,
    output_size: int | Sequence[int],
    spatial_scale: float | Sequence[float] = 1.0,
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
        boxes, output_size, spatial_scale, backend: see :func:`pool`.
        convention: "torchvision" or "rfcn".

    Returns:
        (K, C / (height width), height, width), dtype and memory format of ``input``. Boxes get no gradient: they are
        rounded.

    Raises:
        TypeError, ValueError, BackendError: as :func:`pool`.
    """
    if convention not in BINS_OF_CONVENTION:
        raise ValueError(f"convention must be one of {', '.join(map(repr, BINS_OF_CONVENTION))}, got {convention!r}")
    return pool(
        input,
        boxes,
        output_size,
        spatial_scale,
        bins=BINS_OF_CONVENTION[convention],
        sampling="cells",
        channels="position_sensitive",
        backend=backend,
    )
