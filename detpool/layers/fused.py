"""Sliding reductions of float32 maps on a CPU in one pass, where PyTorch's own operations would take ten.

:mod:`~detpool.layers.reductions` has the formulas, and computes them where :func:`serves` says no. Maps that are not
channels_last are copied into that layout, and results back, but for global :func:`lp`. Second derivatives are those of
the formulas.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from detpool.ops.backends.cpu.threads import run
from detpool.ops.layout import is_channels_last, memory_format

Windows = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""Kernel, stride and padding, each (rows, columns)."""


def serves(features: Tensor, *numbers: float | Tensor) -> bool:
    """Whether this file is for ``features`` (float32, on a CPU, not traced) and for ``numbers``: none is trained."""
    return (
        features.dtype == torch.float32
        and features.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not any(isinstance(number, Tensor) for number in numbers)
    )


def lp(features: Tensor, p: float, windows: Windows, formula: Callable[[Tensor], Tensor]) -> Tensor:
    """``mean(|f|^p)^(1/p)``; ``formula`` computes the same with PyTorch."""
    kernel, _, padding = windows
    if kernel == features.shape[2:] and padding == (0, 0) and features.is_contiguous():
        return _GlobalLp.apply(features, p, formula)
    return _Lp.apply(features, p, windows, formula)


def softmax(features: Tensor, beta: float, windows: Windows, formula: Callable[[Tensor], Tensor]) -> Tensor:
    """``sum f e^(beta f) / sum e^(beta f)``; ``formula`` as in :func:`lp`."""
    return _Softmax.apply(features, beta, windows, formula)


def expectation(features: Tensor, windows: Windows, formula: Callable[[Tensor], Tensor]) -> Tensor:
    """``sum f^2 / sum f``, negative values as 0; ``formula`` as in :func:`lp`."""
    return _Expectation.apply(features, windows, formula)


def stochastic(features: Tensor, windows: Windows) -> Tensor:
    """A value of each window, drawn in proportion to itself, negative ones as 0."""
    return _Stochastic.apply(features, windows)


class _Lp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, p: float, windows: Windows, formula: Callable) -> Tensor:
        from . import kernels

        (pooled,) = _outputs(features, windows, 1)
        _each(features, kernels.lp, (windows, kernels.np.float32(p), _array(pooled)))
        pooled = _like(pooled, features)
        ctx.save_for_backward(features, pooled)
        ctx.rest = (p, windows, formula)
        return pooled

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        from . import kernels

        features, pooled = ctx.saved_tensors
        p, windows, formula = ctx.rest
        if torch.is_grad_enabled():
            return _again(formula, features, grad), None, None, None
        arguments = (windows, kernels.np.float32(p))
        return _gradient(features, kernels.lp_backward, (pooled, grad), arguments), None, None, None


