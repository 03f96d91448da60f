"""Launching the kernels: grids, block sizes and compile-time arguments. Nothing here allocates or waits for a GPU.

Every function returns after its kernels are queued; what it writes to is allocated by the caller. Block sizes follow
from shapes alone, so the same call always runs the same program.
"""

from __future__ import annotations

import contextlib
import importlib
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import separable_kernels as separable
from . import window_kernels as window

Groups = tuple[int, int]

TILE = 4
"""Side in cells of the square that one program of a deterministic gradient owns: about as large as a bin."""


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
    if not isinstance(function, triton.runtime.KernelInterface):
        raise ValueError(f"triton must name a function under @triton.jit, got {rule!r}")
    return function


def bin_sum(
    out: Tensor,
    features: Tensor,
    batch: Tensor,
    y: Tensor,
    x: Tensor,
    lengths: tuple[int, int],
    rule: str,
    ratio: int,
    groups: Groups,
) -> None:
    """See :func:`separable_kernels.forward`."""
    block = channel_block((features, out), out.shape[1])
    sizes = (features.shape[0], out.shape[1], *lengths)
    options = _options((features, out), out.shape[1], block)
    run_kernel(
        separable.forward,
        (_bins(out), triton.cdiv(out.shape[1], block)),
        (features, batch, y, x, out, *sizes, *features.stride(), *out.stride()),
        {**_geometry(y, x, groups), **_rule(rule, ratio), **options, "SUM": _sum_type(features)},
    )


def bin_transpose_atomic(
    out: Tensor,
    grad: Tensor,
    batch: Tensor,
    y: Tensor,
    x: Tensor,
    lengths: tuple[int, int],
    rule: str,
    ratio: int,
    groups: Groups,
) -> None:
    """See :func:`separable_kernels.transpose_atomic`."""
    block = channel_block((grad, out), grad.shape[1])
    sizes = (out.shape[0], grad.shape[1], *lengths)
    options = _options((grad, out), grad.shape[1], block)
    run_kernel(
        separable.transpose_atomic,
        (_bins(grad), triton.cdiv(grad.shape[1], block)),
        (grad, batch, y, x, out, *sizes, *grad.stride(), *out.stride()),
        {**_geometry(y, x, groups), **_rule(rule, ratio), **options},
    )


def bin_transpose_gather(
    out: Tensor,
    extent: Tensor,
    grad: Tensor,
    batch: Tensor,
    y: Tensor,
    x: Tensor,
    lengths: tuple[int, int],
    rule: str,
    ratio: int,
    groups: Groups,
) -> None:
    """See :func:`separable_kernels.transpose_gather`; ``extent`` (K, 4) int32 is scratch."""
    geometry = _geometry(y, x, groups)
    shared = {name: geometry[name] for name in ("PH", "PW", "Y_JOINT", "X_JOINT")}
    rois, channels = grad.shape[:2]
    images, _, height, width = out.shape
    strides = (*grad.stride(), *out.stride())
    if rois:
        run_kernel(
            separable.extents,
            (rois,),
            (batch, y, x, extent, images, *lengths),
            {**shared, **_rule(rule, ratio), "num_warps": 1},
        )
    block = square_block(channels)
    squares = triton.cdiv(height, TILE) * triton.cdiv(width, TILE)
    options = _options((grad, out), channels, block) | {"TILE": TILE, "num_warps": 4}
    run_kernel(
        separable.transpose_gather,
        (images * squares, triton.cdiv(channels, block), groups[0] * groups[1]),
        (grad, batch, y, x, extent, out, rois, images, channels, height, width, *lengths, *strides),
        {**geometry, **_rule(rule, ratio), **options, "SUM": _sum_type(grad)},
    )


def bin_grads(
    out: Tensor,
    grad: Tensor,
    features: Tensor,
    batch: Tensor,
    y: Tensor,
    x: Tensor,
    lengths: tuple[int, int],
    rule: str,
    ratio: int,
    groups: Groups,
) -> None:
    """See :func:`separable_kernels.bin_grads`."""
    # with fewer channels ptxas allots fewer registers than the float64 sums need, and spills
    block = max(64, channel_block((grad, features), grad.shape[1]))
    sizes = (features.shape[0], grad.shape[1], *lengths)
    options = _options((grad, features), grad.shape[1], block)
    run_kernel(
        separable.bin_grads,
        (_bins(grad),),
        (grad, features, batch, y, x, out, *sizes, *grad.stride(), *features.stride()),
        {**_geometry(y, x, groups), **_rule(rule, ratio), **options, "SUM": _sum_type(grad)},
    )


