"""The two primitives on all cores of a CPU, with kernels that numba compiles at the first call and keeps on disk.

Every number of a result is computed by one thread in an order that does not depend on how many there are: threads own
RoIs where the result is per RoI, and blocks of channels of an image where RoIs add up. float16 and bfloat16 are
computed in float32.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..layout import cell_dtype, is_channels_last, memory_format
from . import cpu_kernels as kernels
from .reference import bin_blocks, window_gather
from .threads import run

__all__ = [
    "reasons_against",
    "separable_sum",
    "separable_transpose",
    "separable_weight_grads",
    "window_gather",
    "window_max",
    "window_scatter",
]

Shape = tuple[int, int, int, int]
Groups = tuple[int, int]

CHANNEL_BLOCK = 64
"""Channels of contiguous features in one task: enough for long inner loops, few enough to occupy every core."""
ROI_BLOCK = 16
"""RoIs of one task."""
ZERO_BLOCK = 1 << 18
"""Elements that one task sets to zero."""
CELL_BLOCK = 512
"""Cells of one task that changes the layout of features."""


def reasons_against(primitive: str, tensors: dict[str, Tensor]) -> list[str]:
    """Why this backend cannot serve a call, if it cannot."""
    reasons = []
    values = tensors.get("features", tensors.get("grad"))
    assert values is not None
    if values.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        reasons.append(f"dtype {values.dtype} is not float16, bfloat16, float32 or float64")
    devices = {str(t.device) for t in tensors.values() if t.device.type != "cpu"}
    if devices:
        reasons.append(f"tensors are on {', '.join(sorted(devices))}, not on the CPU")
    return reasons


class _Axis:
    """The taps of one axis, compacted, as the kernels take them."""

    def __init__(self, index: Tensor, weight: Tensor) -> None:
        taps = index.shape[-1]
        self.shape = weight.shape
        rows = index.numel() // max(taps, 1)
        raw_index = index.reshape(rows, taps).to(torch.int32).contiguous().numpy()
        raw_weight = weight.detach().reshape(rows, taps).contiguous().numpy()
        self.index = np.empty((rows, taps), np.int32)
        self.weight = np.empty((rows, taps), raw_weight.dtype)
        self.count = np.empty(rows, np.int32)
        self.slot = np.empty((rows, taps), np.int32)
        kernels.compact(raw_index, raw_weight, self.index, self.weight, self.count, self.slot)

    @property
    def taps(self) -> tuple[Any, Any, Any]:
        return self.index, self.weight, self.count

    def expanded(self, grad: Any) -> Tensor:
        """Gradients of compacted weights as those of the taps that were given."""
        out = np.empty_like(self.weight)
        kernels.expand(grad, self.slot, out)
        return torch.from_numpy(out).view(self.shape)


class _Bins:
    """What every kernel of primitive 1 needs to know of the bins."""

    def __init__(self, batch: Tensor, iy: Tensor, wy: Tensor, ix: Tensor, wx: Tensor) -> None:
        joint = iy.shape[2] > 1 or ix.shape[1] > 1
        self.bins = (iy.shape[1], ix.shape[2])
        self.joint = joint
        self.y, self.x = _Axis(iy, wy), _Axis(ix, wx)
        self.batch = batch.contiguous().numpy()
        self.dtype = wy.dtype

    @property
    def arguments(self) -> tuple[Any, ...]:
        return self.y.taps, self.x.taps, self.joint, self.bins


def separable_sum(
    features: Tensor, batch: Tensor, iy: Tensor, wy: Tensor, ix: Tensor, wx: Tensor, groups: Groups
) -> Tensor:
    """See :func:`detpool.ops.separable.separable_sum`."""
    b = _Bins(batch, iy, wy, ix, wx)
    channels = features.shape[1] // (groups[0] * groups[1])
    shape = (batch.shape[0], channels, *b.bins)
    last = is_channels_last(features)
    if groups != (1, 1) and not last:
        by_bin = torch.empty((b.bins[0] * b.bins[1], batch.shape[0], channels), dtype=b.dtype)
        planes = _flat(features.to(b.dtype), False)
        source = planes.reshape(len(planes), channels, groups[0] * groups[1], planes.shape[2])
        target = by_bin.numpy()

        def group_task(image: int, rois: Any, group: int) -> None:
            kernels.group_sum(source, rois, image, group, *b.arguments, groups, features.shape[3], target)

        _over_images(b.batch, features.shape[0], groups[0] * groups[1], group_task)
        return by_bin.permute(1, 2, 0).unflatten(2, b.bins).to(features.dtype).contiguous()
    out = _empty(shape, b.dtype, last)
    source, target = _pixels(features, b.dtype), _flat(out, last)
    if groups != (1, 1):
        # the channels of a group become neighbours
        count = groups[0] * groups[1]
        grouped = _each_transposed(source, channels, torch.empty(source.shape, dtype=b.dtype).numpy())
        source = grouped.reshape(len(source), source.shape[1] * count, channels)

    def task(k0: int, k1: int) -> None:
        tile = np.empty((0 if last else b.bins[0] * b.bins[1], channels), target.dtype)
        kernels.vector_sum(source, b.batch, *b.arguments, groups, features.shape[3], k0, k1, last, target, tile)

    _over(shape[0], ROI_BLOCK, task)
    return out.to(features.dtype)


def separable_transpose(
    grad: Tensor,
    batch: Tensor,
    iy: Tensor,
    wy: Tensor,
    ix: Tensor,
    wx: Tensor,
    shape: Shape,
    groups: Groups,
    channels_last: bool,
) -> Tensor:
    """See :func:`detpool.ops.separable.separable_transpose`."""
    b = _Bins(batch, iy, wy, ix, wx)
    images, channels, height, width = shape
    out = _sums(shape, b.dtype, channels_last)
    grad_last = is_channels_last(grad)
    source, target = _flat(grad.to(b.dtype), grad_last), _flat(out, channels_last)
    if groups != (1, 1):
        count = groups[0] * groups[1]
        each = channels // count
        kernel: Any
        if channels_last:
            kernel, grouped = kernels.group_vector_transpose, target.reshape(images, height * width * count, each)
        else:
            kernel, grouped = kernels.group_transpose, target.reshape(images, each, count, height * width)

        def group_task(image: int, rois: Any, group: int) -> None:
            kernel(source, rois, image, group, *b.arguments, groups, width, grad_last, grouped)

        _over_images(b.batch, images, count, group_task)
        if channels_last:
            _each_transposed(target, count, target)
        return out.to(grad.dtype)

    size = _channel_block(images, channels, channels_last)

    def task(image: int, rois: Any, block: int) -> None:
        c0 = block * size
        count = min(size, channels - c0)
        layout = (grad_last, channels_last, height * width)
        kernels.vector_transpose(source, rois, image, *b.arguments, width, c0, count, *layout, target)

    _over_images(b.batch, images, -(-channels // size), task)
    return out.to(grad.dtype)


def separable_weight_grads(
    grad: Tensor, features: Tensor, batch: Tensor, iy: Tensor, wy: Tensor, ix: Tensor, wx: Tensor, groups: Groups
) -> tuple[Tensor, Tensor]:
    """See :func:`detpool.ops.separable.separable_weight_grads`."""
    b = _Bins(batch, iy, wy, ix, wx)
    grads = np.zeros_like(b.y.weight), np.zeros_like(b.x.weight)
    task: Callable[[int, int], None]
    if groups != (1, 1):
        planes = _planes(grad.to(b.dtype)).numpy(), _planes(features.to(b.dtype)).numpy()

        def task(k0: int, k1: int) -> None:
            kernels.group_weight_grads(*planes, b.batch, *b.arguments, groups, k0, k1, *grads)
    else:
        last = is_channels_last(grad)
        vectors = _flat(grad.to(b.dtype), last), _pixels(features, b.dtype)

        def task(k0: int, k1: int) -> None:
            kernels.vector_weight_grads(*vectors, b.batch, *b.arguments, features.shape[3], k0, k1, last, *grads)

    _over(batch.shape[0], ROI_BLOCK, task)
    return b.y.expanded(grads[0]), b.x.expanded(grads[1])


def window_max(
    features: Tensor, batch: Tensor, y_windows: Tensor, x_windows: Tensor, groups: Groups
) -> tuple[Tensor, Tensor]:
    """See :func:`detpool.ops.window_max.window_max`."""
    if groups != (1, 1):
        size = (batch.shape[0], features.shape[1] // (groups[0] * groups[1]), y_windows.shape[1], x_windows.shape[1])
        out, argmax = features.new_empty(size), torch.empty(size, dtype=cell_dtype(features))
        for rows, columns, block in bin_blocks(features, out, groups):
            part = window_max(block, batch, y_windows[:, rows], x_windows[:, columns], (1, 1))
            out[:, :, rows, columns], argmax[:, :, rows, columns] = part
        return out, argmax
    dtype = _computed(features.dtype)
    last = is_channels_last(features)
    channels = features.shape[1]
    shape = (batch.shape[0], channels, y_windows.shape[1], x_windows.shape[1])
    out, argmax = _empty(shape, dtype, last), _empty(shape, cell_dtype(features), last)
    source, target, where = _pixels(features, dtype), _flat(out, last), _flat(argmax, last)
    windows = y_windows.contiguous().numpy(), x_windows.contiguous().numpy()
    rois = batch.contiguous().numpy()

    def task(k0: int, k1: int) -> None:
        bins = shape[2] * shape[3]
        tiles = np.empty((0 if last else bins, channels), target.dtype), np.empty((bins, channels), np.int32)
        kernels.vector_max(source, rois, *windows, features.shape[3], k0, k1, last, target, where, *tiles)

    _over(shape[0], ROI_BLOCK, task)
    return out.to(features.dtype), argmax


def window_scatter(
    grad: Tensor, argmax: Tensor, batch: Tensor, shape: Shape, groups: Groups, channels_last: bool
) -> Tensor:
    """See :func:`detpool.ops.window_max.window_scatter`."""
    if groups != (1, 1):
        out = grad.new_empty(shape)
        for rows, columns, target in bin_blocks(out, grad, groups):
            block = slice(None), slice(None), rows, columns
            target[:] = window_scatter(grad[block], argmax[block], batch, _shape(target), (1, 1), False)
        return out
    dtype = _computed(grad.dtype)
    images, channels, height, width = shape
    out = _sums(shape, dtype, channels_last)
    grad_last = is_channels_last(grad)
    source, target = _flat(grad.to(dtype), grad_last), _flat(out, channels_last)
    where = _flat(argmax, grad_last)
    bins = grad.shape[2] * grad.shape[3]

    size = _channel_block(images, channels, channels_last)

    def task(image: int, rois: Any, block: int) -> None:
        c0 = block * size
        count = min(size, channels - c0)
        kernels.vector_scatter(
            source, where, rois, image, c0, count, bins, grad_last, channels_last, height * width, target
        )

    _over_images(batch.contiguous().numpy(), images, -(-channels // size), task)
    return out.to(grad.dtype)


def _channel_block(images: int, channels: int, channels_last: bool) -> int:
    """Channels of one task that adds to the features of one image.

    In channels_last features a block of channels is a comb, which uses only its share of the sets of a cache: no more
    blocks than occupy every thread. Elsewhere a task adds up a plane of its own, which should stay in cache.
    """
    if not channels_last:
        return CHANNEL_BLOCK
    blocks = -(-torch.get_num_threads() // max(images, 1))
    return max(16, -(-channels // blocks))


def _computed(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _shape(tensor: Tensor) -> Shape:
    images, channels, height, width = tensor.shape
    return images, channels, height, width


def _empty(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool) -> Tensor:
    return torch.empty(shape, dtype=dtype, memory_format=memory_format(channels_last))


def _sums(shape: Shape, dtype: torch.dtype, channels_last: bool) -> Tensor:
    """A tensor to add into: zeros for channels_last; blocks of a contiguous one are added up elsewhere, then copied."""
    out = _empty(shape, dtype, channels_last)
    if channels_last:
        target = out.permute(0, 2, 3, 1).view(-1).numpy()
        _over(target.size, ZERO_BLOCK, lambda first, last: target[first:last].fill(0))
    return out


def _flat(tensor: Tensor, channels_last: bool) -> Any:
    """The array (N, H * W, C) or (N, C, H * W); of ``tensor`` itself if it has that layout, else of a copy."""
    tensor = tensor.detach().contiguous(memory_format=memory_format(channels_last))
    if channels_last:
        return tensor.permute(0, 2, 3, 1).flatten(1, 2).numpy()
    return tensor.flatten(2).numpy()


def _pixels(features: Tensor, dtype: torch.dtype) -> Any:
    """The array (N, H * W, C); of ``features`` itself if they are channels_last in that dtype."""
    features = features.to(dtype)
    if not features.is_contiguous() or features.shape[1] == 1:
        return _flat(features, True)
    # PyTorch's own copy would wake its thread pool, whose threads then spin on the cores that the kernels need.
    images, channels, height, width = features.shape
    out = _empty((images, channels, height, width), dtype, True)
    source, target = _flat(features, False), _flat(out, True)
    blocks = -(-height * width // CELL_BLOCK)

    def task(number: int) -> None:
        image, block = divmod(number, blocks)
        first = block * CELL_BLOCK
        kernels.planes_to_vectors(source, image, first, min(first + CELL_BLOCK, height * width), target)

    run(images * blocks, task)
    return target


def _each_transposed(source: Any, rows: int, target: Any) -> Any:
    """Vectors (N, H * W, C), each of them as a matrix of so many rows that is transposed; target may be source."""
    flat, result = source.reshape(-1, source.shape[2]), target.reshape(-1, source.shape[2])
    columns = source.shape[2] // rows
    _over(len(flat), CELL_BLOCK, lambda p0, p1: kernels.transpose_each(flat, p0, p1, rows, columns, result))
    return target


def _planes(tensor: Tensor) -> Tensor:
    """``tensor`` if it is contiguous, else a copy that is; several times faster than PyTorch's from channels_last."""
    tensor = tensor.detach()
    if not is_channels_last(tensor) or tensor.dtype not in (torch.float32, torch.float64):
        return tensor.contiguous()
    out = torch.empty(tensor.shape, dtype=tensor.dtype)
    source, target = _flat(tensor, True), _flat(out, False)
    blocks = -(-tensor.shape[1] // CHANNEL_BLOCK)

    def task(number: int) -> None:
        image, block = divmod(number, blocks)
        kernels.vectors_to_planes(source, image, block * CHANNEL_BLOCK, CHANNEL_BLOCK, target)

    run(tensor.shape[0] * blocks, task)
    return out


def _over(count: int, block: int, task: Callable[[int, int], None]) -> None:
    """Call ``task(first, last)`` for blocks of ``range(count)``."""
    run(-(-count // block), lambda number: task(number * block, min(number * block + block, count)))


def _over_images(batch: Any, images: int, parts: int, task: Callable[[int, Any, int], None]) -> None:
    """Call ``task(image, its RoIs in order, part)`` for every part of every image."""
    order = np.argsort(batch, kind="stable")
    rois = np.split(order, np.searchsorted(batch[order], np.arange(1, images)))

    def numbered(number: int) -> None:
        image, part = divmod(number, parts)
        task(image, rois[image], part)

    run(images * parts, numbered)
