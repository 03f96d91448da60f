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