def maximum(
    out: Tensor,
    argmax: Tensor,
    features: Tensor,
    batch: Tensor,
    y_windows: Tensor,
    x_windows: Tensor,
    groups: Groups,
) -> None:
    """See :func:`window_kernels.forward`; ``argmax`` has the strides of ``out``."""
    block = channel_block((features, out), out.shape[1])
    sizes = (features.shape[0], out.shape[1], *features.shape[2:])
    options = _options((features, out), out.shape[1], block)
    run_kernel(
        window.forward,
        (_bins(out), triton.cdiv(out.shape[1], block)),
        (features, batch, y_windows, x_windows, out, argmax, *sizes, *features.stride(), *out.stride()),
        {**_grid(out, groups), **options},
    )


def scatter_atomic(out: Tensor, grad: Tensor, argmax: Tensor, batch: Tensor, groups: Groups) -> None:
    """See :func:`window_kernels.scatter_atomic`."""
    block = channel_block((grad, argmax, out), grad.shape[1])
    sizes = (out.shape[0], grad.shape[1], *out.shape[2:])
    options = _options((grad, argmax, out), grad.shape[1], block)
    run_kernel(
        window.scatter_atomic,
        (_bins(grad), triton.cdiv(grad.shape[1], block)),
        (grad, argmax, batch, out, *sizes, *grad.stride(), *argmax.stride(), *out.stride()),
        {**_grid(grad, groups), **options},
    )


def scatter_gather(out: Tensor, extent: Tensor, grad: Tensor, argmax: Tensor, batch: Tensor, groups: Groups) -> None:
    """See :func:`window_kernels.scatter_gather`; ``extent`` (K, PH, PW, 4) int32 is scratch."""
    rois, channels = grad.shape[:2]
    images, _, height, width = out.shape
    strides = (*grad.stride(), *argmax.stride(), *out.stride())
    if grad.numel():
        run_kernel(
            window.extents,
            (_bins(grad),),
            (argmax, extent, channels, width, *argmax.stride()),
            {"PH": grad.shape[2], "PW": grad.shape[3], "BLOCK_C": channel_block((argmax,), channels), "num_warps": 1},
        )
    block = square_block(channels)
    squares = triton.cdiv(height, TILE) * triton.cdiv(width, TILE)
    options = _options((grad, argmax, out), channels, block) | {"TILE": TILE, "num_warps": 4}
    run_kernel(
        window.scatter_gather,
        (images * squares, triton.cdiv(channels, block), groups[0] * groups[1]),
        (grad, argmax, batch, extent, out, rois, channels, height, width, *strides),
        {**_grid(grad, groups), **options, "SUM": _sum_type(grad)},
    )


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
    reach = max(tensor.shape[1] * tensor.stride(1) for tensor in tensors)
    size = tensors[0].element_size()
    return {
        "ALIGNED": alignment(tensors, channels),
        "WIDE": reach >= 2**31,
        "BLOCK_C": block,
        # a lane loads 16 bytes at a time
        "num_warps": min(4, max(1, block * size // (16 * lanes()))),
    }


def _sum_type(values: Tensor) -> Any:
    return tl.float64 if values.dtype == torch.float64 else tl.float32


def _grid(pooled: Tensor, groups: Groups) -> dict[str, Any]:
    return {"PH": pooled.shape[2], "PW": pooled.shape[3], "GH": groups[0], "GW": groups[1]}


def _geometry(y: Tensor, x: Tensor, groups: Groups) -> dict[str, Any]:
    return {
        "PH": y.shape[1],
        "PW": x.shape[1],
        "GH": groups[0],
        "GW": groups[1],
        "Y_JOINT": y.shape[2] > 1,
        "X_JOINT": x.shape[2] > 1,
    }


def _rule(rule: str, ratio: int) -> dict[str, Any]:
    return {"RULE": resolve(rule), "RATIO": max(ratio, 0)}


def _bins(pooled: Tensor) -> int:
    return pooled.shape[0] * pooled.shape[2] * pooled.shape[3]


def run_kernel(kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    """Queue one kernel on the device of its first argument; everything here passes through."""
    device = arguments[0].device
    # Triton launches on the current device, which need not be that of the tensors
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[grid](*arguments, **options)
