#!/usr/bin/env python
"""The table in docs/operators.md of who computes what, from what the dispatcher answers.

python tools/support_table.py    # writes the table into the page
"""

from __future__ import annotations

import functools
from collections.abc import Callable
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

BOX = torch.tensor([[0.0, 1, 1, 6, 7]])
ROTATED = torch.tensor([[0.0, 4, 4, 5, 5, 30]])
SIZE = 2

Call = Callable[..., Tensor]

OPERATORS: dict[str, Call] = {
    "roi_pool": lambda f, b, **k: ops.roi_pool(f, b, SIZE, **k),
    "roi_align": lambda f, b, **k: ops.roi_align(f, b, SIZE, **k),
    "roi_align, maximum": lambda f, b, **k: ops.roi_align(f, b, SIZE, sampling_ratio=2, reduction="max", **k),
    "roi_align, maximum, adaptive": lambda f, b, **k: ops.roi_align(f, b, SIZE, reduction="max", **k),
    "roi_warp": lambda f, b, **k: ops.roi_warp(f, b, SIZE, **k),
    "ps_roi_pool": lambda f, b, **k: ops.ps_roi_pool(f, b, SIZE, **k),
    "ps_roi_align": lambda f, b, **k: ops.ps_roi_align(f, b, SIZE, **k),
    "pr_roi_pool": lambda f, b, **k: ops.pr_roi_pool(f, b, SIZE, **k),
    "deform_roi_pool": lambda f, b, offsets, **k: ops.deform_roi_pool(f, b, offsets, SIZE, **k),
    "deform_ps_roi_pool": lambda f, b, offsets, **k: ops.deform_ps_roi_pool(f, b, offsets, SIZE, **k),
    "roi_align_rotated": lambda f, b, **k: ops.roi_align_rotated(f, b, SIZE, **k),
    "spp": lambda f, b, **k: ops.spp(f, b, [1, 2], **k),
}

MAXIMA = {"roi_pool", "roi_align, maximum", "roi_align, maximum, adaptive", "spp"}
"""Those whose reduction is the maximum."""


def table() -> str:
    """Markdown: for each operator the types that each backend takes, and what gets gradients."""
    lines = head(["operator", *(f"`{name}`" for name in ORDER), "gradients"])
    for name, call in OPERATORS.items():
        lines.append(line([name, *(_types(name, call, backend) for backend in ORDER), _gradients(name, call)]))
    return "\n".join(lines) + "\n"


def _types(name: str, call: Call, backend: str) -> str:
    """The types for which the dispatcher has no reason against a backend."""
    served = []
    for label, dtype in DTYPES.items():
        on_device = torch.empty((1, 1, 1, 1), dtype=dtype, device="cpu" if backend == "cpu" else "meta")
        spec, primitive = _asked(name, call)
        reasons = list_reasons(primitive, on_device, spec)[backend]
        # where it runs, which is not here, is no property of the operator
        if not [reason for reason in reasons if not reason.startswith(("tensors are on", "triton is not installed"))]:
            served.append(label)
    if len(served) == len(DTYPES):
        return "all types"
    return ", ".join(served) or "no"


def _asked(name: str, call: Call) -> tuple[Spec, str]:
    """What the operator asks the dispatcher for."""
    boxes = ROTATED if "rotated" in name else BOX
    arguments = {"offsets": torch.zeros(1, 2, SIZE, SIZE)} if name.startswith("deform") else {}
    made = ops.record_samples(
        lambda f, b, *_: call(f, b, **arguments), torch.rand(1, SIZE * SIZE, 8, 8), boxes, SIZE, 1.0
    )
    return made[0].spec, "window_max" if name in MAXIMA else "weighted_sum"


def _gradients(name: str, call: Call) -> str:
    output, inputs = _run(name, call, torch.float32, "reference")
    grads = torch.autograd.grad(output.sum(), list(inputs.values()), allow_unused=True)
    return ", ".join(name for name, grad in zip(inputs, grads, strict=True) if grad is not None)


def _run(name: str, call: Call, dtype: torch.dtype, backend: str) -> tuple[Tensor, dict[str, Tensor]]:
    features = torch.rand(1, SIZE * SIZE, 8, 8).to(dtype).requires_grad_()
    boxes = (ROTATED if "rotated" in name else BOX).clone().requires_grad_()
    inputs = {"features": features, "boxes": boxes}
    if name.startswith("deform"):
        offsets = torch.zeros(1, 2, SIZE, SIZE, requires_grad=True)
        return functools.partial(call, offsets=offsets)(features, boxes, backend=backend), inputs | {"offsets": offsets}
    return call(features, boxes, backend=backend), inputs


def with_table(page: str) -> str:
    """The page with the table brought up to date."""
    return replace_between(page, BEGIN, END, table())


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
