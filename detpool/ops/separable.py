"""Primitive 1, the separable weighted sum, with gradients of any order.

    out[k,c,i,j] = sum_ty sum_tx wy[k,i,j,ty] wx[k,i,j,tx] F[batch[k], channel(c,i,j), iy[k,i,j,ty], ix[k,i,j,tx]]

It is linear in the features F and in each of the weights wy and wx, so its derivatives need only two more operators,
the transposed sum and the gradients of the weights, whose own derivatives are the same three operators again.
"""

from typing import Any

import torch
from torch import Tensor

from .axes import Taps
from .backends import check_name, choose
from .layout import is_channels_last, memory_format
from .registration import differentiable, fake, operator


def separable_sum(
    features: Tensor,
    batch: Tensor,
    y: Taps,
    x: Taps,
    *,
    groups: tuple[int, int] = (1, 1),
    backend: str | None = None,
) -> Tensor:
    """The weighted sum of each bin's taps.

    Args:
        features: (N, C, H, W), any floating dtype; sums accumulate in the dtype of the weights.
        batch: (K,) int64, the image of each RoI.
        y: taps along y, (K, PH, 1, TY), or (K, PH, PW, TY) where they depend on both bins (then ``x`` does too).
        x: taps along x, (K, 1, PW, TX) or (K, PH, PW, TX).
        groups: (GH, GW), dividing (PH, PW). The bins form GH x GW blocks; bins of block (u, v) read input channel
            ``(c GH + u) GW + v`` for output channel c. (1, 1): all bins read all channels; (PH, PW):
            position-sensitive.
        backend: name of a backend, or None for the first that can serve the call.

    Returns:
        (K, C / (GH GW), PH, PW), dtype of ``features``, channels_last if ``features`` are. Differentiable with respect
        to features and weights, to any order.
    """
    return _separable_sum(features, batch, y.index, y.weight, x.index, x.weight, *groups, check_name(backend))


def check_groups(channels: int, bins: tuple[int, int], groups: tuple[int, int]) -> None:
    """Raise unless the channels and the bins divide into the groups."""
    if channels % (groups[0] * groups[1]):
        raise ValueError(
            f"input must have a multiple of {groups[0]} x {groups[1]} channels for position-sensitive pooling, "
            f"got {channels}"
        )
    if bins[0] % groups[0] or bins[1] % groups[1]:
        raise ValueError(f"groups {groups} must divide the output size {bins}")


def check_indices(batch: Tensor, images: int, *limits: tuple[Tensor, int]) -> None:
    """The last guard of compiled code: positions outside a tensor are an error, never a stray memory access."""
    if batch.device.type != "cpu":
        return
    for index, least, limit in ((batch, 0, images), *((index, -1, limit) for index, limit in limits)):
        if index.numel():
            low, high = torch.aminmax(index)
            if low < least or high >= limit:
                raise IndexError(f"an index must be from {least} to {limit - 1}, got {int(low)} to {int(high)}")


@operator
def _separable_sum(
    features: Tensor,
    batch: Tensor,
    iy: Tensor,
    wy: Tensor,
    ix: Tensor,
    wx: Tensor,
    group_rows: int,
    group_columns: int,
    backend: str,
) -> Tensor:
    groups = (group_rows, group_columns)
    check_groups(features.shape[1], (iy.shape[1], ix.shape[2]), groups)
    check_indices(batch, features.shape[0], (iy, features.shape[2]), (ix, features.shape[3]))
    tensors = {"features": features, "batch": batch, "iy": iy, "wy": wy, "ix": ix, "wx": wx}
    implementation = choose(backend, "separable_sum", tensors)
    output = implementation.separable_sum(features, batch, iy, wy, ix, wx, groups)
    return output.contiguous(memory_format=memory_format(is_channels_last(features)))


