"""Deformable RoI pooling: every bin is moved by an offset of its own, which gets a gradient."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .inputs import Boxes, check_offsets, check_ratio, pair
from .pool import pool


def deform_roi_pool(
    input: Tensor,
    boxes: Boxes,
    offsets: Tensor,
    output_size: int | Sequence[int],
    spatial_scale: float | Sequence[float] = 1.0,
    sampling_ratio: int | Sequence[int] = -1,
    *,
    trans_std: float = 0.1,
    backend: str | None = None,
) -> Tensor:
    """Deformable RoI pooling (Dai et al., arXiv:1703.06211, section 2.2) with the sampling of :func:`roi_align`.

    Bin (i, j) of an aligned RoIAlign is moved by ``trans_std`` x ``offsets[k, :, i, j]`` x the size of the RoI.

    Args:
        input, boxes, output_size, spatial_scale, sampling_ratio, backend: see :func:`pool`.
        offsets: (K, 2, height, width): along x, then along y.
        trans_std: scale of the offsets.

    Returns:
        (K, C, height, width), dtype and memory format of ``input``; differentiable with respect to ``input``, boxes and
        offsets.

    Raises:
        TypeError, ValueError, BackendError: as :func:`pool`.
    """
    check_offsets(offsets, ("any", 2, "any", "any"))
    return pool(
        input,
        boxes,
        output_size,
        spatial_scale,
        sampling_ratio=sampling_ratio,
        offsets=offsets * trans_std,
        backend=backend,
    )


def deform_ps_roi_pool(
    input: Tensor,
    boxes: Boxes,
    offsets: Tensor | None,
    output_size: int | Sequence[int],
    spatial_scale: float | Sequence[float] = 1.0,
    *,
    sample_per_part: int = 4,
    trans_std: float = 0.1,
    backend: str | None = None,
) -> Tensor:
    """Deformable position-sensitive RoI pooling (Dai et al., arXiv:1703.06211, section 2.2), as in its code and MXNet.

    The box of R-FCN, ``start = round(x1) s - 0.5``, ``size = max((round(x2) + 1) s - 0.5 - start, 0.1)``; each bin
    moved by ``trans_std`` x offset x size; the mean of the bilinear points ``start + t / n x bin`` that lie within half
    a cell of the image.

    Args:
        input: features (N, C, H, W), floating; C divisible by height x width of the output.
        boxes, output_size, spatial_scale, backend: see :func:`pool`.
        offsets: (K, 2, part_height, part_width), along x, then along y; bin i takes part ``floor(i part_height /
            height)``. None: no bin moves.
        sample_per_part: n, points per bin along each axis.
        trans_std: scale of the offsets.

    Returns:
        (K, C / (height width), height, width), dtype and memory format of ``input``; differentiable with respect to
        ``input`` and offsets. Boxes get no gradient: they are rounded.

    Raises:
        TypeError, ValueError, BackendError: as :func:`pool`.
    """
    size = pair(output_size, "output_size")
    if check_ratio(sample_per_part, "sample_per_part") < 1:
        raise ValueError(f"sample_per_part must be at least 1, got {sample_per_part!r}")
    if offsets is not None:
        check_offsets(offsets, ("any", 2, "any", "any"))
        parts = offsets.shape[2:]
        rows, columns = (torch.arange(n, device=offsets.device) * p // n for n, p in zip(size, parts, strict=True))
        offsets = offsets[:, :, rows][:, :, :, columns] * trans_std
    return pool(
        input,
        boxes,
        size,
        spatial_scale,
        bins="rfcn_centered",
        sampling="counted_points",
        channels="position_sensitive",
        sampling_ratio=sample_per_part,
        offsets=offsets,
        backend=backend,
    )
