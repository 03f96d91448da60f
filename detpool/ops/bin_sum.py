"""Primitive 1 from bins: the separable sum for backends that compute the taps of a bin themselves.

What :mod:`~detpool.ops.separable` computes from the taps of a sampling rule, without the taps. The gradients of bins
lead on to boxes and offsets, as those of weights do there.
"""

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from .axes import Bins, Taps
from .layout import is_channels_last, memory_format
from .registration import differentiable, fake, operator
from .separable import check_groups, separable_sum


def bin_sum(
    features: Tensor,
    batch: Tensor,
    y: Bins,
    x: Bins,
    *,
    lengths: tuple[int, int],
    rule: str,
    ratio: int,
    groups: tuple[int, int],
) -> Tensor:
    """The weighted sum of each bin's taps.

    Args:
        features: (N, C, H, W), float16, bfloat16, float32 or float64, on a device of the Triton backend.
        batch: (K,) int64, the image of each RoI.
        y: bins along y, J being 1 or PW.
        x: bins along x, J being 1 or PH.
        lengths: rows and columns that bins may read, at most (H, W).
        rule: the ``triton`` name of a :class:`~detpool.ops.sampling.Sampling`.
        ratio: its sampling ratio.
        groups: as in :func:`~detpool.ops.separable.separable_sum`.

    Returns:
        (K, C / (GH GW), PH, PW), dtype of ``features``, channels_last if ``features`` are; NaN for a RoI whose image
        index is out of range or whose bins are not finite. Differentiable with respect to features and bins, to any
        order.
    """
    return _bin_sum(features, batch, _packed(y), _packed(x), *lengths, rule, ratio, *groups)


def _packed(bins: Bins) -> Tensor:
    """(K, P, J, 4): origin, lower, upper, size."""
    lower = bins.lower
    return torch.stack([bins.origin.expand_as(lower), lower, bins.upper, bins.size.expand_as(lower)], dim=3)


def _unpacked(packed: Tensor) -> Bins:
    origin, lower, upper, size = packed.unbind(3)
    return Bins(origin[:, :1, :1], lower, upper, size[:, :1, :1])


def _triton() -> Any:
    return import_module(f"{__package__}.backends.triton")


@operator
def _bin_sum(
    features: Tensor,
    batch: Tensor,
    y: Tensor,
    x: Tensor,
    rows: int,
    columns: int,
    rule: str,
    ratio: int,
    group_rows: int,
    group_columns: int,
) -> Tensor:
    groups = (group_rows, group_columns)
    check_groups(features.shape[1], (y.shape[1], x.shape[1]), groups)
    last = is_channels_last(features)
    return _triton().bin_sum(
        features, batch, y.contiguous(), x.contiguous(), (rows, columns), rule, ratio, groups, last
    )


@fake(_bin_sum)
def _(
    features: Tensor,
    batch: Tensor,
    y: Tensor,
    x: Tensor,
    rows: int,
    columns: int,
    rule: str,
    ratio: int,
    group_rows: int,
    group_columns: int,
) -> Tensor:
    shape = (batch.shape[0], features.shape[1] // (group_rows * group_columns), y.shape[1], x.shape[1])
    return features.new_empty(shape).contiguous(memory_format=memory_format(is_channels_last(features)))


@operator
def _bin_transpose(
    grad: Tensor,
    batch: Tensor,
    y: Tensor,
    x: Tensor,
    shape: list[int],
    rows: int,
    columns: int,
    rule: str,
    ratio: int,
    group_rows: int,
    group_columns: int,
    channels_last: bool,
) -> Tensor:
    groups = (group_rows, group_columns)
    y, x = y.contiguous(), x.contiguous()
    images, channels, height, width = shape
    return _triton().bin_transpose(
        grad, batch, y, x, (images, channels, height, width), (rows, columns), rule, ratio, groups, channels_last
    )


@fake(_bin_transpose)
def _(
    grad: Tensor,
    batch: Tensor,
    y: Tensor,
    x: Tensor,
    shape: list[int],
    rows: int,
    columns: int,
    rule: str,
    ratio: int,
    group_rows: int,
    group_columns: int,
    channels_last: bool,
) -> Tensor:
    return grad.new_empty(shape).contiguous(memory_format=memory_format(channels_last))


@operator
def _bin_grads(
    grad: Tensor,
    features: Tensor,
    batch: Tensor,
    y: Tensor,
    x: Tensor,
    rows: int,
    columns: int,
    rule: str,
    ratio: int,
    group_rows: int,
    group_columns: int,
) -> tuple[Tensor, Tensor]:
    groups = (group_rows, group_columns)
    return _triton().bin_grads(
        grad, features, batch, y.contiguous(), x.contiguous(), (rows, columns), rule, ratio, groups
    )


@fake(_bin_grads)
def _(
    grad: Tensor,
    features: Tensor,
    batch: Tensor,
    y: Tensor,
    x: Tensor,
    rows: int,
    columns: int,
    rule: str,
    ratio: int,
    group_rows: int,
    group_columns: int,
) -> tuple[Tensor, Tensor]:
    return y.new_empty(y.shape), x.new_empty(x.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.rest = inputs[4:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    features, batch, y, x = ctx.saved_tensors
    needs = ctx.needs_input_grad
    grads: list[Tensor | None] = [None] * 10
    if torch.is_grad_enabled():
        # the gradients are to be differentiated in their turn: taps have derivatives of any order
        wanted = [n for n in (0, 2, 3) if needs[n]]
        output = _by_taps(features, batch, y, x, *ctx.rest)
        inputs = [(features, batch, y, x)[n] for n in wanted]
        found = torch.autograd.grad(output, inputs, grad, create_graph=True, allow_unused=True)
        for n, value in zip(wanted, found, strict=True):
            grads[n] = value
        return tuple(grads)
    if needs[0]:
        grads[0] = _bin_transpose(grad, batch, y, x, features.shape, *ctx.rest, is_channels_last(features))
    if needs[2] or needs[3]:
        grads[2], grads[3] = _bin_grads(grad, features, batch, y, x, *ctx.rest)
    return tuple(grads)


def _by_taps(
    features: Tensor,
    batch: Tensor,
    y: Tensor,
    x: Tensor,
    rows: int,
    columns: int,
    rule: str,
    ratio: int,
    group_rows: int,
    group_columns: int,
) -> Tensor:
    from .sampling import BY_TRITON_NAME

    taps = BY_TRITON_NAME[rule].taps
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    y_taps, x_taps = taps(_unpacked(y), rows, ratio), taps(_unpacked(x), columns, ratio).transposed()
    y_taps, x_taps = Taps(y_taps.index, y_taps.weight.to(dtype)), Taps(x_taps.index, x_taps.weight.to(dtype))
    return separable_sum(features, batch, y_taps, x_taps, groups=(group_rows, group_columns))


differentiable(_bin_sum, _backward, _save)
