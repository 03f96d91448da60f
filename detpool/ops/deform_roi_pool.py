"""Deformable RoI pooling: every bin is moved by an offset of its own, which gets a gradient."""

from collections.abc import Sequence

from torch import Tensor

from . import axes, bins
from . import boxes as box_formats
from .sampled import Sampled
from .sampling import COUNTED_POINTS, POINTS
from .separable import check_groups


def deform_roi_pool(
    input: Tensor,
    boxes: box_formats.Boxes,
    offsets: Tensor,
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    *,
    trans_std: float = 0.1,
    backend: str | None = None,
) -> Tensor:
    """Deformable RoI pooling (Dai et al., arXiv:1703.06211, section 2.2) with the sampling of :func:`roi_align`.

    Bin (i, j) of an aligned RoIAlign is moved by ``trans_std`` x ``offsets[k, :, i, j]`` x the size of the RoI.

    Args:
        input: features (N, C, H, W), floating.
        boxes: (K, 5) rows (image index, x1, y1, x2, y2), or a list of N tensors (L, 4), in pixels; ``x1 <= x2``,
            ``y1 <= y2``.
        offsets: (K, 2, height, width): along x, then along y.
        output_size: bins as (height, width), or one integer for both.
        spatial_scale: feature cells per pixel of box coordinates.
        sampling_ratio: points a bin along each axis; zero or less: as many as the bin has cells, rounded up.
        trans_std: scale of the offsets.
        backend: backend by name; None takes the first that can serve the call.

    Returns:
        (K, C, height, width), dtype and memory format of ``input``; differentiable with respect to ``input``, boxes and
        offsets.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, device or value; the message names it.
        BackendError: ``backend`` cannot serve the call.
    """
    batch, coords, size, scale = box_formats.prepare(input, boxes, output_size, spatial_scale)
    offsets = _check_offsets(offsets, coords, (coords.shape[0], 2, *size))
    y, x = bins.aligned(coords, scale, size)
    extent = (coords[:, 2:] - coords[:, :2]) * scale
    y, x = bins.shift_by(y, x, offsets * trans_std, extent)
    return Sampled(input, batch, y, x, POINTS, ratio=sampling_ratio, backend=backend).mean()


def deform_ps_roi_pool(
    input: Tensor,
    boxes: box_formats.Boxes,
    offsets: Tensor | None,
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
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
        boxes: (K, 5) rows (image index, x1, y1, x2, y2), or a list of N tensors (L, 4), in pixels; ``x1 <= x2``,
            ``y1 <= y2``.
        offsets: (K, 2, part_height, part_width), along x, then along y; bin i takes part ``floor(i part_height /
            height)``.
            None: no bin moves.
        output_size: bins as (height, width), or one integer for both.
        spatial_scale: feature cells per pixel of box coordinates.
        sample_per_part: n, points a bin along each axis.
        trans_std: scale of the offsets.
        backend: backend by name; None takes the first that can serve the call.

    Returns:
        (K, C / (height width), height, width), dtype and memory format of ``input``; differentiable with respect to
        ``input`` and offsets. Boxes get no gradient: they are rounded.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, device or value; the message names it.
        BackendError: ``backend`` cannot serve the call.
    """
    batch, coords, size, scale = box_formats.prepare(input, boxes, output_size, spatial_scale)
    check_groups(input.shape[1], size, size)
    if sample_per_part < 1:
        raise ValueError(f"sample_per_part must be at least 1, got {sample_per_part!r}")
    start, extent = bins.rfcn_box(coords, scale)
    y = axes.continuous_bins(start[:, 1] - 0.5, extent[:, 1], size[0])
    x = axes.continuous_bins(start[:, 0] - 0.5, extent[:, 0], size[1])
    if offsets is not None:
        offsets = _check_offsets(offsets, coords, (coords.shape[0], 2, None, None))
        rows, columns = (
            axes.part_of_bins(bins_of_axis, parts, coords.device)
            for bins_of_axis, parts in zip(size, offsets.shape[2:], strict=True)
        )
        y, x = bins.shift_by(y, x, offsets[:, :, rows][:, :, :, columns] * trans_std, extent)
    samples = Sampled(input, batch, y, x, COUNTED_POINTS, ratio=sample_per_part, groups=size, backend=backend)
    return samples.mean()


def _check_offsets(offsets: Tensor, coords: Tensor, shape: tuple[int | None, ...]) -> Tensor:
    wanted = tuple("any" if n is None else n for n in shape)
    if not isinstance(offsets, Tensor) or not offsets.is_floating_point():
        kind = offsets.dtype if isinstance(offsets, Tensor) else type(offsets).__name__
        raise TypeError(f"offsets must be a floating tensor of shape {wanted}, got {kind}")
    fits = offsets.dim() == 4 and all(n in (None, m) for n, m in zip(shape, offsets.shape, strict=True))
    if not fits or 0 in offsets.shape[1:]:
        raise ValueError(f"offsets must have shape {wanted}, got {tuple(offsets.shape)}")
    if offsets.device != coords.device:
        raise ValueError(f"offsets must be on the device of input, {coords.device}, got {offsets.device}")
    return offsets.to(coords.dtype)
