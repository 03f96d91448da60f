"""The two primitives on all cores of a CPU.

Every number of a result is computed by one thread in an order that does not depend on how many there are: threads own
bins where the result is per bin, and blocks of channels of an image where RoIs add up. float16 and bfloat16 are
computed in float32.
"""

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...layout import is_channels_last, memory_format, sum_dtype
from ...sampling import SAMPLING, Taps, argmax_dtype, check_index
from ...spec import ROTATED, Spec
from ..reference import rotated_points
from . import layout_kernels, max_kernels, rotated_kernels, sum_kernels
from .layouts import fill_zeros, flatten, group_to_vectors, order_channels, to_vectors
from .rois import Rois, finish_grads, make_points, make_taps, make_windows, read_rois, rows_of
from .sum_kernels import Part
from .threads import run

Shapes = Sequence[Sequence[int]]

_SHAPE = attrgetter("shape")
CHANNEL_BLOCK = 64
"""Channels of contiguous features in one task: enough for long inner loops, few enough to occupy every core."""


def weighted_sum(
    maps: Sequence[Tensor], rois: Tensor, levels: Tensor | None, offsets: Tensor | None, spec: Spec
) -> Tensor:
    """See :func:`detpool.ops.weighted_sum.weighted_sum`."""
    dtype, last = rois.dtype, is_channels_last(maps[0])
    out, target = _empty_pooled(maps[0], len(rois), spec, dtype, last)
    if spec.bins == ROTATED:
        _check_rotated(rois, spec)
    for features, read in zip(maps, read_rois(rois, levels, offsets, spec, list(map(_SHAPE, maps))), strict=True):
        tables: tuple[Any, ...]
        if spec.bins == ROTATED:
            kernel, tables = rotated_kernels.sum_rotated, ()
        else:
            kernel, tables = sum_kernels.sum_taps, (read.joint, *make_taps(read, spec, False, target.dtype))
        _over_bins(features, read, spec, dtype, kernel, *tables, last, target)
    return (out if spec.group_count == 1 else _order(out, last)).to(maps[0].dtype)


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
    last = is_channels_last(grad)
    source = _flatten_pooled(grad.to(sum_dtype(grad.dtype)), spec, last)
    grads = []
    for read, shape, pixels in zip(read_rois(rois, levels, offsets, spec, shapes), shapes, channels_last, strict=True):
        tables: tuple[Any, ...]
        if spec.bins == ROTATED:
            kernel, tables = rotated_kernels.add_rotated_grads, (read.values,)
        else:
            kernel, tables = sum_kernels.add_grads, (read.joint, *make_taps(read, spec, False, source.dtype))
        grads.append(_add_over_images(read, shape, pixels, kernel, source, *tables, last).to(grad.dtype))
    return grads


def weighted_sum_roi_grads(
    grad: Tensor, maps: Sequence[Tensor], rois: Tensor, levels: Tensor | None, offsets: Tensor | None, spec: Spec
) -> tuple[Tensor, Tensor]:
    """Gradients of the RoIs and of the offsets."""
    last = is_channels_last(grad)
    source = _flatten_pooled(grad.to(sum_dtype(grad.dtype)), spec, last)
    by_start, by_extent = (np.zeros((len(rois), 2), source.dtype) for _ in range(2))
    by_shift = np.zeros((0, 2, 0, 0) if offsets is None else offsets.shape, source.dtype)
    reads = read_rois(rois, levels, offsets, spec, list(map(_SHAPE, maps)))
    out = np.zeros_like(reads[0].values)
    for features, read in zip(maps, reads, strict=True):
        tables: tuple[Any, ...]
        if spec.bins == ROTATED:
            kernel, tables = rotated_kernels.add_rotated_roi_grads, (last, out)
        else:
            tables = (read.joint, *make_taps(read, spec, True, source.dtype), last, by_start, by_extent, by_shift)
            kernel = sum_kernels.add_roi_grads
        _over_rois(features, read, spec, source, kernel, *tables)
    if spec.bins == ROTATED:
        return torch.from_numpy(out), rois.new_empty(0)
    grad_rois, grad_offsets = finish_grads(reads, by_start, by_extent, by_shift)
    return grad_rois, rois.new_empty(0) if offsets is None else grad_offsets


