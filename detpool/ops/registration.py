"""Registering functions as PyTorch operators."""

from collections.abc import Callable, Sequence
from typing import Any

import torch


def operator(function: Callable[..., Any]) -> Any:
    """Register an annotated function as ``detpool::its_name`` for every device; returns the operator.

    Not ``torch.library.custom_op``: that imports ``torch._dynamo`` at the first call, which takes seconds.
    """
    name = f"detpool::{function.__name__.lstrip('_')}"
    torch.library.define(name, torch.library.infer_schema(function, mutates_args=()))
    torch.library.impl(name, "default", function)
    return getattr(torch.ops.detpool, function.__name__.lstrip("_")).default


def fake(registered: Any) -> Callable[[Callable[..., Any]], None]:
    """Decorator: the shapes, dtypes and layouts that an operator returns, for tracing."""
    return lambda function: torch.library.register_fake(registered.name(), function) and None


def differentiable(registered: Any, backward: Callable[..., Any], save: Callable[..., Any]) -> None:
    """Give an operator its gradient: ``save(ctx, inputs, output)`` in the forward, ``backward(ctx, *grads)``.

    As ``torch.library.register_autograd``, which takes 0.1 ms a call where there are lists of tensors. ``inputs``,
    ``ctx.needs_input_grad`` and what ``backward`` returns are nested as the arguments of the operator are.
    """

    class Differentiable(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, keyset: Any, like: Sequence[Any], *tensors: torch.Tensor) -> Any:
            inputs = _nest(tensors, like)
            with torch._C._AutoDispatchBelowAutograd():
                output = registered.redispatch(keyset & torch._C._after_autograd_keyset, *inputs)
            ctx.arguments = like
            save(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            flat = ctx.needs_input_grad
            ctx.needs_input_grad = _nest(flat[2:], ctx.arguments)
            try:
                found = backward(ctx, *grads)
            finally:
                ctx.needs_input_grad = flat
            return None, None, *_flatten(found, ctx.arguments)

    def differentiate(keyset: Any, *args: Any) -> Any:
        if not (torch.is_grad_enabled() and torch._C._any_requires_grad(*args)):
            with torch._C._AutoDispatchBelowAutograd():
                return registered.redispatch(keyset & torch._C._after_autograd_keyset, *args)
        like = [_TENSOR if isinstance(a, torch.Tensor) else [_TENSOR] * len(a) if _has_tensors(a) else a for a in args]
        return Differentiable.apply(keyset, like, *_flatten(args, like))

    _library.impl(registered.name(), differentiate, "Autograd", with_keyset=True)


_TENSOR = object()
"""Stands for a tensor among the arguments of an operator."""
_library = torch.library.Library("detpool", "FRAGMENT")


def _has_tensors(argument: Any) -> bool:
    return isinstance(argument, (list, tuple)) and len(argument) > 0 and isinstance(argument[0], torch.Tensor)


def _nest(values: Sequence[Any], like: Sequence[Any]) -> list[Any]:
    """``like`` with ``values`` in place of tensors."""
    rest = iter(values)
    nested = []
    for argument in like:
        is_list = isinstance(argument, list) and len(argument) > 0 and argument[0] is _TENSOR
        nested.append([next(rest) for _ in argument] if is_list else next(rest) if argument is _TENSOR else argument)
    return nested


def _flatten(nested: Sequence[Any], like: Sequence[Any]) -> list[Any]:
    """The inverse of :func:`_nest`."""
    values = []
    for value, argument in zip(nested, like, strict=True):
        if argument is _TENSOR:
            values.append(value)
        elif isinstance(argument, list) and len(argument) > 0 and argument[0] is _TENSOR:
            values.extend(value)
    return values


def batched(registered: Any) -> None:
    """Let ``torch.vmap`` map an operator over any of its tensors, one call for each."""

    def call_each(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        results = []
        for number in range(info.batch_size):
            results.append(registered(*(_select(arg, dim, number) for arg, dim in zip(args, in_dims, strict=True))))
        if isinstance(results[0], torch.Tensor):
            return torch.stack(results), 0
        stacked = [torch.stack(parts) for parts in zip(*results, strict=True)]
        return type(results[0])(stacked), type(results[0])([0] * len(stacked))

    torch.library.register_vmap(registered.name(), call_each)


def _select(value: Any, dim: Any, number: int) -> Any:
    if isinstance(dim, (list, tuple)):
        return [_select(v, d, number) for v, d in zip(value, dim, strict=True)]
    return value if dim is None else value.select(dim, number)
