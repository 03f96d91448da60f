"""Launching the kernels: grids, block sizes and compile-time arguments. Nothing here allocates or waits for a GPU.

Every function returns after its kernels are queued; what it writes to is allocated by the caller. Block sizes follow
from shapes alone, so the same call always runs the same program. Maps, and gradients of maps, are (N, C, G, H, W): C
channels for each of G groups, any strides.
"""

from __future__ import annotations

import contextlib
import importlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...sampling import SAMPLING
from ...spec import Spec
from . import bins
from . import layout_kernels as layouts
from . import transposed_sum_kernels as transposes
from . import weighted_sum_kernels as sums
from . import window_max_kernels as maxima

TILE = 4
"""Cells that one program of a gradient owns along an axis: about as many as a bin has."""

SQUARE = 32
"""Channels, and positions, that one program copies: whole sectors of memory either way."""

ENOUGH = 1024
"""Programs that keep a large GPU busy; where there are more, they take several bins each."""


def resolve(rule: str) -> Any:
    """The rule named ``module:function``.

    Raises:
        ValueError: there is no such module or function, or it is not a Triton function.
    """
    module, _, name = rule.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"triton must name a function as 'module:function', got {rule!r}: {error}") from error
    # no test of the type: what Triton 3.5 interprets is no triton.runtime.KernelInterface
    if not (hasattr(function, "fn") and hasattr(function, "run")):
        raise ValueError(f"triton must name a function under @triton.jit, got {rule!r}")
    return function


@dataclass(frozen=True)
class Call:
    """What all kernels are told of a call, for the RoIs of one level."""

    rois: Tensor
    levels: Tensor | None
    offsets: Tensor | None
    spec: Spec
    level: int

    @property
    def tensors(self) -> tuple[Any, ...]:
        return self.rois, self.levels, self.offsets

    @property
    def numbers(self) -> tuple[int, int]:
        """The scale as the bits of a float64, and the level."""
        return struct.unpack("q", struct.pack("d", self.spec.scales[self.level]))[0], self.level

    @property
    def grid(self) -> dict[str, Any]:
        (rows, columns), groups = self.spec.output_size, self.spec.groups
        return {"PH": rows, "PW": columns, "GH": groups[0], "GW": groups[1]}

    @property
    def bins(self) -> dict[str, Any]:
        double = torch.float64 in (self.rois.dtype, SAMPLING[self.spec.sampling].dtype)
        return {"BINS": self.spec.bins, "POSITION": tl.float64 if double else tl.float32}

    @property
    def rule(self) -> dict[str, Any]:
        name = SAMPLING[self.spec.sampling].triton
        assert name is not None
        return {"RULE": resolve(name), "RATIO": max(self.spec.ratio, 0)}

    @property
    def points(self) -> int:
        """Bilinear points per bin and axis if all bins have as many, else 0."""
        return max(self.spec.ratio, 0) if SAMPLING[self.spec.sampling].bilinear else 0

    @property
    def is_tabulated(self) -> bool:
        """Whether a table of weights serves the gradients: all bins have as many taps, in rows and columns of bins."""
        return self.points > 0 and self.offsets is None and self.spec.groups == (1, 1)


