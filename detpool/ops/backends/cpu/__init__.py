"""The CPU backend: kernels that numba compiles at the first call and keeps on disk."""

import torch
from torch import Tensor

from ...sampling import SAMPLING
from ...spec import ROTATED, Spec

SAMPLING_RULES = ("cells", "points", "counted_points", "integral")
"""Those that are compiled; the taps of others are made by PyTorch and summed by compiled code."""


def reasons_against(primitive: str, features: Tensor, spec: Spec) -> list[str]:
    """Why this backend cannot serve a call, if it cannot."""
    reasons = []
    if features.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        reasons.append(f"dtype {features.dtype} is not float16, bfloat16, float32 or float64")
    if features.device.type not in ("cpu", "meta"):
        reasons.append(f"tensors are on {features.device}, not on the CPU")
    if spec.bins == ROTATED and (primitive == "window_max" or spec.sampling != "points"):
        reasons.append("of rotated bins only the mean of points is compiled")
    elif primitive == "window_max" and SAMPLING[spec.sampling].windows is None and spec.sampling != "points":
        reasons.append(f"the maximum over the points of sampling {spec.sampling!r} is not compiled")
    return reasons


def has_roi_grads(spec: Spec) -> bool:
    """Whether gradients of RoIs are compiled: not through a sampling rule of a user's own."""
    return spec.sampling in SAMPLING_RULES
