"""Every specialisation of the Triton kernels, found by recording what the backend launches.

The backend is called as the operators call it, with tensors that have shapes and types but no memory, and its launches
are written down instead of queued. What is compiled is so what a call on a GPU would compile.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from detpool.ops.backends import triton as backend
from detpool.ops.backends.triton import launch
from detpool.ops.sampling import CELLS, COUNTED_POINTS, INTEGRAL, POINTS, Sampling

IMAGES, HEIGHT, WIDTH = 2, 50, 76
ROIS, BINS = 512, 7
CHANNELS, CLASSES = 256, 21
"""The shapes of the workloads c4 and rfcn of `tools/bench_ops.py`."""

DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}

_POINTER = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


@dataclass(frozen=True)
class Linear:
    """An operator that is a mean: its rule, and the shapes of its bins."""

    sampling: Sampling
    ratio: int = -1
    position_sensitive: bool = False
    joint: bool = False


LINEAR = {
    "roi_align": Linear(POINTS, 2),
    "roi_align adaptive": Linear(POINTS),
    "pr_roi_pool": Linear(INTEGRAL),
    "mean of cells": Linear(CELLS),
    "ps_roi_pool": Linear(CELLS, position_sensitive=True),
    "ps_roi_align": Linear(POINTS, 2, position_sensitive=True),
    "ps pr_roi_pool": Linear(INTEGRAL, position_sensitive=True),
    "deform_roi_pool": Linear(POINTS, 2, joint=True),
    "deform_ps_roi_pool": Linear(COUNTED_POINTS, 4, position_sensitive=True, joint=True),
}
MAXIMUM = {"roi_pool": False, "maximum of own channels": True}
"""Whether channels are position-sensitive."""


@dataclass(frozen=True)
class Launch:
    """One kernel as one call would specialise it."""

    operator: str
    dtype: str
    layout: str
    kernel: str
    """module.function"""
    signature: tuple[tuple[str, str], ...]
    """types of the arguments that are not known at compile time"""
    constants: tuple[tuple[str, Any], ...]
    """what is known at compile time; a rule as ``module:function``"""
    divisible: tuple[str, ...]
    """arguments that are multiples of 16"""
    num_warps: int

    @property
    def key(self) -> tuple[Any, ...]:
        """The same for launches that run the same code."""
        constants = tuple((name, str(value)) for name, value in self.constants)
        return self.kernel, self.signature, constants, self.divisible, self.num_warps


def every_launch(
    lanes: int, dtypes: Sequence[str] = tuple(DTYPES), layouts: Sequence[str] = tuple(LAYOUTS)
) -> list[Launch]:
    """Launches of all operators, forward and backward in both forms, without repetitions.

    Args:
        lanes: threads of a warp of the GPU.
        dtypes: names of `DTYPES`.
        layouts: names of `LAYOUTS`, of the features.
    """
    found: dict[Any, Launch] = {}
    for dtype in dtypes:
        for layout in layouts:
            for operator in (*LINEAR, *MAXIMUM):
                for launched in _launches_of(operator, dtype, layout, lanes):
                    found.setdefault(launched.key, launched)
    return list(found.values())


def _launches_of(operator: str, dtype: str, layout: str, lanes: int) -> Iterator[Launch]:
    recorded: list[tuple[Any, ...]] = []
    with (
        mock.patch.object(launch, "run_kernel", lambda *call: recorded.append(call)),
        mock.patch.object(launch, "lanes", return_value=lanes),
    ):
        (_call_linear if operator in LINEAR else _call_maximum)(operator, DTYPES[dtype], LAYOUTS[layout])
    for kernel, _, arguments, options in recorded:
        yield _specialised(kernel, arguments, dict(options), operator, dtype, layout)


def _call_linear(operator: str, dtype: torch.dtype, layout: torch.memory_format) -> None:
    case = LINEAR[operator]
    groups = (BINS, BINS) if case.position_sensitive else (1, 1)
    features, pooled, batch = _tensors(case.position_sensitive, dtype, layout)
    bins_dtype = torch.float64 if torch.float64 in (case.sampling.dtype, dtype) else torch.float32
    bins = torch.empty((ROIS, BINS, BINS if case.joint else 1, 4), dtype=bins_dtype, device="meta")
    assert case.sampling.triton is not None
    rest = ((HEIGHT, WIDTH), case.sampling.triton, case.ratio, groups)
    last = layout == torch.channels_last
    backend.bin_sum(features, batch, bins, bins, *rest, last)
    for _ in _both_forms():
        shape = (IMAGES, features.shape[1], HEIGHT, WIDTH)
        backend.bin_transpose(pooled, batch, bins, bins, shape, *rest, last)
    backend.bin_grads(pooled, features, batch, bins, bins, *rest)


def _call_maximum(operator: str, dtype: torch.dtype, layout: torch.memory_format) -> None:
    groups = (BINS, BINS) if MAXIMUM[operator] else (1, 1)
    features, pooled, batch = _tensors(MAXIMUM[operator], dtype, layout)
    windows = torch.empty((ROIS, BINS, 2), dtype=torch.int32, device="meta")
    _, argmax = backend.window_max(features, batch, windows, windows, groups)
    for _ in _both_forms():
        shape = (IMAGES, features.shape[1], HEIGHT, WIDTH)
        backend.window_scatter(pooled, argmax, batch, shape, groups, layout == torch.channels_last)


def _tensors(
    position_sensitive: bool, dtype: torch.dtype, layout: torch.memory_format
) -> tuple[Tensor, Tensor, Tensor]:
    """Features, pooled features and image indices."""
    inside, outside = (CLASSES * BINS * BINS, CLASSES) if position_sensitive else (CHANNELS, CHANNELS)
    features = torch.empty((IMAGES, inside, HEIGHT, WIDTH), dtype=dtype, device="meta", memory_format=layout)
    pooled = torch.empty((ROIS, outside, BINS, BINS), dtype=dtype, device="meta", memory_format=layout)
    return features, pooled, torch.empty(ROIS, dtype=torch.int64, device="meta")


def _both_forms() -> Iterator[None]:
    """First with atomics, then deterministic."""
    yield
    with _deterministic():
        yield


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _specialised(
    kernel: Any, arguments: tuple[Any, ...], options: dict[str, Any], operator: str, dtype: str, layout: str
) -> Launch:
    """As Triton's own launcher specialises: integers of 1 are constants, multiples of 16 are known as such."""
    num_warps = options.pop("num_warps")
    constants: dict[str, Any] = dict(options)
    if "RULE" in constants:
        constants["RULE"] = f"{constants['RULE'].fn.__module__}:{constants['RULE'].fn.__name__}"
    signature, divisible = {}, []
    for name, value in zip(kernel.arg_names, arguments, strict=False):
        if isinstance(value, Tensor):
            signature[name] = _POINTER[value.dtype]
            divisible.append(name)
        elif value == 1:
            constants[name] = 1
        else:
            signature[name] = "i32" if abs(value) < 2**31 else "i64"
            if value % 16 == 0:
                divisible.append(name)
    return Launch(
        operator,
        dtype,
        layout,
        f"{kernel.fn.__module__.rpartition('.')[2].removesuffix('_kernels')}.{kernel.fn.__name__}",
        tuple(signature.items()),
        tuple(constants.items()),
        tuple(divisible),
        num_warps,
    )


def kernel_of(launched: Launch) -> Any:
    """The Triton function of a launch."""
    module, _, name = launched.kernel.partition(".")
    return getattr({"separable": launch.separable, "window": launch.window}[module], name)