def weighted_sum(out: Tensor, features: Tensor, call: Call) -> None:
    """See :func:`weighted_sum_kernels.forward`."""
    channels, columns = out.shape[1], out.shape[3]
    block = channel_block((features, out), channels)
    blocks = triton.cdiv(channels, block)
    if _bins(out) // columns * blocks < ENOUGH:
        columns = 1
    sizes = (features.shape[0], channels, *features.shape[3:])
    options = _options((features, out), channels, block) | {"WHOLE": channels % block == 0, "COLUMNS": columns}
    if options["ALIGNED"] > 1:
        # two loads per tap share its address and its weight
        options["num_warps"] = _warps(features, block, bytes=32)
    run_kernel(
        sums.forward,
        (_bins(out) // columns, blocks),
        (features, *call.tensors, out, *sizes, *call.numbers, *features.stride(), *out.stride()),
        {**call.grid, **call.bins, **call.rule, **options, **_sum(features), "POINTS": call.points},
    )


def weighted_sum_of_grad_atomic(out: Tensor, grad: Tensor, call: Call) -> None:
    """See :func:`transposed_sum_kernels.transpose_atomic`."""
    block = channel_block((grad, out), grad.shape[1])
    sizes = (out.shape[0], grad.shape[1], *out.shape[3:])
    options = _options((grad, out), grad.shape[1], block)
    run_kernel(
        transposes.transpose_atomic,
        (_bins(grad), triton.cdiv(grad.shape[1], block)),
        (grad, *call.tensors, out, *sizes, *call.numbers, *grad.stride(), *out.stride()),
        {**call.grid, **call.bins, **call.rule, **options},
    )


def table_shape(call: Call) -> tuple[int, int, int]:
    """That of a RoI's table of weights (see :func:`transposed_sum_kernels.tabulate`): 2, SPAN, COUNT.

    Cells along an axis of the largest RoI that is tabulated are as many as it has taps.
    """
    bins = max(call.spec.output_size)
    return 2, min(64, triton.next_power_of_2(2 * call.points * bins)), triton.next_power_of_2(bins)


def tabulate(extent: Tensor, weights: Tensor, shape: Sequence[int], call: Call) -> None:
    """See :func:`transposed_sum_kernels.tabulate`; ``shape`` is that of the features."""
    run_kernel(
        transposes.tabulate,
        (len(call.rois),),
        (call.rois, call.levels, extent, weights, shape[0], *shape[2:], *call.numbers),
        {
            **_rows(call),
            **call.bins,
            "RULE": call.rule["RULE"],
            "POINTS": call.points,
            **_table(weights),
            "num_warps": 1,
        },
    )


def weighted_sum_of_grad_tabulated(out: Tensor, extent: Tensor, weights: Tensor, grad: Tensor, call: Call) -> None:
    """See :func:`transposed_sum_kernels.transpose_atomic_tabulated`."""
    block = channel_block((grad, out), grad.shape[1])
    sizes = (out.shape[0], grad.shape[1], *out.shape[3:], call.numbers[0])
    options = _options((grad, out), grad.shape[1], block) | _tile(weights, block)
    out = out[:, :, 0]  # all bins read the same channels
    run_kernel(
        transposes.transpose_atomic_tabulated,
        (len(call.rois), triton.cdiv(grad.shape[1], block), grad.shape[3]),
        (grad, call.rois, extent, weights, out, *sizes, *grad.stride(), *out.stride()),
        {**_rows(call), **call.bins, **call.rule, **_table(weights), **options},
    )


def weighted_sum_of_grad_gather(out: Tensor, extent: Tensor, weights: Tensor | None, grad: Tensor, call: Call) -> None:
    """See :func:`transposed_sum_kernels.transpose_gather`; ``weights`` of :func:`tabulate`, if the rule has them."""
    rois, channels = grad.shape[:2]
    images, _, _, height, width = out.shape
    block = channel_block((grad, out), channels)
    options = _options((grad, out), channels, block) | _tile(grad, block)
    sizes = (rois, images, channels, height, width)
    table = {"SPAN": 0, "COUNT": 0} if weights is None else _table(weights)
    run_kernel(
        transposes.transpose_gather,
        (images * triton.cdiv(height, TILE) * width, triton.cdiv(channels, block), call.spec.group_count),
        (grad, *call.tensors, extent, weights, out, *sizes, *call.numbers, *grad.stride(), *out.stride()),
        {**call.grid, **call.bins, **call.rule, **table, **options, **_sum(grad)},
    )


def extents(extent: Tensor, shape: Sequence[int], call: Call) -> None:
    """See :func:`transposed_sum_kernels.extents`; ``shape`` is that of the features."""
    run_kernel(
        transposes.extents,
        (len(call.rois),),
        (*call.tensors, extent, shape[0], *shape[2:], *call.numbers),
        {**_rows(call), **call.bins, **call.rule, "num_warps": 1},
    )


def weighted_sum_roi_grads(out: Tensor, grad: Tensor, features: Tensor, call: Call) -> None:
    """See :func:`weighted_sum_kernels.roi_grads`."""
    # with fewer channels ptxas allots fewer registers than the float64 sums need, and spills
    block = max(64, channel_block((grad, features), grad.shape[1]))
    sizes = (features.shape[0], grad.shape[1], *features.shape[3:])
    options = _options((grad, features), grad.shape[1], block)
    run_kernel(
        sums.roi_grads,
        (_bins(grad),),
        (grad, features, *call.tensors, out, *sizes, *call.numbers, *grad.stride(), *features.stride()),
        {**call.grid, **call.bins, **call.rule, **options, **_sum(grad)},
    )


def window_max(out: Tensor, argmax: Tensor | None, features: Tensor, call: Call) -> None:
    """See :func:`window_max_kernels.forward`; ``argmax`` has the strides of ``out``, or is None: not wanted."""
    block = channel_block((features, out), out.shape[1])
    sizes = (features.shape[0], out.shape[1], *features.shape[3:])
    options = _options((features, out), out.shape[1], block)
    run_kernel(
        maxima.forward,
        (_bins(out), triton.cdiv(out.shape[1], block)),
        (features, *call.tensors[:2], out, argmax, *sizes, *call.numbers, *features.stride(), *out.stride()),
        {**call.grid, **call.bins, **options},
    )


def window_max_of_grad_atomic(out: Tensor, grad: Tensor, argmax: Tensor, call: Call) -> None:
    """See :func:`window_max_kernels.scatter_atomic`."""
    block = channel_block((grad, argmax, out), grad.shape[1])
    sizes = (out.shape[0], grad.shape[1], *out.shape[3:], call.level)
    options = _options((grad, argmax, out), grad.shape[1], block)
    run_kernel(
        maxima.scatter_atomic,
        (_bins(grad), triton.cdiv(grad.shape[1], block)),
        (grad, argmax, *call.tensors[:2], out, *sizes, *grad.stride(), *argmax.stride(), *out.stride()),
        {**call.grid, **options},
    )


def window_max_of_grad_gather(out: Tensor, extent: Tensor, grad: Tensor, argmax: Tensor, call: Call) -> None:
    """See :func:`window_max_kernels.scatter_gather`; ``extent`` (K, PH, PW, 4) int32 is scratch."""
    rois, channels = grad.shape[:2]
    images, _, _, height, width = out.shape
    if grad.numel():
        run_kernel(
            maxima.extents,
            (_bins(grad),),
            (argmax, extent, channels, width, *argmax.stride()),
            {"PH": grad.shape[2], "PW": grad.shape[3], "BLOCK_C": channel_block((argmax,), channels), "num_warps": 1},
        )
    block = square_block(channels)
    squares = triton.cdiv(height, TILE) * triton.cdiv(width, TILE)
    bins = grad.shape[2] * grad.shape[3] // call.spec.group_count
    options = _options((grad, argmax, out), channels, block) | {"TILE": TILE, "num_warps": 4}
    sizes = (rois, images, channels, height, width, *call.numbers)
    run_kernel(
        maxima.scatter_gather,
        (images * squares, triton.cdiv(channels, block), call.spec.group_count),
        (grad, argmax, *call.tensors[:2], extent, out, *sizes, *grad.stride(), *argmax.stride(), *out.stride()),
        {**call.grid, **call.bins, **options, **_sum(grad), "COUNT": triton.next_power_of_2(bins)},
    )


def copy_map(target: Tensor, source: Tensor) -> None:
    """See :func:`layout_kernels.transpose`; one map has its channels side by side, the other its columns or groups."""
    other = target if source.stride(1) == 1 else source
    order = (0, 3, 2, 1, 4) if other.stride(4) <= other.stride(2) else (0, 3, 4, 1, 2)
    target, source = target.permute(order), source.permute(order)
    images, *sizes = source.shape
    run_kernel(
        layouts.transpose,
        (images * sizes[0] * sizes[1], triton.cdiv(sizes[2], SQUARE), triton.cdiv(sizes[3], SQUARE)),
        (source, target, *sizes, *source.stride(), *target.stride()),
        {"WIDE": max(_reach(source), _reach(target)) >= 2**31, "BLOCK": SQUARE, "num_warps": 4},
    )


def assign_levels(out: Tensor, boxes: Tensor, levels: int, shift: float, canonical_scale: float) -> None:
    """See :func:`bins.assign_levels`."""
    if boxes.stride(1) != 1:
        boxes = boxes.contiguous()
    arguments = (boxes, boxes.stride(0), out, len(boxes), levels, shift, float(canonical_scale))
    run_kernel(bins.assign_levels, (triton.cdiv(len(boxes), 128),), arguments, {"BLOCK": 128, "num_warps": 4})


def lanes() -> int:
    """Threads of a warp."""
    return 64 if torch.version.hip else 32


def channel_block(tensors: tuple[Tensor, ...], channels: int) -> int:
    """Channels of one program: a few hundred.

    Where neighbours are loaded together, at least so many that each lane of a warp loads 16 bytes at once.
    """
    block = min(256, triton.next_power_of_2(channels))
    if alignment(tensors, channels) == 1:
        return block
    return max(block, lanes() * 16 // tensors[0].element_size())


def square_block(channels: int) -> int:
    """Channels of one program that owns a square of cells, whose sums must fit its registers."""
    return min(32, triton.next_power_of_2(channels))


def alignment(tensors: tuple[Tensor, ...], channels: int) -> int:
    """The most neighbouring channels, up to 16 bytes, that all tensors hold side by side at aligned addresses."""
    if any(tensor.stride(1) != 1 for tensor in tensors):
        return 1
    bytes = min(tensor.element_size() for tensor in tensors)
    count = 16 // bytes
    while count > 1 and (
        channels % count
        or any(stride % count for tensor in tensors for stride in (tensor.stride(0), *tensor.stride()[2:]))
        or any(tensor.data_ptr() % (count * tensor.element_size()) for tensor in tensors)
    ):
        count //= 2
    return count


def _options(tensors: tuple[Tensor, ...], channels: int, block: int) -> dict[str, Any]:
    options = {
        "ALIGNED": alignment(tensors, channels),
        "WIDE": max(map(_reach, tensors)) >= 2**31,
        "BLOCK_C": block,
        "num_warps": _warps(tensors[0], block, bytes=16),
    }
    if lanes() == 32:
        # or ptxas spills a few registers where it hopes for more programs at a time; AMD's compiler has no such option
        options["maxnreg"] = 255
    return options


def _reach(tensor: Tensor) -> int:
    """The largest offset in an image or a RoI."""
    return sum((size - 1) * stride for size, stride in zip(tensor.shape[1:], tensor.stride()[1:], strict=True))


def _warps(values: Tensor, block: int, bytes: int) -> int:
    """Warps whose lanes take so many bytes of a block of channels each."""
    return min(4, max(1, block * values.element_size() // (bytes * lanes())))


def _rows(call: Call) -> dict[str, Any]:
    return {"PH": call.spec.output_size[0], "PW": call.spec.output_size[1]}


def _table(weights: Tensor) -> dict[str, Any]:
    return {"SPAN": weights.shape[2], "COUNT": weights.shape[3]}


def _tile(values: Tensor, block: int) -> dict[str, Any]:
    """TILE cells of a block of channels, whose sums take 32 registers of a lane."""
    size = max(values.element_size(), 4)
    return {"TILE": TILE, "num_warps": max(1, TILE * block * size // (128 * lanes()))}


def _sum(values: Tensor) -> dict[str, Any]:
    return {"SUM": tl.float64 if values.dtype == torch.float64 else tl.float32}


def _bins(pooled: Tensor) -> int:
    return pooled.shape[0] * pooled.shape[2] * pooled.shape[3]


def run_kernel(kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    """Queue one kernel on the device of its first argument; everything here passes through."""
    device = arguments[0].device
    # Triton launches on the current device, which need not be that of the tensors
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[grid](*arguments, **options)
