"""What a call must do at least, and how long that takes a GPU at its published rates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from bench.traffic import bytes_moved
from bench.workloads import Workload

from detpool.ops import assign_levels
from detpool.ops.bins import BINS, make_bins
from detpool.ops.sampling import SAMPLING

GPUS = {"A100 SXM 80 GB": (2039e9, 19.5e12), "H100 SXM": (3350e9, 66.9e12)}
"""Bytes a second of memory and float32 operations a second outside tensor cores, from NVIDIA's data sheets."""

OPERATORS = {"roi_align": ("aligned", "points"), "pr_roi_pool": ("continuous", "integral")}
POSITION_SENSITIVE = {"ps_roi_align": ("aligned", "points"), "ps_roi_pool": ("rfcn", "cells")}
"""Bin and sampling rule."""


@dataclass(frozen=True)
class Cost:
    """Of one direction of one operator on one workload, with float32 features."""

    workload: str
    operator: str
    direction: str
    operations: int
    """multiplications and additions"""
    bytes: int
    """each number read or written once, see `bench.traffic`"""
    requested: int
    """what the kernels load, store and add atomically, whether caches or memory serve it: taps are read by every bin"""

    def seconds(self, gpu: str) -> float:
        """The longer of the two."""
        bandwidth, rate = GPUS[gpu]
        return max(self.bytes / bandwidth, self.operations / rate)


def costs(workload: Workload) -> list[Cost]:
    """Forward, and backward with gradients of features, of each operator that fits the workload."""
    found = []
    for operator, (rule, sampling) in (POSITION_SENSITIVE if workload.position_sensitive else OPERATORS).items():
        taps = _taps(workload, rule, sampling)
        forward = bytes_moved(workload, torch.float32, backward=False, box_gradients=False)
        both = bytes_moved(workload, torch.float32, backward=True, box_gradients=False)
        operations = 2 * taps * workload.output_channels
        pooled = len(workload.rois) * workload.output_channels * workload.output_size[0] * workload.output_size[1]
        requested = 4 * (taps * workload.output_channels + pooled)
        found.append(Cost(workload.name, operator, "forward", operations, forward, requested))
        found.append(Cost(workload.name, operator, "backward", operations, both - forward, requested))
    return found


def _taps(workload: Workload, rule: str, sampling: str) -> int:
    """Taps of all bins together."""
    rois = workload.rois
    finest = torch.tensor(float(workload.strides[0])).log2().item()
    levels = assign_levels(rois[:, 1:], len(workload.strides), finest)
    total = 0
    for level, (features, stride) in enumerate(zip(workload.features, workload.strides, strict=True)):
        lengths = (features.shape[2], features.shape[3])
        axes = make_bins(BINS[rule], rois[levels == level], 1 / stride, workload.output_size, lengths)
        counts = [
            (SAMPLING[sampling].taps(axis, length, 2).index >= 0).sum(dim=(2, 3))
            for axis, length in zip(axes, lengths, strict=True)
        ]
        total += int((counts[0].sum(dim=1) * counts[1].sum(dim=1)).sum())
    return total
