"""The two primitives on all cores of a CPU.

Every number of a result is computed by one thread in an order that does not depend on how many there are: threads own
RoIs where the result is per RoI, and blocks of channels of an image where RoIs add up. float16 and bfloat16 are
computed in float32.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...layout import is_channels_last, sum_dtype
from ...sampling import SAMPLING, argmax_dtype
from ...spec import ROTATED, Spec
from ..reference import rotated_points
from . import kernels
from .layouts import empty, fill_zeros, flatten, order_channels, to_vectors
from .tables import Rois, Taps, make_points, make_taps, make_windows, read_rois, roi_grads
from .threads import run

Shapes = Sequence[tuple[int, int, int, int]]

CHANNEL_BLOCK = 64
"""Channels of contiguous features in one task: enough for long inner loops, few enough to occupy every core."""
ROI_BLOCK = 16
"""RoIs of one task."""


def weighted_sum(
    maps: Sequence[Tensor], rois: Tensor, levels: Tensor | None, offsets: Tensor | None, spec: Spec
) -> Tensor:
    """See :func:`detpool.ops.weighted_sum.weighted_sum`."""
    read = read_rois(rois, levels, offsets, maps[0].shape[0], len(maps))
    dtype = sum_dtype(maps[0].dtype)
    out, target, last = _empty_pooled(maps[0], len(rois), spec, dtype)
    if spec.bins == ROTATED:
        _check_rotated(rois, spec)
        features = to_vectors(maps[0], 1, dtype)
        sizes = tuple(maps[0].shape[2:])

        def rotated_task(numbers: Any) -> None:
            rest = (spec.output_size, spec.ratio, spec.scales[0], *sizes, last, target, _tile(target, last))
            kernels.sum_rotated(features, read.values, numbers, *rest)

        _over_blocks(read.numbers[0], rotated_task)
        return out.to(maps[0].dtype)
    taps = make_taps(read, offsets, spec, _sizes(maps), False, dtype)
    for level, numbers in enumerate(read.numbers):
        source = to_vectors(maps[level], _groups(spec), dtype, partial(_spans, maps[level], read, numbers, taps))
        width = maps[level].shape[3]

        def task(numbers: Any, source: Any = source, width: int = width) -> None:
            rest = (taps.y, taps.x, taps.joint, spec.output_size, spec.groups, width, last, target, _tile(target, last))
            kernels.sum_taps(source, read.images, numbers, *rest)

        _over_blocks(numbers, task)
    return out.to(maps[0].dtype)


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
    read = read_rois(rois, levels, offsets, shapes[0][0], len(shapes))
    dtype = sum_dtype(grad.dtype)
    last = is_channels_last(grad)
    source = flatten(grad.to(dtype), last)
    taps = None if spec.bins == ROTATED else make_taps(read, offsets, spec, [s[2:] for s in shapes], False, dtype)

    def add(level: int, numbers: Any, group: int, c0: int, out: Any, o0: int, channels: int, *place: int) -> None:
        height, width = shapes[level][2:]
        if taps is None:
            rest = (spec.output_size, spec.ratio, spec.scales[0], height, width, c0, last, out, o0, channels)
            kernels.add_rotated_grads(source, read.values, numbers, *rest)
        else:
            where = (taps.y, taps.x, taps.joint, spec.output_size, spec.groups, width)
            kernels.add_grads(source, numbers, group, *where, c0, last, out, o0, channels, *place)

    return _add_over_images(add, read, shapes, channels_last, spec, dtype, grad.dtype)


def weighted_sum_roi_grads(
    grad: Tensor, maps: Sequence[Tensor], rois: Tensor, levels: Tensor | None, offsets: Tensor | None, spec: Spec
) -> tuple[Tensor, Tensor]:
    """Gradients of the RoIs and of the offsets."""
    read = read_rois(rois, levels, offsets, maps[0].shape[0], len(maps))
    dtype = sum_dtype(grad.dtype)
    last = is_channels_last(grad)
    source = flatten(grad.to(dtype), last)
    if spec.bins == ROTATED:
        out, features = np.zeros_like(read.values), to_vectors(maps[0], 1, dtype)

        def rotated_task(numbers: Any) -> None:
            rest = (spec.output_size, spec.ratio, spec.scales[0], *maps[0].shape[2:], last, out)
            kernels.add_rotated_roi_grads(source, features, read.values, numbers, *rest)

        _over_blocks(read.numbers[0], rotated_task)
        return torch.from_numpy(out), rois.new_empty(0)
    taps = make_taps(read, offsets, spec, _sizes(maps), True, dtype)
    sums = [np.zeros((len(rois), 2), source.dtype) for _ in range(2)]
    by_shift = np.zeros((0, 2, 0, 0) if offsets is None else offsets.shape, source.dtype)
    for level, numbers in enumerate(read.numbers):
        features = to_vectors(maps[level], _groups(spec), dtype, partial(_spans, maps[level], read, numbers, taps))
        width = maps[level].shape[3]

        def task(numbers: Any, features: Any = features, width: int = width) -> None:
            where = (taps.y, taps.x, taps.slopes_y, taps.slopes_x, taps.joint, spec.output_size, spec.groups, width)
            kernels.add_roi_grads(source, features, read.images, numbers, *where, last, *sums, by_shift)

        _over_blocks(numbers, task)
    grad_rois, grad_offsets = roi_grads(read, spec, sums[0], sums[1], by_shift)
    return grad_rois, rois.new_empty(0) if offsets is None else grad_offsets


def window_max(maps: Sequence[Tensor], rois: Tensor, levels: Tensor | None, spec: Spec) -> tuple[Tensor, Tensor]:
    """The maxima and their places."""
    read = read_rois(rois, levels, None, maps[0].shape[0], len(maps))
    dtype = sum_dtype(maps[0].dtype)
    out, target, last = _empty_pooled(maps[0], len(rois), spec, dtype)
    argmax = empty(tuple(out.shape), argmax_dtype(maps, spec), last)
    places = flatten(argmax, last)
    by_points = SAMPLING[spec.sampling].windows is None
    tables: Any = make_points(read, spec, _sizes(maps), dtype) if by_points else make_windows(read, spec, _sizes(maps))
    for level, numbers in enumerate(read.numbers):
        features = to_vectors(maps[level], _groups(spec), dtype)
        height, width = maps[level].shape[2:]

        def task(numbers: Any, features: Any = features, height: int = height, width: int = width) -> None:
            # places of cells go by way of a tile too: vectors of 32 bits are what the loop over channels can do
            where_tile = np.empty((target.shape[1 if last else 2], out.shape[1]), np.int32)
            rest = (last, target, places, _tile(target, last), where_tile)
            if by_points:
                bins = (spec.output_size, spec.groups, height, width)
                kernels.max_of_points(features, read.images, numbers, tables[0][:3], tables[1][:3], *bins, *rest)
            else:
                kernels.max_of_cells(features, read.images, numbers, *tables, spec.groups, width, *rest)

        _over_blocks(numbers, task)
    return out.to(maps[0].dtype), argmax


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
    read = read_rois(rois, levels, None, shapes[0][0], len(shapes))
    dtype = sum_dtype(grad.dtype)
    last = is_channels_last(grad)
    source, places = flatten(grad.to(dtype), last), flatten(argmax, last)
    by_points = SAMPLING[spec.sampling].windows is None
    points = make_points(read, spec, [s[2:] for s in shapes], dtype) if by_points else None

    def add(level: int, numbers: Any, group: int, c0: int, out: Any, o0: int, channels: int, *place: int) -> None:
        bins, rest = (spec.output_size, spec.groups), (c0, last, out, o0, channels, *place)
        if points is None:
            kernels.add_to_argmax(source, places, numbers, group, *bins, *rest)
        else:
            tables = (points[0][:3], points[1][:3], *bins, *shapes[level][2:])
            kernels.add_to_points(source, places, numbers, group, *tables, *rest)

    return _add_over_images(add, read, shapes, channels_last, spec, dtype, grad.dtype)


def window_max_roi_grads(
    grad: Tensor, argmax: Tensor, maps: Sequence[Tensor], rois: Tensor, levels: Tensor | None, spec: Spec
) -> Tensor:
    """Gradients of the RoIs, through the points of the maxima."""
    read = read_rois(rois, levels, None, maps[0].shape[0], len(maps))
    dtype = sum_dtype(grad.dtype)
    last = is_channels_last(grad)
    source, places = flatten(grad.to(dtype), last), flatten(argmax, last)
    y, x = make_points(read, spec, _sizes(maps), dtype)
    sums = [np.zeros((len(rois), 2), source.dtype) for _ in range(2)]
    for level, numbers in enumerate(read.numbers):
        features = to_vectors(maps[level], _groups(spec), dtype)
        sizes = tuple(maps[level].shape[2:])

        def task(numbers: Any, features: Any = features, sizes: Any = sizes) -> None:
            tables = (y[:3], x[:3], y[3], x[3], spec.output_size, spec.groups, *sizes)
            kernels.add_point_roi_grads(source, places, features, read.images, numbers, *tables, last, *sums)

        _over_blocks(numbers, task)
    return roi_grads(read, spec, sums[0], sums[1], np.zeros((0, 2, 0, 0), source.dtype))[0]


def _add_over_images(
    add: Callable[..., None],
    rois: Rois,
    shapes: Shapes,
    channels_last: Sequence[bool],
    spec: Spec,
    dtype: torch.dtype,
    result: torch.dtype,
) -> list[Tensor]:
    """Gradients of maps; ``add`` is told the level before what :func:`_grad_of_map` tells it."""
    grads = []
    for level, (shape, last) in enumerate(zip(shapes, channels_last, strict=True)):
        numbers = [rois.numbers[level][rois.images[rois.numbers[level]] == image] for image in range(shape[0])]
        grads.append(_grad_of_map(partial(add, level), numbers, shape, last, _groups(spec), dtype).to(result))
    return grads


def _grad_of_map(
    add: Callable[..., None],
    numbers: Sequence[Any],
    shape: tuple[int, int, int, int],
    channels_last: bool,
    groups: int,
    dtype: torch.dtype,
) -> Tensor:
    """The gradient of a map, each block of channels of each image and group added up by one thread.

    ``add(numbers, group, c0, out, o0, channels, step, shift)`` adds channels c0 .. of the gradients of the RoIs of an
    image, ``numbers``, to channels o0 .. of the vectors ``cell step + shift`` of ``out``.
    """
    images, all_channels, height, width = shape
    out = empty(shape, dtype, channels_last)
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
            add(numbers[image], group, c0, target[image].reshape(-1, channels), c0, count, groups, group)
            return
        # a plane of its own, which should stay in cache
        own = np.zeros((height * width, count), target.dtype)
        add(numbers[image], group, c0, own, 0, count, 1, 0)
        first = c0 * groups + group
        kernels.transpose(own, target[image, first : first + (count - 1) * groups + 1 : groups])

    run(images * groups * blocks, task)
    if channels_last and groups > 1:
        order_channels(target, groups)
    return out


def _empty_pooled(features: Tensor, rois: int, spec: Spec, dtype: torch.dtype) -> tuple[Tensor, Any, bool]:
    """The output, as an array too, and whether it is channels_last."""
    last = is_channels_last(features)
    out = empty((rois, features.shape[1] // _groups(spec), *spec.output_size), dtype, last)
    return out, flatten(out, last), last


def _tile(pooled: Any, channels_last: bool) -> Any:
    """Room for one RoI's vectors, where the output has another layout."""
    return np.empty((0, 0) if channels_last else pooled.shape[:0:-1], pooled.dtype)


def _spans(features: Tensor, rois: Rois, numbers: Any, taps: Taps) -> Any:
    """What :func:`to_vectors` needs not copy, if there is anything to copy."""
    images, _, height, width = features.shape
    spans = np.empty((images, height, 2), np.int32)
    kernels.span_taps(rois.images, numbers, taps.y, taps.x, spans, width)
    return spans


def _check_rotated(rois: Tensor, spec: Spec) -> None:
    """Raise ValueError where adaptive sampling takes too many points."""
    if spec.ratio <= 0:
        for column, bins in ((4, spec.output_size[0]), (3, spec.output_size[1])):
            rotated_points(rois[:, column] * spec.scales[0] / bins)


def _groups(spec: Spec) -> int:
    return spec.groups[0] * spec.groups[1]


def _sizes(maps: Sequence[Tensor]) -> list[tuple[int, int]]:
    return [(features.shape[2], features.shape[3]) for features in maps]


def _over_blocks(numbers: Any, task: Callable[[Any], None]) -> None:
    """Call ``task`` for blocks of RoIs."""
    run(-(-len(numbers) // ROI_BLOCK), lambda n: task(numbers[n * ROI_BLOCK : (n + 1) * ROI_BLOCK]))