class _GlobalLp(torch.autograd.Function):
    """One window, of maps that are contiguous: the only ones that are read without a copy in that layout."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, p: float, formula: Callable) -> Tensor:
        from . import kernels

        pooled = features.new_empty(*features.shape[:2], 1, 1)
        _over_rows(kernels.global_lp, features, p, pooled.view(-1))
        ctx.save_for_backward(features, pooled)
        ctx.rest = (p, formula)
        return pooled

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        from . import kernels

        features, pooled = ctx.saved_tensors
        p, formula = ctx.rest
        if torch.is_grad_enabled():
            return _again(formula, features, grad), None, None
        out = torch.empty_like(features)
        _over_rows(kernels.global_lp_backward, features, p, pooled.view(-1), grad.contiguous().view(-1), _rows(out))
        return out, None, None


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, beta: float, windows: Windows, formula: Callable) -> Tensor:
        from . import kernels

        results = _outputs(features, windows, 3)
        _each(features, kernels.softmax, (windows, kernels.np.float32(beta), *map(_array, results)))
        pooled = _like(results[0], features)
        ctx.save_for_backward(features, pooled, *results[1:])
        ctx.rest = (beta, windows, formula)
        return pooled

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        from . import kernels

        features, *saved = ctx.saved_tensors
        beta, windows, formula = ctx.rest
        if torch.is_grad_enabled():
            return _again(formula, features, grad), None, None, None
        arguments = (windows, kernels.np.float32(beta))
        return _gradient(features, kernels.softmax_backward, (*saved, grad), arguments), None, None, None


class _Expectation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, windows: Windows, formula: Callable) -> Tensor:
        from . import kernels

        results = _outputs(features, windows, 2)
        _each(features, kernels.expectation, (windows, *map(_array, results)))
        pooled = _like(results[0], features)
        ctx.save_for_backward(features, pooled, results[1])
        ctx.rest = (windows, formula)
        return pooled

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        from . import kernels

        features, *saved = ctx.saved_tensors
        windows, formula = ctx.rest
        if torch.is_grad_enabled():
            return _again(formula, features, grad), None, None
        return _gradient(features, kernels.expectation_backward, (*saved, grad), (windows,)), None, None


class _Stochastic(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, windows: Windows) -> Tensor:
        from . import kernels

        (pooled,) = _outputs(features, windows, 1)
        drawn = torch.empty_like(pooled, dtype=torch.int32)
        seed = torch.randint(1 << 32, (2,)).numpy().astype(kernels.np.uint32)
        _each(features, kernels.stochastic, (windows, seed, _array(pooled), _array(drawn)))
        ctx.save_for_backward(features, drawn)
        ctx.mark_non_differentiable(drawn)
        return _like(pooled, features)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        from . import kernels

        features, drawn = ctx.saved_tensors
        return _gradient(features, kernels.scatter, (drawn, grad), ()), None


def _outputs(features: Tensor, windows: Windows, count: int) -> list[Tensor]:
    """Channels_last tensors (N, C, OH, OW)."""
    sizes = [
        (length + 2 * border - kernel) // step + 1
        for length, kernel, step, border in zip(features.shape[2:], *windows, strict=True)
    ]
    shape = (*features.shape[:2], *sizes)
    return [torch.empty(shape, memory_format=torch.channels_last) for _ in range(count)]


def _each(features: Tensor, kernel: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    _over(features, partial(kernel, _array(features)), arguments)


def _gradient(features: Tensor, kernel: Callable[..., None], read: tuple[Tensor, ...], rest: tuple[Any, ...]) -> Tensor:
    out = torch.empty(features.shape, memory_format=torch.channels_last).zero_()
    _over(features, partial(kernel, _array(features), *map(_array, read)), (*rest, _array(out)))
    return _like(out, features)


def _over(features: Tensor, kernel: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """``kernel`` for each image and so many blocks of its channels that every thread has work."""
    images, channels = features.shape[:2]
    block = max(16, -(-channels * images // torch.get_num_threads())) if images else channels
    blocks = -(-channels // block)

    def task(number: int) -> None:
        image, first = number // blocks, number % blocks * block
        kernel(image, first, min(first + block, channels), *arguments)

    run(images * blocks, task)


def _over_rows(kernel: Callable[..., None], features: Tensor, p: float, *arguments: Tensor) -> None:
    """``kernel`` for as many blocks of the maps (H, W) of contiguous ``features`` as there are threads."""
    from . import kernels

    rows = _rows(features).numpy()
    block = -(-len(rows) // torch.get_num_threads())
    arrays = [argument.detach().numpy() for argument in arguments]

    def task(number: int) -> None:
        first = number * block
        kernel(rows, first, min(first + block, len(rows)), kernels.np.float32(p), *arrays)

    run(-(-len(rows) // block) if block else 0, task)


def _rows(features: Tensor) -> Tensor:
    """(N C, H W), of the same memory."""
    return features.detach().flatten(0, 1).flatten(1)


def _array(tensor: Tensor) -> Any:
    """(N, H, W, C); of ``tensor`` itself if it is channels_last."""
    return tensor.detach().contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1).numpy()


def _like(result: Tensor, features: Tensor) -> Tensor:
    return result.contiguous(memory_format=memory_format(is_channels_last(features)))


def _again(formula: Callable[[Tensor], Tensor], features: Tensor, grad: Tensor) -> Tensor:
    """The gradient, itself differentiable."""
    with torch.enable_grad():
        return torch.autograd.grad(formula(features), features, grad, create_graph=True)[0]
