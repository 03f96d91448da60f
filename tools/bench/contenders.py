"""Pooling calls that can be timed against each other, and their expected results."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from detpool.poolers import RoIPooler

from .operators import Operator
from .workloads import Workload

FORWARD = "forward"
BACKWARD = "forward+backward"
BOX_BACKWARD = "forward+backward+boxes"
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
CHECKED_EVERY = 16
"""Every so many output channels, one is compared with the reference; all would take minutes per case."""

Results = dict[str, list[Tensor]]
Pool = Callable[[Sequence[Tensor], Any], Tensor]


class Absent(Exception):
    """Raised if an implementation cannot take part; the message says why."""


@dataclass(frozen=True)
class Case:
    """A computation for which implementations are compared."""

    workload: Workload
    operator: Operator
    direction: str
    dtype: torch.dtype
    threads: int
    sampling_ratio: int
    """Points per bin along each axis for operators that sample points; 0 for as many as the bin has cells."""
    device: str = "cpu"
    """Device: cpu or cuda."""

    @property
    def backward(self) -> bool:
        return self.direction != FORWARD

    @property
    def box_gradients(self) -> bool:
        return self.direction == BOX_BACKWARD

    @property
    def checked_channels(self) -> Tensor:
        """Output channels that are compared with the reference."""
        channels = self.workload.output_channels
        return torch.tensor(sorted({*range(0, channels, CHECKED_EVERY), channels - 1}))

    @cached_property
    def grad_output(self) -> Tensor:
        """Gradient of the output: (K, C, PH, PW) float32, contiguous, normally distributed."""
        rois = sum(len(boxes) for boxes in self.workload.boxes)
        shape = (rois, self.workload.output_channels, *self.workload.output_size)
        return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@dataclass(frozen=True)
class Contender:
    """An implementation with its inputs prepared."""

    run: Callable[[], Results]
    """The timed call: returns `output` and, if the case asks for them and they are supported, gradients."""
    check: Callable[[], Results]
    """The same call, with a gradient of the output that is zero except in the checked channels, since gradients of
    boxes are sums over all channels."""
    note: str = ""


def detpool_contender(case: Case, backend: str | None, layout: str) -> Contender:
    """Returns detpool's implementation as users call it: the operator on one map, `RoIPooler` on a pyramid."""
    pool = detpool_pool(case.workload, case.operator.bind(case.sampling_ratio, backend))
    return autograd_contender(case, pool, LAYOUTS[layout], case.box_gradients)


def detpool_pool(workload: Workload, operator: Callable[..., Tensor]) -> Pool:
    """Returns `pool(features, boxes)` for a workload with an operator of detpool."""
    if not workload.is_pyramid:
        scale = 1 / workload.strides[0]
        return lambda features, rois: operator(features[0], rois, output_size=workload.output_size, spatial_scale=scale)
    return pyramid_pool(workload, partial(RoIPooler, operator=operator))


def pyramid_pool(workload: Workload, pooler: Callable[..., Callable[..., Tensor]]) -> Pool:
    """Returns `pool(features, boxes)` for a pooler with the interface of torchvision's `MultiScaleRoIAlign`."""
    names = [str(level) for level in range(len(workload.strides))]
    pool, image_shapes = pooler(names, workload.output_size), [workload.image_size] * len(workload.boxes)
    return lambda features, boxes: pool(dict(zip(names, features, strict=True)), boxes, image_shapes)


def autograd_contender(
    case: Case,
    pool: Pool,
    layout: torch.memory_format,
    box_gradients: bool,
    *,
    note: str = "",
    channels: Tensor | None = None,
) -> Contender:
    """Returns a contender for any function that PyTorch can differentiate.

    Args:
        case: says whether to run backward, and the dtype of features and of the gradient of the output.
        pool: `pool(features, boxes)`; boxes are (K, 5) for one map, a list of (L, 4) for a pyramid.
        layout: memory format of features and of the gradient of the output.
        box_gradients: whether to differentiate with respect to boxes too.
        note: note for the readers of the result.
        channels: output channels to compute, None for all.
    """
    workload = case.workload
    outputs = torch.arange(workload.output_channels) if channels is None else channels
    read = workload.input_channels(outputs)
    features = [f[:, read].to(case.device, case.dtype).contiguous(memory_format=layout) for f in workload.features]
    boxes = [b.clone().to(case.device) for b in (workload.boxes if workload.is_pyramid else [workload.rois])]
    argument = boxes if workload.is_pyramid else boxes[0]

    if not case.backward:
        forward = torch.no_grad()(lambda: {"output": [pool(features, argument)]})
        return Contender(forward, forward, note)

    leaves = [f.detach().requires_grad_() for f in features]
    inputs = [*leaves, *(b.requires_grad_() for b in boxes)] if box_gradients else leaves
    full = case.grad_output[:, outputs].to(case.device, case.dtype).contiguous(memory_format=layout)

    def run(grad_output: Tensor) -> Results:
        output = pool(leaves, argument)
        grads = torch.autograd.grad(output, inputs, grad_output)
        results = {"output": [output.detach()], "feature gradient": list(grads[: len(leaves)])}
        return results | ({"box gradient": list(grads[len(leaves) :])} if box_gradients else {})

    def check() -> Results:
        masked = torch.zeros_like(full)
        masked[:, case.checked_channels] = full[:, case.checked_channels]
        return run(masked)

    return Contender(partial(run, full), check, note)


def expected_results(case: Case) -> Results:
    """Results of the reference backend for the checked channels, computed on the CPU."""
    case = dataclasses.replace(case, device="cpu")
    pool = detpool_pool(case.workload, case.operator.bind(case.sampling_ratio, "reference"))
    channels = case.checked_channels
    return autograd_contender(case, pool, torch.contiguous_format, case.box_gradients, channels=channels).run()


def checked_part(case: Case, results: Results) -> Results:
    """The channels of `results` that `expected_results` contains."""
    outputs = case.checked_channels
    inputs = case.workload.input_channels(outputs)
    index = {"output": outputs, "feature gradient": inputs}
    return {
        name: [t.cpu()[:, index[name]] if name in index else t.cpu() for t in tensors]
        for name, tensors in results.items()
    }
