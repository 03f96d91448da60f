"""Registering functions as PyTorch operators."""

from collections.abc import Callable
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
    """Give an operator its gradient: ``save(ctx, inputs, output)`` in the forward, ``backward(ctx, *grads)``."""
    torch.library.register_autograd(registered.name(), backward, setup_context=save)


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