def weighted_sum_tap_grads(
    grad: Tensor, features: Tensor, rois: Tensor, offsets: Tensor | None, taps: Sequence[Taps], spec: Spec
) -> tuple[Tensor, Tensor]:
    """Gradients of the weights of taps (y, x) of one map, which a rule of a user's own has made.

    Raises:
        IndexError: If a tap is no cell of the map.
    """
    for axis, length in zip(taps, features.shape[2:], strict=True):
        check_index(axis.index, length)
    last = is_channels_last(grad)
    source = _flatten_pooled(grad.to(sum_dtype(grad.dtype)), spec, last)
    (read,) = read_rois(rois, None, offsets, spec, [features.shape])
    cells = [rows_of(axis.index, number == 1).astype(np.int32) for number, axis in enumerate(taps)]
    weights = [rows_of(axis.weight, number == 1).astype(source.dtype) for number, axis in enumerate(taps)]
    by_y, by_x = (np.zeros_like(of_axis) for of_axis in weights)
    tables = (read.joint, cells[0], weights[0], cells[1], weights[1], last, by_y, by_x)
    _over_rois(features, read, spec, source, sum_kernels.add_tap_grads, *tables)
    of_y, of_x = taps[0].weight, taps[1].weight.transpose(1, 2)
    grad_x = torch.from_numpy(by_x).view(of_x.shape).transpose(1, 2).contiguous()
    return torch.from_numpy(by_y).view(of_y.shape).to(of_y.dtype), grad_x.to(of_x.dtype)


def window_max(
    maps: Sequence[Tensor], rois: Tensor, levels: Tensor | None, spec: Spec, with_places: bool
) -> tuple[Tensor, Tensor]:
    """The maxima and their places, or an empty tensor in place of these."""
    dtype, last = rois.dtype, is_channels_last(maps[0])
    out, target = _empty_pooled(maps[0], len(rois), spec, dtype, last)
    argmax, places = _empty_pooled(maps[0], len(rois) if with_places else 0, spec, argmax_dtype(maps, spec), last)
    for features, read in zip(maps, read_rois(rois, levels, None, spec, list(map(_SHAPE, maps))), strict=True):
        tables: tuple[Any, ...]
        if _has_windows(spec):
            kernel, tables = max_kernels.max_of_cells, make_windows(read, spec)
        else:
            kernel, tables = max_kernels.max_of_points, make_points(read, target.dtype)
        _over_bins(features, read, spec, dtype, kernel, *tables, last, target, places)
    if spec.group_count > 1:
        out, argmax = _order(out, last), _order(argmax, last)
    return out.to(maps[0].dtype), argmax if with_places else argmax.new_empty(0)


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
    last = is_channels_last(grad)
    source = _flatten_pooled(grad.to(sum_dtype(grad.dtype)), spec, last)
    places = _flatten_pooled(argmax, spec, last)
    grads = []
    for read, shape, pixels in zip(read_rois(rois, levels, None, spec, shapes), shapes, channels_last, strict=True):
        tables: tuple[Any, ...]
        if _has_windows(spec):
            kernel, tables = max_kernels.add_to_cells, (places,)
        else:
            kernel, tables = max_kernels.add_to_points, (*make_points(read, source.dtype), places)
        grads.append(_add_over_images(read, shape, pixels, kernel, source, *tables, last).to(grad.dtype))
    return grads


def window_max_roi_grads(
    grad: Tensor, argmax: Tensor, maps: Sequence[Tensor], rois: Tensor, levels: Tensor | None, spec: Spec
) -> Tensor:
    """Gradients of the RoIs, through the points of the maxima."""
    last = is_channels_last(grad)
    source = _flatten_pooled(grad.to(sum_dtype(grad.dtype)), spec, last)
    places = _flatten_pooled(argmax, spec, last)
    by_start, by_extent = (np.zeros((len(rois), 2), source.dtype) for _ in range(2))
    reads = read_rois(rois, levels, None, spec, list(map(_SHAPE, maps)))
    for features, read in zip(maps, reads, strict=True):
        rest = (*make_points(read, source.dtype), places, last, by_start, by_extent)
        _over_rois(features, read, spec, source, max_kernels.add_point_roi_grads, *rest)
    return finish_grads(reads, by_start, by_extent, np.zeros((0, 2, 0, 0), source.dtype))[0]


def _over_bins(features: Tensor, rois: Rois, spec: Spec, dtype: torch.dtype, kernel: Any, *rest: Any) -> None:
    """Call ``kernel(vectors, rois, numbers, span, group, g, *rest)`` until all bins of RoIs are pooled.

    For blocks of RoIs; or where contiguous features have groups, for the RoIs of an image and the bins of a group,
    with the vectors of these alone, which should stay in cache.
    """
    images, values, numbers, g = features.shape[0], rois.values, rois.numbers, rois.g
    groups = spec.group_count
    if groups == 1 or not features.is_contiguous():
        vectors = to_vectors(features, groups, dtype, rois.find_spans)
        rois.over_blocks(kernel, (vectors,), (-1, g, *rest))
        return
    by_image, spans = rois.split_by_image(images), rois.find_spans(images)
    planes = features.detach().to(dtype).numpy()

    def task(number: int) -> None:
        image, group = divmod(number, groups)
        own = group_to_vectors(planes[image, group::groups], spans[image])
        kernel(own, values, numbers, by_image[image], group, g, *rest)

    run(images * groups, task)


