"""Finds every specialization of the Triton kernels, by recording the launches of the backend.

The backend is called as the operators call it, with tensors that have shapes and dtypes but no memory, and its launches
are recorded instead of queued. The compiled code is therefore that of a call on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from bench.contenders import DTYPES, LAYOUTS
from torch import Tensor

from detpool.ops.backends.triton import launch, primitives
from detpool.ops.layout import sum_dtype
from detpool.ops.spec import Spec

IMAGES, HEIGHT, WIDTH = 2, 50, 76
ROIS, BINS = 512, 7
CHANNELS, CLASSES = 256, 21
"""Channels and classes of the workloads c4 and rfcn of `tools/bench_ops.py`."""

_POINTER = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
OWN = (BINS, BINS)
"""Groups of position-sensitive channels, one per bin."""


def _spec(bins: str, sampling: str, ratio: int = -1, groups: tuple[int, int] = (1, 1)) -> Spec:
    return Spec(bins, sampling, (BINS, BINS), (1 / 16,), ratio, groups)


LINEAR = {
    "roi_align": _spec("aligned", "points", 2),
    "roi_align adaptive": _spec("aligned", "points"),
    "pr_roi_pool": _spec("continuous", "integral"),
    "mean of cells": _spec("rounded", "cells"),
    "ps_roi_pool": _spec("ps_rounded", "cells", groups=OWN),
    "ps_roi_align": _spec("aligned", "points", 2, OWN),
    "ps pr_roi_pool": _spec("continuous", "integral", groups=OWN),
    "deform_roi_pool": _spec("aligned", "points", 2),
    "deform_ps_roi_pool": _spec("rfcn_centered", "counted_points", 4, OWN),
}
MAXIMUM = {"roi_pool": _spec("rounded", "cells"), "maximum of own channels": _spec("rounded", "cells", groups=OWN)}


@dataclass(frozen=True)
class Launch:
    """A kernel as specialized for one call."""

    operator: str
    dtype: str
    layout: str
    kernel: str
    """Name in the form module.function."""
    signature: tuple[tuple[str, str], ...]
    """Types of the arguments that are not known at compile time."""
    constants: tuple[tuple[str, Any], ...]
    """Values that are known at compile time; a rule in the form ``module:function``."""
    divisible: tuple[str, ...]
    """Arguments that are multiples of 16."""
    num_warps: int
    maxnreg: int | None
    """Maximum number of registers per thread; None: the compiler decides."""

    @property
    def key(self) -> tuple[Any, ...]:
        """Key that is equal for launches that run the same code."""
        constants = tuple((name, str(value)) for name, value in self.constants)
        return self.kernel, self.signature, constants, self.divisible, self.num_warps, self.maxnreg


def every_launch(
    lanes: int, dtypes: Sequence[str] = tuple(DTYPES), layouts: Sequence[str] = tuple(LAYOUTS)
) -> list[Launch]:
    """Returns the launches of all operators, forward and backward in both forms, without duplicates.

    Args:
        lanes: number of threads of a warp.
        dtypes: names of `DTYPES`.
        layouts: names of `LAYOUTS`, the memory formats of the features.
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
    call = _call_linear if operator in LINEAR else _call_maximum
    with (
        mock.patch.object(launch, "run_kernel", lambda *call: recorded.append(call)),
        mock.patch.object(launch, "lanes", return_value=lanes),
    ):
        call(operator, DTYPES[dtype], LAYOUTS[layout])
        if (LINEAR | MAXIMUM)[operator].groups == OWN:
            # the layout of the channels depends on the number of RoIs
            for copies in (False, True):
                with mock.patch.object(primitives, "pays_to_copy", return_value=copies):
                    call(operator, DTYPES[dtype], LAYOUTS[layout])
    for kernel, _, arguments, options in recorded:
        yield _specialised(kernel, arguments, dict(options), operator, dtype, layout)


