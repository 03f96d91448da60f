"""Sliding reductions of float32 maps on a CPU by compiled kernels, where PyTorch's operations would need ten passes.

:mod:`~detpool.layers.reductions` defines the formulas, and computes them if :func:`serves` returns false. Maps that are
not channels_last are copied to that memory format, and results are copied back. Second derivatives are computed by the
formulas.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from detpool.ops.backends.cpu.threads import run
from detpool.ops.layout import is_channels_last, memory_format

Windows = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""Kernel, stride and padding, each (rows, columns)."""


def serves(features: Tensor, *numbers: float | Tensor) -> bool:
    """Whether the kernels support ``features`` (float32, on a CPU, not traced) and ``numbers`` (not trained)."""
    return (
        features.dtype == torch.float32
        and features.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not any(isinstance(number, Tensor) for number in numbers)
    )


class Reduction(torch.autograd.Function):
    """``apply(features, kernel, windows, numbers, formula)``: (N, C, H, W) to (N, C, OH, OW).

    ``kernel`` is "lp" with ``numbers`` (p,) or "weighted" with (soft, beta). ``formula`` computes the same in PyTorch.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, kernel: str, windows: Windows, numbers: tuple, formula: Callable) -> Tensor:
        results = _outputs(features, windows, 3 if kernel == "weighted" else 1)
        _run(kernel, (features,), (windows, *numbers, *map(_array, results)))
        ctx.save_for_backward(features, *results)
        ctx.rest = (kernel, windows, numbers, formula)
        return _like(results[0], features)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        features, *results = ctx.saved_tensors
        kernel, windows, numbers, formula = ctx.rest
        if torch.is_grad_enabled():
            return torch.autograd.grad(formula(features), features, grad, create_graph=True)[0], None, None, None, None
        out = torch.empty(features.shape, memory_format=torch.channels_last).zero_()
        _run(f"{kernel}_backward", (features, *results, grad), (windows, *numbers, _array(out)))
        return _like(out, features), None, None, None, None


class Draw(torch.autograd.Function):
    """``apply(features, windows)``: a value of each window, drawn with probability proportional to max(value, 0)."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, windows: Windows) -> Tensor:
        (drawn,) = _outputs(features, windows, 1)
        place = torch.empty_like(drawn, dtype=torch.int64)
        seed = torch.randint(1 << 32, (2,)).to(torch.uint32).numpy()
        _run("draw", (features,), (windows, seed, _array(drawn), _array(place)))
        ctx.save_for_backward(features, drawn, place)
        ctx.windows = windows
        return _like(drawn, features)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        features, drawn, place = ctx.saved_tensors
        # That of a maximum found at those cells; nothing is drawn of a window of zeros.
        backward = torch.ops.aten.max_pool2d_with_indices_backward
        return backward(grad * (drawn != 0), features, *ctx.windows, (1, 1), False, place), None


def _outputs(features: Tensor, windows: Windows, count: int) -> list[Tensor]:
    """Channels_last tensors (N, C, OH, OW)."""
    sizes = [
        (length + 2 * border - kernel) // step + 1
        for length, kernel, step, border in zip(features.shape[2:], *windows, strict=True)
    ]
    shape = (*features.shape[:2], *sizes)
    return [torch.empty(shape, memory_format=torch.channels_last) for _ in range(count)]


def _run(kernel: str, read: tuple[Tensor, ...], arguments: tuple[Any, ...]) -> None:
    """Runs a kernel for each image and block of channels, with enough blocks that every thread has work."""
    from . import kernels  # takes a second

    call, arrays = getattr(kernels, kernel), [_array(tensor) for tensor in read]
    images, channels = read[0].shape[:2]
    block = max(16, -(-channels * images // torch.get_num_threads())) if images else channels
    blocks = -(-channels // block)

    def task(number: int) -> None:
        image, first = number // blocks, number % blocks * block
        call(*arrays, image, first, min(first + block, channels), *arguments)

    run(images * blocks, task)


def _array(tensor: Tensor) -> Any:
    """NumPy array (N, H, W, C), a view of ``tensor`` if that is channels_last."""
    return tensor.detach().contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1).numpy()


def _like(result: Tensor, features: Tensor) -> Tensor:
    return result.contiguous(memory_format=memory_format(is_channels_last(features)))
