#!/usr/bin/env python
"""Writes the table in docs/operators.md of which backend supports which operator, according to the dispatcher.

python tools/support_table.py    # writes the table into the page
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from bench.contenders import DTYPES
from pages import head, line, replace_between
from torch import Tensor

from detpool import ops
from detpool.ops.backends import ORDER, list_reasons
from detpool.ops.spec import Spec

PAGE = Path(__file__).resolve().parents[1] / "docs/operators.md"
BEGIN, END = "<!-- support: tools/support_table.py -->\n", "<!-- end of support -->"

SIZE = 2
OPERATORS = {
    "roi_pool": partial(ops.roi_pool, output_size=SIZE),
    "roi_align": partial(ops.roi_align, output_size=SIZE),
    "roi_align, maximum": partial(ops.roi_align, output_size=SIZE, sampling_ratio=2, reduction="max"),
    "roi_align, maximum, adaptive": partial(ops.roi_align, output_size=SIZE, reduction="max"),
    "roi_warp": partial(ops.roi_warp, output_size=SIZE),
    "ps_roi_pool": partial(ops.ps_roi_pool, output_size=SIZE),
    "ps_roi_align": partial(ops.ps_roi_align, output_size=SIZE),
    "pr_roi_pool": partial(ops.pr_roi_pool, output_size=SIZE),
    "deform_roi_pool": partial(ops.deform_roi_pool, output_size=SIZE),
    "deform_ps_roi_pool": partial(ops.deform_ps_roi_pool, output_size=SIZE),
    "roi_align_rotated": partial(ops.roi_align_rotated, output_size=SIZE),
    "roi_align_rotated, maximum": partial(ops.roi_align_rotated, output_size=SIZE, reduction="max"),
    "roi_pool_rotated": partial(ops.roi_pool_rotated, output_size=SIZE),
    "spp": partial(ops.spp, levels=[1, 2]),
}
MAXIMA = {name for name in OPERATORS if "maximum" in name or name in ("roi_pool", "roi_pool_rotated", "spp")}
"""Operators whose reduction is the maximum."""


def table() -> str:
    """Markdown table: for each operator, the dtypes that each backend supports, and which inputs get gradients."""
    lines = head(["operator", *(f"`{name}`" for name in ORDER), "gradients"])
    for name, call in OPERATORS.items():
        inputs = _inputs(name)
        features, *others = inputs.values()
        output = call(features, *others, backend="reference")
        grads = torch.autograd.grad(output.sum(), [features, *others], allow_unused=True)
        graded = [name for name, grad in zip(inputs, grads, strict=True) if grad is not None]
        samples, *_ = ops.record_samples(lambda f, *_, c=call, o=others: c(f, *o), features, others[0], SIZE, 1.0)
        primitive = "window_max" if name in MAXIMA else "weighted_sum"
        types = [_types(primitive, backend, samples.spec) for backend in ORDER]
        lines.append(line([name, *types, ", ".join(graded)]))
    return "\n".join(lines) + "\n"


def _inputs(name: str) -> dict[str, Tensor]:
    box = [0.0, 4, 4, 5, 5, 30] if "rotated" in name else [0.0, 1, 1, 6, 7]
    inputs = {"features": torch.rand(1, SIZE * SIZE, 8, 8), "boxes": torch.tensor([box])}
    if name.startswith("deform"):
        inputs["offsets"] = torch.zeros(1, 2, SIZE, SIZE)
    return {name: tensor.requires_grad_() for name, tensor in inputs.items()}


def _types(primitive: str, backend: str, spec: Spec) -> str:
    """The dtypes for which the dispatcher gives no reason against a backend."""
    served = []
    for label, dtype in DTYPES.items():
        on_device = torch.empty((1, 1, 1, 1), dtype=dtype, device="cpu" if backend == "cpu" else "meta")
        reasons = list_reasons(primitive, on_device, spec)[backend]
        # reasons about this machine say nothing about the operator
        if not [reason for reason in reasons if not reason.startswith(("tensors are on", "triton is not installed"))]:
            served.append(label)
    return "all types" if len(served) == len(DTYPES) else ", ".join(served) or "no"


def with_table(page: str) -> str:
    """Returns the page with an updated table."""
    return replace_between(page, BEGIN, END, table())


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