def _call_linear(operator: str, dtype: torch.dtype, layout: torch.memory_format) -> None:
    spec = LINEAR[operator]
    features, pooled, rois = _tensors(spec, dtype, layout)
    offsets = None
    if operator.startswith("deform"):
        offsets = torch.empty((ROIS, 2, BINS, BINS), dtype=rois.dtype, device="meta")
    call = (rois, None, offsets)
    primitives.weighted_sum([features], *call, spec)
    for _ in _both_forms():
        shape = (IMAGES, features.shape[1], HEIGHT, WIDTH)
        primitives.weighted_sum_of_grad(pooled, *call, [shape], [layout == torch.channels_last], spec)
    primitives.weighted_sum_roi_grads(pooled, [features], *call, spec)


def _call_maximum(operator: str, dtype: torch.dtype, layout: torch.memory_format) -> None:
    spec = MAXIMUM[operator]
    features, pooled, rois = _tensors(spec, dtype, layout)
    _, argmax = primitives.window_max([features], rois, None, spec, with_places=True)
    for _ in _both_forms():
        shape = (IMAGES, features.shape[1], HEIGHT, WIDTH)
        primitives.window_max_of_grad(pooled, argmax, rois, None, [shape], [layout == torch.channels_last], spec)


def _tensors(spec: Spec, dtype: torch.dtype, layout: torch.memory_format) -> tuple[Tensor, Tensor, Tensor]:
    """Features, pooled features and RoIs, without memory."""
    inside, outside = (CLASSES * BINS * BINS, CLASSES) if spec.groups == OWN else (CHANNELS, CHANNELS)
    features = torch.empty((IMAGES, inside, HEIGHT, WIDTH), dtype=dtype, device="meta", memory_format=layout)
    pooled = torch.empty((ROIS, outside, BINS, BINS), dtype=dtype, device="meta", memory_format=layout)
    return features, pooled, torch.empty((ROIS, 5), dtype=sum_dtype(dtype), device="meta")


def _both_forms() -> Iterator[None]:
    """Yields once with atomics and once with deterministic algorithms, whatever the setting of the process."""
    for deterministic in (False, True):
        with mock.patch.object(torch, "are_deterministic_algorithms_enabled", return_value=deterministic):
            yield


def _specialised(
    kernel: Any, arguments: tuple[Any, ...], options: dict[str, Any], operator: str, dtype: str, layout: str
) -> Launch:
    """Specializes as Triton's launcher does: integers equal to 1 are constants, and multiples of 16 are marked.

    Arguments that a kernel excludes from specialization are neither.
    """
    num_warps, maxnreg = options.pop("num_warps"), options.pop("maxnreg", None)
    constants: dict[str, Any] = dict(options)
    if "RULE" in constants:
        constants["RULE"] = f"{constants['RULE'].fn.__module__}:{constants['RULE'].fn.__name__}"
    signature, divisible = {}, []
    general = {param.name for param in kernel.params if param.do_not_specialize}
    for name, value in zip(kernel.arg_names, arguments, strict=False):
        if isinstance(value, Tensor):
            signature[name] = _POINTER[value.dtype]
            divisible.append(name)
        elif value is None or (value == 1 and name not in general):
            constants[name] = value
        else:
            signature[name] = "i32" if abs(value) < 2**31 else "i64"
            if value % 16 == 0 and name not in general:
                divisible.append(name)
    name = f"{kernel.fn.__module__.rpartition('.')[2].removesuffix('_kernels')}.{kernel.fn.__name__}"
    known = (tuple(signature.items()), tuple(constants.items()), tuple(divisible), num_warps, maxnreg)
    return Launch(operator, dtype, layout, name, *known)


def kernel_of(launched: Launch) -> Any:
    """Returns the Triton function of a launch."""
    module, _, name = launched.kernel.partition(".")
    modules = {
        "layout": launch.layouts,
        "weighted_sum": launch.sums,
        "transposed_sum": launch.transposes,
        "window_max": launch.maxima,
    }
    return getattr(modules[module], name)