@fake(_separable_sum)
def _(
    features: Tensor,
    batch: Tensor,
    iy: Tensor,
    wy: Tensor,
    ix: Tensor,
    wx: Tensor,
    group_rows: int,
    group_columns: int,
    backend: str,
) -> Tensor:
    shape = (batch.shape[0], features.shape[1] // (group_rows * group_columns), iy.shape[1], ix.shape[2])
    return features.new_empty(shape).contiguous(memory_format=memory_format(is_channels_last(features)))


@operator
def _separable_transpose(
    grad: Tensor,
    batch: Tensor,
    iy: Tensor,
    wy: Tensor,
    ix: Tensor,
    wx: Tensor,
    shape: list[int],
    group_rows: int,
    group_columns: int,
    channels_last: bool,
    backend: str,
) -> Tensor:
    images, channels, height, width = shape
    check_indices(batch, images, (iy, height), (ix, width))
    tensors = {"grad": grad, "batch": batch, "iy": iy, "wy": wy, "ix": ix, "wx": wx}
    implementation = choose(backend, "separable_transpose", tensors)
    output = implementation.separable_transpose(
        grad, batch, iy, wy, ix, wx, (images, channels, height, width), (group_rows, group_columns), channels_last
    )
    return output.contiguous(memory_format=memory_format(channels_last))


@fake(_separable_transpose)
def _(
    grad: Tensor,
    batch: Tensor,
    iy: Tensor,
    wy: Tensor,
    ix: Tensor,
    wx: Tensor,
    shape: list[int],
    group_rows: int,
    group_columns: int,
    channels_last: bool,
    backend: str,
) -> Tensor:
    return grad.new_empty(shape).contiguous(memory_format=memory_format(channels_last))


@operator
def _separable_weight_grads(
    grad: Tensor,
    features: Tensor,
    batch: Tensor,
    iy: Tensor,
    wy: Tensor,
    ix: Tensor,
    wx: Tensor,
    group_rows: int,
    group_columns: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    check_indices(batch, features.shape[0], (iy, features.shape[2]), (ix, features.shape[3]))
    tensors = {"grad": grad, "features": features, "batch": batch, "iy": iy, "wy": wy, "ix": ix, "wx": wx}
    implementation = choose(backend, "separable_weight_grads", tensors)
    grad_wy, grad_wx = implementation.separable_weight_grads(
        grad, features, batch, iy, wy, ix, wx, (group_rows, group_columns)
    )
    return grad_wy.contiguous(), grad_wx.contiguous()


@fake(_separable_weight_grads)
def _(
    grad: Tensor,
    features: Tensor,
    batch: Tensor,
    iy: Tensor,
    wy: Tensor,
    ix: Tensor,
    wx: Tensor,
    group_rows: int,
    group_columns: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return wy.new_empty(wy.shape), wx.new_empty(wx.shape)


# Each backward below is the product rule on the trilinear form, in terms of the three operators themselves; that is
# what makes derivatives of any order work.


def _save_sum(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, *taps = inputs[:6]
    ctx.save_for_backward(features, *taps)
    ctx.rest = inputs[6:]


def _sum_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    features, *taps = ctx.saved_tensors
    needs = ctx.needs_input_grad
    grad_features = grad_wy = grad_wx = None
    if needs[0]:
        grad_features = _separable_transpose(
            grad, *taps, features.shape, *ctx.rest[:2], is_channels_last(features), ctx.rest[2]
        )
    if needs[3] or needs[5]:
        grad_wy, grad_wx = _separable_weight_grads(grad, features, *taps, *ctx.rest)
    return grad_features, None, None, grad_wy, None, grad_wx, None, None, None


def _save_transpose(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.rest = (*inputs[7:9], inputs[10])


def _transpose_backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    grad, *taps = ctx.saved_tensors
    needs = ctx.needs_input_grad
    grad_grad = grad_wy = grad_wx = None
    if needs[0]:
        grad_grad = _separable_sum(grad_output, *taps, *ctx.rest)
    if needs[3] or needs[5]:
        grad_wy, grad_wx = _separable_weight_grads(grad, grad_output, *taps, *ctx.rest)
    return grad_grad, None, None, grad_wy, None, grad_wx, None, None, None, None, None


def _save_weight_grads(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:7])
    ctx.rest = inputs[7:]


def _weight_grads_backward(ctx: Any, along_wy: Tensor, along_wx: Tensor) -> tuple[Tensor | None, ...]:
    grad, features, batch, iy, wy, ix, wx = ctx.saved_tensors
    rest = ctx.rest
    needs = ctx.needs_input_grad
    # The two outputs are the parts of <grad, sum(features, wy, wx)> that are linear in wy and in wx.
    terms = ((batch, iy, along_wy, ix, wx), (batch, iy, wy, ix, along_wx))
    grad_grad = grad_features = grad_wy = grad_wx = None
    if needs[0]:
        grad_grad = _separable_sum(features, *terms[0], *rest) + _separable_sum(features, *terms[1], *rest)
    if needs[1]:
        layout = (features.shape, *rest[:2], is_channels_last(features), rest[2])
        grad_features = _separable_transpose(grad, *terms[0], *layout) + _separable_transpose(grad, *terms[1], *layout)
    if needs[4]:
        grad_wy = _separable_weight_grads(grad, features, *terms[1], *rest)[0]
    if needs[6]:
        grad_wx = _separable_weight_grads(grad, features, *terms[0], *rest)[1]
    return grad_grad, grad_features, None, None, grad_wy, None, grad_wx, None, None, None


differentiable(_separable_sum, _sum_backward, _save_sum)
differentiable(_separable_transpose, _transpose_backward, _save_transpose)
differentiable(_separable_weight_grads, _weight_grads_backward, _save_weight_grads)
