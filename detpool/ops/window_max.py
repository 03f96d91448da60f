"""Primitive 2, the maximum over the integer cells of each bin, with gradients of any order.

The gradient goes to the first maximum in row-major order. Its transpose, reading the features at those cells, is linear
as well, so the two give each other's derivatives.
"""

from typing import Any

import torch
from torch import Tensor

from .backends import check_name, choose
from .layout import cell_dtype, is_channels_last, memory_format
from .registration import differentiable, fake, operator
from .separable import check_groups, check_indices


def window_max(
    features: Tensor,
    batch: Tensor,
    y_windows: Tensor,
    x_windows: Tensor,
    *,
    groups: tuple[int, int] = (1, 1),
    backend: str | None = None,
) -> Tensor:
    """The maximum over each bin's cells.

    Args:
        features: (N, C, H, W), any floating dtype.
        batch: (K,) int64, the image of each RoI.
        y_windows: (K, PH, 2) int32, the first and last + 1 row of each bin, within 0 .. H.
        x_windows: (K, PW, 2) int32, the same for columns.
        groups: as in :func:`detpool.ops.separable.separable_sum`.
        backend: name of a backend, or None for the first that can serve the call.

    Returns:
        (K, C / (GH GW), PH, PW), dtype of ``features``, channels_last if ``features`` are; 0 for a bin without cells,
        NaN for one that holds NaN. Differentiable with respect to features.
    """
    return _window_max(features, batch, y_windows, x_windows, *groups, check_name(backend))[0]


@operator
def _window_max(
    features: Tensor,
    batch: Tensor,
    y_windows: Tensor,
    x_windows: Tensor,
    group_rows: int,
    group_columns: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    groups = (group_rows, group_columns)
    check_groups(features.shape[1], (y_windows.shape[1], x_windows.shape[1]), groups)
    check_indices(batch, features.shape[0], (y_windows, features.shape[2] + 1), (x_windows, features.shape[3] + 1))
    tensors = {"features": features, "batch": batch, "y_windows": y_windows, "x_windows": x_windows}
    implementation = choose(backend, "window_max", tensors)
    output, argmax = implementation.window_max(features, batch, y_windows, x_windows, groups)
    layout = memory_format(is_channels_last(features))
    return output.contiguous(memory_format=layout), argmax.contiguous(memory_format=layout)


@fake(_window_max)
def _(
    features: Tensor,
    batch: Tensor,
    y_windows: Tensor,
    x_windows: Tensor,
    group_rows: int,
    group_columns: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    channels = features.shape[1] // (group_rows * group_columns)
    output = features.new_empty((batch.shape[0], channels, y_windows.shape[1], x_windows.shape[1]))
    output = output.contiguous(memory_format=memory_format(is_channels_last(features)))
    return output, torch.empty_like(output, dtype=cell_dtype(features))


@operator
def _window_scatter(
    grad: Tensor,
    argmax: Tensor,
    batch: Tensor,
    shape: list[int],
    group_rows: int,
    group_columns: int,
    channels_last: bool,
    backend: str,
) -> Tensor:
    images, channels, height, width = shape
    check_indices(batch, images)
    implementation = choose(backend, "window_scatter", {"grad": grad, "argmax": argmax, "batch": batch})
    output = implementation.window_scatter(
        grad, argmax, batch, (images, channels, height, width), (group_rows, group_columns), channels_last
    )
    return output.contiguous(memory_format=memory_format(channels_last))


@fake(_window_scatter)
def _(
    grad: Tensor,
    argmax: Tensor,
    batch: Tensor,
    shape: list[int],
    group_rows: int,
    group_columns: int,
    channels_last: bool,
    backend: str,
) -> Tensor:
    return grad.new_empty(shape).contiguous(memory_format=memory_format(channels_last))


@operator
def _window_gather(
    features: Tensor, argmax: Tensor, batch: Tensor, group_rows: int, group_columns: int, backend: str
) -> Tensor:
    check_indices(batch, features.shape[0])
    implementation = choose(backend, "window_gather", {"features": features, "argmax": argmax, "batch": batch})
    output = implementation.window_gather(features, argmax, batch, (group_rows, group_columns))
    return output.contiguous(memory_format=memory_format(is_channels_last(features)))


@fake(_window_gather)
def _(features: Tensor, argmax: Tensor, batch: Tensor, group_rows: int, group_columns: int, backend: str) -> Tensor:
    return features.new_empty(argmax.shape).contiguous(memory_format=memory_format(is_channels_last(features)))


def _save_max(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    features, batch = inputs[:2]
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # or the positions would get a gradient of zeros, as large as the output
    ctx.save_for_backward(output[1], batch)
    ctx.rest = (features.shape, *inputs[4:6], is_channels_last(features), inputs[6])


def _max_backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 7
    return _window_scatter(grad, *ctx.saved_tensors, *ctx.rest), None, None, None, None, None, None


def _save_scatter(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:3])
    ctx.rest = (*inputs[4:6], inputs[7])


def _scatter_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _window_gather(grad, *ctx.saved_tensors, *ctx.rest), None, None, None, None, None, None, None


def _save_gather(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:3])
    ctx.rest = (inputs[0].shape, *inputs[3:5], is_channels_last(inputs[0]), inputs[5])


def _gather_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _window_scatter(grad, *ctx.saved_tensors, *ctx.rest), None, None, None, None, None


differentiable(_window_max, _max_backward, _save_max)
differentiable(_window_scatter, _scatter_backward, _save_scatter)
differentiable(_window_gather, _gather_backward, _save_gather)
