"""The operators as ONNX programs, for ONNX Runtime and others that read these.

A traced program holds the registered operators of this package. Here each is said in operations that ONNX has:
RoIAlign and RoIPool are ONNX's own, other means are products of matrices, other maxima gather what bins read. Numbers
of RoIs and images and sizes of maps may vary, zero RoIs among them.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.onnx.ops import symbolic

from .backends import reference
from .inputs import _checked_rois
from .layout import sum_dtype
from .levels import _assign_levels, levels_of
from .sampling import SAMPLING, Points, Taps
from .spec import Spec
from .weighted_sum import _weighted_sum
from .window_max import _window_max

RUNTIME_DTYPES = (torch.float32, torch.float64)
"""Of the features that ONNX Runtime's RoiAlign takes; its MaxRoiPool takes the first alone."""


def export(
    module: torch.nn.Module,
    args: tuple[Any, ...],
    *,
    dynamic_shapes: Any = None,
    **options: Any,
) -> torch.onnx.ONNXProgram:
    """A module that calls operators of this package as an ONNX program, which `program.save(path)` writes.

    Values of RoIs are not inspected there: what is no box, or of an image that does not exist, gives any numbers or an
    error of the runtime. Where no operation of ONNX is the operator, features that are not finite spoil the results of
    other bins too.

    Args:
        module: in evaluation mode, if it has one.
        args: tensors to trace it with, with two images and two RoIs at least where their numbers are to vary.
        dynamic_shapes: which of their sizes vary, as :func:`torch.export.export` takes it; None: none.
        options: further arguments of :func:`torch.onnx.export`, such as ``input_names``.

    Raises:
        ImportError: Without the packages ``onnx`` and ``onnxscript`` (``pip install 'detpool[onnx]'``).
        ValueError: For rotated boxes with adaptive sampling, whose number of points must be known.
    """
    # ONNX knows no strides: a program traced with others than those of contiguous tensors could not be said there.
    args = tuple(a.contiguous() if isinstance(a, Tensor) else a for a in args)
    with torch.no_grad():
        program = torch.export.export(module, args, dynamic_shapes=dynamic_shapes)
        program = program.run_decompositions(DECOMPOSITIONS)
    exported = torch.onnx.export(program, dynamo=True, verbose=False, **options)
    assert exported is not None
    return exported


def _pool_sums(
    maps: Sequence[Tensor], rois: Tensor, levels: Tensor | None, offsets: Tensor | None, text: str, backend: str
) -> Tensor:
    spec = Spec.of(text)

    def pool(features: Tensor, scale: float, rois: Tensor, offsets: Tensor | None) -> Tensor:
        own = replace(spec, scales=(scale,))
        aligns = spec.bins in ("aligned", "at_least_one") and spec.sampling == "points"
        if aligns and offsets is None and spec.group_count == 1 and features.dtype in RUNTIME_DTYPES:
            return _roi_align(features, rois, own)
        return reference.weighted_sum([features], rois, None, offsets, own, sum_taps=_sum_taps)

    return _by_level(pool, maps, rois, levels, offsets, spec)


def _pool_maxima(
    maps: Sequence[Tensor], rois: Tensor, levels: Tensor | None, text: str, backend: str, with_places: bool
) -> tuple[Tensor, Tensor]:
    spec = Spec.of(text)

    def pool(features: Tensor, scale: float, rois: Tensor, _: None) -> Tensor:
        own = replace(spec, scales=(scale,))
        if SAMPLING[spec.sampling].windows is None:
            return _max_of_points(features, rois, own)
        if spec.bins == "rounded" and spec.sampling == "cells" and spec.group_count == 1:
            settings: dict[str, Any] = {"pooled_shape": list(spec.output_size), "spatial_scale": scale}
            shape = (rois.shape[0], features.shape[1], *spec.output_size)
            single = [features.float(), rois.float()]
            return symbolic("MaxRoiPool", single, settings, dtype=torch.float32, shape=shape).to(features.dtype)
        return _max_of_cells(features, rois, own)

    output = _by_level(pool, maps, rois, levels, None, spec)
    return output, output.new_empty(output.shape if with_places else 0, dtype=torch.int64)  # for gradients alone


