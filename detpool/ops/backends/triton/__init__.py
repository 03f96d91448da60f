"""The GPU backend: Triton kernels.

Kernels compute bins and taps from the RoIs when they need them, so that no size depends on the values of boxes and
nothing waits for the GPU. Sums accumulate in float32 (float64 for float64). A pyramid takes one launch for each level.

Gradients of features add atomically; with ``torch.use_deterministic_algorithms(True)`` each program gathers what
belongs to its own cells instead, always in the same order. Triton itself is imported by the first call that runs here.
"""

import importlib.util
import os

import torch
from torch import Tensor

from ...sampling import SAMPLING
from ...spec import ROTATED, Spec

# Once, here: traced code asks for reasons, and tracing does not follow the search for a module.
_INSTALLED = importlib.util.find_spec("triton") is not None
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def reasons_against(primitive: str, features: Tensor, spec: Spec) -> list[str]:
    """Why this backend cannot serve a call, if it cannot."""
    reasons = []
    if not _INSTALLED:
        reasons.append("triton is not installed")
    if features.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        reasons.append(f"dtype {features.dtype} is not float16, bfloat16, float32 or float64")
    if features.device.type != "cuda" and not (features.device.type == "cpu" and _INTERPRETED):
        reasons.append(
            f"tensors are on {features.device}, not on a GPU (a process started with TRITON_INTERPRET=1 runs the "
            f"kernels on the CPU, slowly)"
        )
    if spec.bins == ROTATED:
        reasons.append("rotated bins have no Triton form")
    elif primitive == "weighted_sum" and SAMPLING[spec.sampling].triton is None:
        reasons.append(f"the rule has no Triton form (sampling {spec.sampling!r})")
    elif primitive == "window_max" and spec.sampling != "cells" and not (spec.sampling == "points" and spec.ratio > 0):
        reasons.append("the maximum is that of cells, or of points with a positive sampling_ratio")
    return reasons


def has_roi_grads(spec: Spec) -> bool:
    """All descriptions that this backend serves have gradients of RoIs."""
    return True
