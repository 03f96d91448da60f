"""The two primitives on a GPU, with Triton kernels.

The separable sum begins with bins here, not with taps: kernels compute the taps of a bin when they need them, so that
no size depends on the values of boxes and nothing waits for the GPU. Sums accumulate in float32 (float64 for float64).

Gradients of features add atomically; with ``torch.use_deterministic_algorithms(True)`` each program gathers what
belongs to its own cells instead, always in the same order. Triton itself is imported by the first call that runs here.
"""

from __future__ import annotations

import importlib.util
import os

import torch
from torch import Tensor

from ...layout import cell_dtype, is_channels_last, memory_format
from ..reference import window_gather

__all__ = ["bin_grads", "bin_sum", "bin_transpose", "reasons_against", "window_gather", "window_max", "window_scatter"]

Shape = tuple[int, int, int, int]
Groups = tuple[int, int]

# Once, here: traced code asks for reasons, and tracing does not follow the search for a module.
_INSTALLED = importlib.util.find_spec("triton") is not None
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

PRIMITIVES = ("bin_sum", "window_max", "window_scatter", "window_gather")


def reasons_against(primitive: str, tensors: dict[str, Tensor]) -> list[str]:
    """Why this backend cannot serve a call, if it cannot."""
    reasons = []
    if not _INSTALLED:
        reasons.append("triton is not installed")
    if primitive not in PRIMITIVES:
        reasons.append(
            f"{primitive} takes the taps of a sampling rule, not bins: the rule has no Triton form, or no use here"
        )
    values = tensors.get("features", tensors.get("grad"))
    assert values is not None
    if values.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        reasons.append(f"dtype {values.dtype} is not float16, bfloat16, float32 or float64")
    devices = {str(t.device) for t in tensors.values()}
    if len(devices) > 1:
        reasons.append(f"tensors are on {', '.join(sorted(devices))}, not on one device")
    elif values.device.type != "cuda" and not (values.device.type == "cpu" and _INTERPRETED):
        reasons.append(
            f"tensors are on {values.device}, not on a GPU (a process started with TRITON_INTERPRET=1 runs the kernels "
            f"on the CPU, slowly)"
        )
    return reasons


def bin_sum(
    features: Tensor,
    batch: Tensor,
    y: Tensor,
    x: Tensor,
    lengths: tuple[int, int],
    rule: str,
    ratio: int,
    groups: Groups,
    channels_last: bool,
) -> Tensor:
    """See :func:`detpool.ops.bin_sum.bin_sum`."""
    from . import launch

    shape = (batch.shape[0], features.shape[1] // (groups[0] * groups[1]), y.shape[1], x.shape[1])
    out = _empty(features, shape, features.dtype, channels_last)
    if out.numel():
        launch.bin_sum(out, features, batch, y, x, lengths, rule, ratio, groups)
    return out


def bin_transpose(
    grad: Tensor,
    batch: Tensor,
    y: Tensor,
    x: Tensor,
    shape: Shape,
    lengths: tuple[int, int],
    rule: str,
    ratio: int,
    groups: Groups,
    channels_last: bool,
) -> Tensor:
    """Gradient of :func:`bin_sum` with respect to the features."""
    from . import launch

    if torch.are_deterministic_algorithms_enabled():
        out = _empty(grad, shape, grad.dtype, channels_last)
        if out.numel():
            extent = torch.empty((batch.shape[0], 4), dtype=torch.int32, device=grad.device)
            launch.bin_transpose_gather(out, extent, grad, batch, y, x, lengths, rule, ratio, groups)
        return out
    out = _empty(grad, shape, _sum_dtype(grad), channels_last).zero_()
    if grad.numel() and out.numel():
        launch.bin_transpose_atomic(out, grad, batch, y, x, lengths, rule, ratio, groups)
    return out.to(grad.dtype)


def bin_grads(
    grad: Tensor,
    features: Tensor,
    batch: Tensor,
    y: Tensor,
    x: Tensor,
    lengths: tuple[int, int],
    rule: str,
    ratio: int,
    groups: Groups,
) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`bin_sum` with respect to the bins: of the shapes of ``y`` and ``x``."""
    from . import launch

    by_bin = torch.empty((*_pooled(y, x), 6), dtype=_sum_dtype(grad), device=grad.device)
    if by_bin.numel():
        launch.bin_grads(by_bin, grad, features, batch, y, x, lengths, rule, ratio, groups)
    return _of_axis(by_bin[..., :3], y), _of_axis(by_bin[..., 3:].transpose(1, 2), x)


def window_max(
    features: Tensor, batch: Tensor, y_windows: Tensor, x_windows: Tensor, groups: Groups
) -> tuple[Tensor, Tensor]:
    """See :func:`detpool.ops.window_max.window_max`."""
    from . import launch

    channels = features.shape[1] // (groups[0] * groups[1])
    shape = (batch.shape[0], channels, y_windows.shape[1], x_windows.shape[1])
    channels_last = is_channels_last(features)
    out = _empty(features, shape, features.dtype, channels_last)
    argmax = _empty(features, shape, cell_dtype(features), channels_last)
    if out.numel():
        launch.maximum(out, argmax, features, batch, y_windows.contiguous(), x_windows.contiguous(), groups)
    return out, argmax


def window_scatter(
    grad: Tensor, argmax: Tensor, batch: Tensor, shape: Shape, groups: Groups, channels_last: bool
) -> Tensor:
    """See :func:`detpool.ops.window_max.window_max`."""
    from . import launch

    if torch.are_deterministic_algorithms_enabled():
        out = _empty(grad, shape, grad.dtype, channels_last)
        if out.numel():
            bins = (grad.shape[0], *grad.shape[2:])
            extent = torch.empty((*bins, 4), dtype=torch.int32, device=grad.device)
            launch.scatter_gather(out, extent, grad, argmax, batch, groups)
        return out
    out = _empty(grad, shape, _sum_dtype(grad), channels_last).zero_()
    if grad.numel() and out.numel():
        launch.scatter_atomic(out, grad, argmax, batch, groups)
    return out.to(grad.dtype)


def _empty(like: Tensor, shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=memory_format(channels_last))


def _sum_dtype(values: Tensor) -> torch.dtype:
    return torch.float64 if values.dtype == torch.float64 else torch.float32


def _pooled(y: Tensor, x: Tensor) -> tuple[int, int, int]:
    return y.shape[0], y.shape[1], x.shape[1]


def _of_axis(by_bin: Tensor, bins: Tensor) -> Tensor:
    """Gradients (K, P, other bins, 3) of lower, upper and size, as those of the packed bins of the axis."""
    if bins.shape[2] == 1:
        by_bin = by_bin.sum(dim=2, keepdim=True)
    # origin is added to both edges
    return torch.cat([by_bin[..., :2].sum(dim=3, keepdim=True), by_bin], dim=3).to(bins.dtype)
