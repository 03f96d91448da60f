"""The two primitives on a GPU: what the kernels of ``launch`` write to, and what stands around them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d, pad

from ...inputs import check_values, checks_values
from ...layout import is_channels_last, memory_format, sum_dtype
from ...sampling import argmax_dtype
from ...spec import Spec
from ..reference import POINT_BITS
from . import launch

Shapes = Sequence[tuple[int, int, int, int]]

READS = 3
"""Times that position-sensitive bins read a map until copying it pays. A copy goes through memory, while neighboring
bins share cells and sectors, which stay in the L1 cache. Nothing is shared by atomic additions: they pay at once."""

SMALL = 2**20
"""Numbers of a feature map that is always read as it lies: copying it would take longer than it saves."""


def weighted_sum(
    maps: Sequence[Tensor], rois: Tensor, levels: Tensor | None, offsets: Tensor | None, spec: Spec
) -> Tensor:
    """See :func:`detpool.ops.weighted_sum.weighted_sum`."""
    _check(rois, offsets, maps[0].shape[0])
    last = is_channels_last(maps[0])
    maps = [_to_read(features, rois, spec) for features in maps]
    out = _empty_pooled(maps[0], len(rois), spec, last)
    if out.numel():
        for level, features in enumerate(maps):
            launch.weighted_sum(out, features, launch.Call(rois, levels, offsets, spec, level))
    return out.contiguous(memory_format=memory_format(last))


def weighted_sum_of_grad(
    grad: Tensor,
    rois: Tensor,
    levels: Tensor | None,
    offsets: Tensor | None,
    shapes: Shapes,
    channels_last: Sequence[bool],
    spec: Spec,
) -> list[Tensor]:
    """Gradients of the maps."""
    grads = []
    deterministic = torch.are_deterministic_algorithms_enabled()
    dtype = grad.dtype if deterministic else sum_dtype(grad.dtype)
    for level, (shape, last) in enumerate(zip(shapes, channels_last, strict=True)):
        call = launch.Call(rois, levels, offsets, spec, level)
        copied = pays_to_copy(shape, last, rois, spec)
        if copied:
            grad = grad.contiguous(memory_format=torch.channels_last)
            out = _empty_side_by_side(grad, shape, dtype, spec)
        else:
            out = _by_groups(_empty(grad, shape, dtype, last), spec)
        if deterministic and out.numel():
            launch.weighted_sum_of_grad_gather(out, *_find_cells(grad, shape, call), grad, call)
        elif not deterministic:
            out.zero_()
            if grad.numel() and out.numel():
                _add_atomically(out, grad, shape, call)
        grads.append(_copy_back(out, shape, grad.dtype, last, spec) if copied else out.flatten(1, 2).to(grad.dtype))
    return grads


def _by_groups(features: Tensor, spec: Spec) -> Tensor:
    """Features (N, C G, H, W) as the kernels read and write them: (N, C, G, H, W)."""
    groups = spec.group_count
    return features.unflatten(1, (features.shape[1] // groups, groups))


def _to_read(features: Tensor, rois: Tensor, spec: Spec) -> Tensor:
    """The features by groups, copied where that pays."""
    by_groups = _by_groups(features, spec)
    if not pays_to_copy(features.shape, is_channels_last(features), rois, spec, READS):
        return by_groups
    copy = _empty_side_by_side(features, features.shape, features.dtype, spec)
    launch.copy_map(copy, by_groups)
    return copy


def _copy_back(out: Tensor, shape: Sequence[int], dtype: torch.dtype, last: bool, spec: Spec) -> Tensor:
    """What lies side by side as a gradient of features."""
    grad = _empty(out, shape, dtype, last)
    launch.copy_map(_by_groups(grad, spec), out)
    return grad


def _empty_side_by_side(like: Tensor, shape: Sequence[int], dtype: torch.dtype, spec: Spec) -> Tensor:
    """(N, C, G, H, W) of features of a shape (N, C G, H, W), whose channels of a group are neighbors in memory."""
    images, channels, height, width = shape
    groups = spec.group_count
    size = (images, height, width, groups, channels // groups)
    return torch.empty(size, dtype=dtype, device=like.device).permute(0, 4, 3, 1, 2)


def pays_to_copy(shape: Sequence[int], channels_last: bool, rois: Tensor, spec: Spec, times: int = 1) -> bool:
    """Whether what bins read or add of a cell is to lie side by side, in a copy of the features or of the gradient.

    A warp takes neighboring channels of a group. Where these lie apart, as in contiguous maps and, of several groups,
    in channels_last ones too, each costs a memory transaction of its own; a copy costs two for eight numbers. It pays
    if bins of sixteen taps meet each number about once, or of several groups so many times.
    """
    if channels_last and spec.group_count == 1:
        return False
    cells = shape[0] * shape[2] * shape[3]
    if spec.group_count > 1:
        cells *= times * spec.group_count
    return math.prod(shape) >= SMALL and 16 * len(rois) * math.prod(spec.output_size) >= cells


def _add_atomically(out: Tensor, grad: Tensor, shape: Sequence[int], call: launch.Call) -> None:
    # one map only: of a pyramid's, where boxes are large on their level, bins share few cells
    if call.levels is None and call.is_tabulated:
        extent, weights = _find_cells(grad, shape, call)
        assert weights is not None
        launch.weighted_sum_of_grad_tabulated(out, extent, weights, grad, call)
    else:
        launch.weighted_sum_of_grad_atomic(out, grad, call)


def _find_cells(grad: Tensor, shape: Sequence[int], call: launch.Call) -> tuple[Tensor, Tensor | None]:
    """The rows and columns that each RoI reads, and if they can be tabulated their weights in each bin."""
    extent = torch.empty((len(grad), 4), dtype=torch.int32, device=grad.device)
    weights = None
    if call.is_tabulated:
        size = (len(grad), *launch.table_shape(call))
        weights = torch.empty(size, dtype=sum_dtype(grad.dtype), device=grad.device)
    if len(grad) and weights is not None:
        launch.tabulate(extent, weights, shape, call)
    elif len(grad):
        launch.extents(extent, shape, call)
    return extent, weights


def weighted_sum_roi_grads(
    grad: Tensor, maps: Sequence[Tensor], rois: Tensor, levels: Tensor | None, offsets: Tensor | None, spec: Spec
) -> tuple[Tensor, Tensor]:
    """Gradients of the RoIs and of the offsets."""
    by_bin = torch.empty((len(rois), *spec.output_size, 6), dtype=sum_dtype(grad.dtype), device=grad.device)
    if by_bin.numel():
        for level, features in enumerate(maps):
            call = launch.Call(rois, levels, offsets, spec, level)
            launch.weighted_sum_roi_grads(by_bin, grad, _to_read(features, rois, spec), call)
    grad_rois = pad(by_bin[..., :4].sum(dim=(1, 2)), (1, 0))
    if offsets is None:
        return grad_rois, rois.new_empty(0)
    return grad_rois, by_bin[..., 4:].permute(0, 3, 1, 2).contiguous()


def window_max(
    maps: Sequence[Tensor], rois: Tensor, levels: Tensor | None, spec: Spec, with_places: bool
) -> tuple[Tensor, Tensor]:
    """The maxima and their places, or an empty tensor in place of these."""
    if spec.sampling == "points":
        return _max_of_points(maps, rois, levels, spec, with_places)
    _check(rois, None, maps[0].shape[0])
    last, dtype = is_channels_last(maps[0]), argmax_dtype(maps, spec)
    maps = [_to_read(features, rois, spec) for features in maps]
    out = _empty_pooled(maps[0], len(rois), spec, last)
    argmax = torch.empty_like(out, dtype=dtype) if with_places else None
    if out.numel():
        for level, features in enumerate(maps):
            launch.window_max(out, argmax, features, launch.Call(rois, levels, None, spec, level))
    layout = memory_format(last)
    places = out.new_empty(0, dtype=dtype) if argmax is None else argmax.contiguous(memory_format=layout)
    return out.contiguous(memory_format=layout), places


def window_max_of_grad(
    grad: Tensor,
    argmax: Tensor,
    rois: Tensor,
    levels: Tensor | None,
    shapes: Shapes,
    channels_last: Sequence[bool],
    spec: Spec,
) -> list[Tensor]:
    """Gradients of the maps."""
    if spec.sampling == "points":
        of_points = _grad_of_points(grad, argmax, spec)
        return weighted_sum_of_grad(of_points, rois, levels, None, shapes, channels_last, _single_points(spec))
    grads = []
    for level, (shape, last) in enumerate(zip(shapes, channels_last, strict=True)):
        call = launch.Call(rois, levels, None, spec, level)
        if torch.are_deterministic_algorithms_enabled():
            out = _empty(grad, shape, grad.dtype, last)
            if out.numel():
                extent = torch.empty((*grad.shape[:1], *grad.shape[2:], 4), dtype=torch.int32, device=grad.device)
                launch.window_max_of_grad_gather(_by_groups(out, spec), extent, grad, argmax, call)
        else:
            out = _empty(grad, shape, sum_dtype(grad.dtype), last).zero_()
            if grad.numel() and out.numel():
                launch.window_max_of_grad_atomic(_by_groups(out, spec), grad, argmax, call)
        grads.append(out.to(grad.dtype))
    return grads


def window_max_roi_grads(
    grad: Tensor, argmax: Tensor, maps: Sequence[Tensor], rois: Tensor, levels: Tensor | None, spec: Spec
) -> Tensor:
    """Gradients of the RoIs, through the points of the maxima."""
    of_points = _grad_of_points(grad, argmax, spec)
    return weighted_sum_roi_grads(of_points, maps, rois, levels, None, _single_points(spec))[0]


def _single_points(spec: Spec) -> Spec:
    """Bins of one point each: point t of a bin is the one point of the t-th of equal parts of the bin."""
    rows, columns = spec.output_size
    return replace(spec, output_size=(rows * spec.ratio, columns * spec.ratio), ratio=1)


def _max_of_points(
    maps: Sequence[Tensor], rois: Tensor, levels: Tensor | None, spec: Spec, with_places: bool
) -> tuple[Tensor, Tensor]:
    values = weighted_sum(maps, rois, levels, None, _single_points(spec))
    layout = memory_format(is_channels_last(maps[0]))
    if not with_places:
        out = max_pool2d(values, spec.ratio)
        return out.contiguous(memory_format=layout), out.new_empty(0, dtype=torch.int32)
    out, index = max_pool2d(values, spec.ratio, return_indices=True)
    row, column = index // values.shape[3], index % values.shape[3]
    argmax = (row % spec.ratio << POINT_BITS) + column % spec.ratio
    return out.contiguous(memory_format=layout), argmax.to(torch.int32).contiguous(memory_format=layout)


def _grad_of_points(grad: Tensor, argmax: Tensor, spec: Spec) -> Tensor:
    """(K, C, PH G, PW G): the gradient of each point."""
    rows, columns = (torch.arange(n, device=grad.device) * spec.ratio for n in spec.output_size)
    row = rows[:, None] + (argmax >> POINT_BITS)
    column = columns + (argmax & ((1 << POINT_BITS) - 1))
    out = grad.new_zeros((*grad.shape[:2], spec.output_size[0] * spec.ratio * spec.output_size[1] * spec.ratio))
    index = row * (spec.output_size[1] * spec.ratio) + column
    out.scatter_(2, index.flatten(2), grad.flatten(2))
    return out.unflatten(2, (spec.output_size[0] * spec.ratio, -1))


def _check(rois: Tensor, offsets: Tensor | None, images: int) -> None:
    if checks_values(rois.device):
        check_values(rois, offsets, images)


def _empty(like: Tensor, shape: Sequence[int], dtype: torch.dtype, channels_last: bool) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=memory_format(channels_last))


def _empty_pooled(features: Tensor, rois: int, spec: Spec, channels_last: bool) -> Tensor:
    """For the pooled features of a map by groups; channels_last too if its channels lie side by side."""
    shape = (rois, features.shape[1], *spec.output_size)
    return _empty(features, shape, features.dtype, channels_last or features.stride(1) == 1)


def assign_levels(boxes: Tensor, levels: int, shift: float, canonical_scale: float) -> Tensor:
    """See :func:`detpool.ops.levels.assign_levels`; ``shift`` is the canonical level less that of the finest map."""
    out = torch.empty(len(boxes), dtype=torch.int64, device=boxes.device)
    if out.numel():
        launch.assign_levels(out, boxes, levels, shift, canonical_scale)
    return out
