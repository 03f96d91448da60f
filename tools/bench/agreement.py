"""Whether an implementation computes what it is compared for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Greatest error by dtype of the features, relative to the largest number of the tensor or 1 if that is smaller.

What is added up in float32 may be added in another order; results in float16 and bfloat16 have 11 and 8 bits."""


@dataclass(frozen=True)
class Agreement:
    """How far the results of an implementation are from the expected ones."""

    error: float
    """the greatest over its tensors, relative as in `TOLERANCES`; infinite for another shape or NaN"""
    tolerance: float
    worst: str
    """which tensor has it, and in how many numbers"""

    @property
    def holds(self) -> bool:
        return self.error <= self.tolerance


def compare(
    results: Mapping[str, Sequence[Tensor]], expected: Mapping[str, Sequence[Tensor]], dtype: torch.dtype
) -> Agreement:
    """Compare named lists of tensors, all that are in `results`.

    Args:
        results: of the implementation, such as `output` and `feature gradient` (one tensor a level).
        expected: of the same names, from the reference.
        dtype: of the features, which sets the tolerance.
    """
    tolerance = TOLERANCES[dtype]
    error, worst = 0.0, ""
    for name, tensors in results.items():
        for level, (tensor, truth) in enumerate(zip(tensors, expected[name], strict=True)):
            label = f"{name} of level {level}" if len(tensors) > 1 else name
            if tensor.shape != truth.shape:
                return Agreement(float("inf"), tolerance, f"{label} is {tuple(tensor.shape)}, not {tuple(truth.shape)}")
            if not truth.numel():
                continue
            tensor, truth = tensor.double(), truth.double()
            difference = ((tensor - truth).abs() / truth.abs().max().clamp(min=1)).nan_to_num(nan=float("inf"))
            if difference.max() > error:
                error = float(difference.max())
                worst = f"{label}: {int((difference > tolerance).sum())} of {truth.numel()} numbers exceed"
    return Agreement(error, tolerance, worst)