def _over_rois(features: Tensor, rois: Rois, spec: Spec, grad: Any, kernel: Any, *rest: Any) -> None:
    """Call ``kernel(grad, vectors, rois, numbers, span, g, *rest)`` for blocks of RoIs."""
    vectors = to_vectors(features, spec.group_count, sum_dtype(features.dtype), rois.find_spans)
    rois.over_blocks(kernel, (grad, vectors), (rois.g, *rest))


def _add_over_images(
    rois: Rois, shape: Sequence[int], channels_last: bool, kernel: Any, grad: Any, *rest: Any
) -> Tensor:
    """The gradient of a map, each block of channels of each image and group added up by one thread.

    ``kernel(grad, numbers, span, group, g, part, *rest, out)`` adds a part of the pooled gradients of RoIs of an image.
    """
    images, all_channels, height, width = shape
    g, by_image = rois.g, rois.split_by_image(images)
    groups = g.group_rows * g.group_columns
    dtype = torch.float64 if grad.dtype == np.float64 else torch.float32
    out = torch.empty(tuple(shape), dtype=dtype, memory_format=memory_format(channels_last))
    channels, target = all_channels // groups, flatten(out, channels_last)
    block = CHANNEL_BLOCK
    if channels_last:
        fill_zeros(target)
        # A block of channels of pixels is a comb, which uses only its share of the sets of a cache: no more blocks than
        # occupy every thread.
        block = max(16, -(-channels // -(-torch.get_num_threads() // max(images * groups, 1))))
    blocks = -(-channels // block)

    def task(number: int) -> None:
        plane, part = divmod(number, blocks)
        image, group = divmod(plane, groups)
        c0 = part * block
        count = min(block, channels - c0)
        if channels_last:
            # the channels of a group are neighbours until all are added up
            vectors = target[image].reshape(-1, channels)
            kernel(grad, rois.numbers, by_image[image], group, g, Part(c0, c0, count, groups, group), *rest, vectors)
            return
        # a plane of its own, which should stay in cache
        own = np.zeros((height * width, count), grad.dtype)
        kernel(grad, rois.numbers, by_image[image], group, g, Part(c0, 0, count, 1, 0), *rest, own)
        first = c0 * groups + group
        layout_kernels.transpose(own, target[image, first : first + (count - 1) * groups + 1 : groups])

    run(images * groups * blocks, task)
    if channels_last and groups > 1:
        order_channels(target, groups)
    return out


def _empty_pooled(
    features: Tensor, rois: int, spec: Spec, dtype: torch.dtype, channels_last: bool
) -> tuple[Tensor, Any]:
    """A tensor (K, C, PH, PW), and its array in the layout that the kernels write."""
    channels = features.shape[1] // spec.group_count
    if channels_last:
        out = torch.empty((rois, *spec.output_size, channels), dtype=dtype)
        return out.permute(0, 3, 1, 2), out.flatten(1, 2).numpy()
    if spec.group_count > 1:
        out = torch.empty((*spec.output_size, rois, channels), dtype=dtype)
        return out.permute(2, 3, 0, 1), out.flatten(0, 1).numpy()
    out = torch.empty((rois, channels, *spec.output_size), dtype=dtype)
    return out, out.flatten(2).numpy()


def _order(out: Tensor, channels_last: bool) -> Tensor:
    """What was pooled by bin, in the memory format of a result."""
    return out.contiguous(memory_format=memory_format(channels_last))


def _flatten_pooled(tensor: Tensor, spec: Spec, channels_last: bool) -> Any:
    """The array of a pooled tensor in the layout that the kernels read."""
    if spec.group_count > 1 and not channels_last:
        return tensor.detach().permute(2, 3, 0, 1).flatten(0, 1).numpy()
    return flatten(tensor, channels_last)


def _has_windows(spec: Spec) -> bool:
    return SAMPLING[spec.sampling].windows is not None


def _check_rotated(rois: Tensor, spec: Spec) -> None:
    """Raise ValueError where adaptive sampling takes too many points."""
    if spec.ratio <= 0:
        for column, bins in ((4, spec.output_size[0]), (3, spec.output_size[1])):
            rotated_points(rois[:, column] * spec.scales[0] / bins)