def _adaptive_maxima(input: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """PyTorch's, of any number of maps: maxima of slices."""
    edges = [[(i * n // p, -(-(i + 1) * n // p)) for i in range(p)] for n, p in zip(input.shape[2:], size, strict=True)]
    rows = torch.stack([input[:, :, first:last].amax(2) for first, last in edges[0]], 2)
    output = torch.stack([rows[..., first:last].amax(3) for first, last in edges[1]], 3)
    return output, output.new_empty(output.shape, dtype=torch.int64)


def _group_norm(
    input: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5, *_: Any
) -> Tensor:
    """PyTorch's, of no maps too: its converter asks for a shape that cannot be told then."""
    parts = input.unflatten(1, (groups, input.shape[1] // groups))
    dims = tuple(range(2, parts.dim()))
    centred = parts - parts.mean(dims, keepdim=True)
    output = (centred * (centred.square().mean(dims, keepdim=True) + eps).rsqrt()).flatten(1, 2)
    scale, shift = (None if t is None else t.view(-1, *[1] * (input.dim() - 2)) for t in (weight, bias))
    output = output if scale is None else output * scale
    return output if shift is None else output + shift


DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    _checked_rois: lambda rois, offsets, images: rois.clone(),
    _assign_levels: lambda boxes, levels, shift, scale, backend: levels_of(boxes, levels, shift, scale),
    _weighted_sum: _pool_sums,
    _window_max: _pool_maxima,
    torch.ops.aten.adaptive_max_pool2d.default: _adaptive_maxima,
    torch.ops.aten.group_norm.default: _group_norm,
}
"""For :meth:`torch.export.ExportedProgram.run_decompositions`: what each registered operator is in others, and those of
PyTorch that its converter does not know, or not of no maps."""


def _by_level(
    pool: Callable[..., Tensor],
    maps: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    offsets: Tensor | None,
    spec: Spec,
) -> Tensor:
    """``pool(features, scale, rois, offsets)`` of the RoIs of each map, in their order."""
    if levels is None:
        return pool(maps[0], spec.scales[0], rois, offsets)
    channels = maps[0].shape[1] // spec.group_count
    output = maps[0].new_zeros((rois.shape[0], channels, *spec.output_size))
    for level, (features, scale) in enumerate(zip(maps, spec.scales, strict=True)):
        rows = (levels == level).nonzero()[:, 0]
        part = pool(features, scale, rois[rows], None if offsets is None else offsets[rows])
        output = output.index_put((rows,), part)
    return output


def _roi_align(features: Tensor, rois: Tensor, spec: Spec) -> Tensor:
    """ONNX's own from opset 16 on, which is torchvision's."""
    settings: dict[str, Any] = {
        "output_height": spec.output_size[0],
        "output_width": spec.output_size[1],
        "sampling_ratio": max(spec.ratio, 0),
        "spatial_scale": spec.scales[0],
        "coordinate_transformation_mode": "half_pixel" if spec.bins == "aligned" else "output_half_pixel",
    }
    inputs = [features, rois[:, 1:], rois[:, 0].to(torch.int64)]
    shape = (rois.shape[0], features.shape[1], *spec.output_size)
    return symbolic("RoiAlign", inputs, settings, dtype=features.dtype, shape=shape)


def _sum_taps(features: Tensor, image: Tensor, y: Taps, x: Taps, groups: tuple[int, int]) -> Tensor:
    """(K, C, PH, PW): the weighted sum of the taps of each bin."""
    dtype = sum_dtype(features.dtype)
    y_index, y_weight = y.index, y.weight.to(dtype)
    x_index, x_weight = (t.transpose(1, 2) for t in (x.index, x.weight.to(dtype)))
    sizes = y.index.shape[3], x.index.shape[3]
    source = features.to(dtype)
    joint = y.index.shape[2] > 1 or x.index.shape[2] > 1
    if joint and all(isinstance(size, int) for size in sizes):
        values = _gather(source, image, y_index, x_index, groups)
        weights = (y_weight[..., :, None] * x_weight[..., None, :]).flatten(3)
        return (values * weights[:, :, :, None]).sum(4).permute(0, 3, 1, 2).to(features.dtype)
    (images, channels, height, width), (rows, columns) = source.shape, groups
    bins_y, bins_x = y.index.shape[1], x.index.shape[1]
    # (K, GH, PH / GH, GW, PW / GW, cells), 1 for the bins of the other axis where it has no part
    down, across = ((rows, bins_y // rows), (columns, bins_x // columns)) if joint else ((1, 1), (1, 1))
    of_rows = _dense(y_index, y_weight, height).reshape(-1, rows, bins_y // rows, *across, height)
    of_columns = _dense(x_index, x_weight, width).reshape(-1, *down, columns, bins_x // columns, width)
    own = (torch.arange(images, device=image.device) == image[:, None]).to(dtype)
    source = source.reshape(images, channels // (rows * columns), rows, columns, height, width)
    lines = torch.einsum("kuivjh,kn,ncuvhw->kuivjcw", of_rows, own, source)
    pooled = torch.einsum("kuivjcw,kuivjw->kcuivj", lines, of_columns)
    return pooled.reshape(-1, channels // (rows * columns), bins_y, bins_x).to(features.dtype)


def _dense(index: Tensor, weight: Tensor, length: int) -> Tensor:
    """Weights (..., length) of all cells along an axis, from those of taps (..., T)."""
    table = weight.new_zeros((*weight.shape[:-1], length + 1))
    return table.scatter_add(-1, torch.where(index < 0, length, index).to(torch.int64), weight)[..., :length]


def _gather(features: Tensor, image: Tensor, y: Tensor, x: Tensor, groups: tuple[int, int]) -> Tensor:
    """(K, PH, PW, C, TY TX): the cells (y, x) that each bin reads, (K, PH, PW or 1, TY) and (K, PH or 1, PW, TX).

    -1 stands for any cell.
    """
    count, (height, width) = groups[0] * groups[1], features.shape[2:]
    i = torch.arange(y.shape[1], device=y.device)[:, None] * groups[0] // y.shape[1]
    j = torch.arange(x.shape[2], device=y.device) * groups[1] // x.shape[2]
    group = (i * groups[1] + j)[:, :, None, None]
    y, x = (t.clamp(min=0).to(torch.int64) for t in (y, x))
    cell = (image[:, None, None, None, None] * height + y[..., :, None]) * width + x[..., None, :]
    cell = (cell * count + group).flatten(3)  # (K, PH, PW, TY TX)
    vectors = features.unflatten(1, (-1, count)).permute(0, 3, 4, 2, 1).flatten(0, 3)  # (N H W groups, C)
    return vectors[cell].transpose(3, 4)


def _max_of_cells(features: Tensor, rois: Tensor, spec: Spec) -> Tensor:
    lengths = (features.shape[2], features.shape[3])
    windows = SAMPLING[spec.sampling].windows
    assert windows is not None
    axes = []
    for bins, length in zip(reference.bins_of(spec, rois, None, spec.scales[0], lengths), lengths, strict=True):
        first, last = windows(bins, length, spec.ratio)[:, :, 0].unbind(-1)
        cells = first[..., None] + torch.arange(_most(last - first), device=first.device)
        axes.append(torch.where(cells < last[..., None], cells, -1))
    y, x = axes[0][:, :, None], axes[1][:, None]
    values = _gather(features, rois[:, 0].to(torch.int64), y, x, spec.groups)
    return _largest(values, ((y >= 0)[..., :, None] & (x >= 0)[..., None, :]).flatten(3))


def _max_of_points(features: Tensor, rois: Tensor, spec: Spec) -> Tensor:
    rows, columns = spec.output_size
    if spec.ratio > 0:
        # point t of a bin is the one point of the t-th of equal parts of the bin
        size = (rows * spec.ratio, columns * spec.ratio)
        grid = _pool_sums([features], rois, None, None, replace(spec, output_size=size, ratio=1).text, "")
        return torch.nn.functional.max_pool2d(grid, spec.ratio)
    lengths, parts = (features.shape[2], features.shape[3]), []
    bins = reference.bins_of(spec, rois, None, spec.scales[0], lengths)
    for points in reference.points_of(spec, *bins, lengths):
        most = _most(points.exists.sum(3))
        index, weight, exists = (t[:, :, :, :most] for t in (points.index, points.weight, points.exists))
        parts.append(Points(index, weight, exists, points.count))
    y, x = parts
    # each point a bin of its own
    taps = [Taps(axis.index.flatten(1, 3)[:, :, None], axis.weight.flatten(1, 3)[:, :, None]) for axis in parts]
    values = _sum_taps(features, rois[:, 0].to(torch.int64), taps[0], taps[1], spec.groups)
    values = values.unflatten(3, (columns, -1)).unflatten(2, (rows, -1)).permute(0, 2, 4, 1, 3, 5).flatten(4)
    return _largest(values, (y.exists[:, :, :, :, None] & x.exists.transpose(1, 2)[:, :, :, None]).flatten(3))


def _largest(values: Tensor, exists: Tensor) -> Tensor:
    """(K, C, PH, PW): the largest of (K, PH, PW, C, G) that exist, (K, PH, PW, G); 0 where none does."""
    largest = torch.where(exists[:, :, :, None], values, -torch.inf).amax(4)
    return torch.where(exists.any(3)[..., None], largest, 0.0).permute(0, 3, 1, 2)


def _most(count: Tensor) -> int:
    """The largest of numbers, at least 1: a size that follows the values of boxes when the program runs."""
    some = torch.cat([count.flatten().to(torch.int64), torch.ones(1, dtype=torch.int64, device=count.device)])
    most: int = some.max().item()  # type: ignore[assignment]
    torch._check(most >= 1)
    return most
