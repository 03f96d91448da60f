"""What a call must do at least, and how long that takes a GPU at its published rates."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import torch
from bench.traffic import bytes_moved
from bench.workloads import Workload
from torch import Tensor

from detpool.ops import assign_levels
from detpool.ops.backends.triton.primitives import READS, pays_to_copy
from detpool.ops.bins import BINS, make_bins
from detpool.ops.sampling import SAMPLING
from detpool.ops.spec import Spec


@dataclass(frozen=True)
class Gpu:
    """Rates per second."""

    memory: float
    """bytes"""
    l2: float
    """bytes"""
    arithmetic: float | None = None
    """float32 operations outside tensor cores"""
    issue: float | None = None
    """instructions of warps: four per multiprocessor and clock cycle"""


# From NVIDIA's data sheets and white papers. L2: 5,120 bytes per clock cycle on an A100; H100's is not published, and
# taken to be as many.
GPUS = {
    "A100 SXM 80 GB": Gpu(2039e9, 5120 * 1.41e9, 19.5e12, 108 * 4 * 1.41e9),
    "H100 SXM": Gpu(3350e9, 5120 * 1.98e9, 66.9e12, 132 * 4 * 1.98e9),
    "H200 SXM": Gpu(4800e9, 5120 * 1.98e9, 66.9e12, 132 * 4 * 1.98e9),
}

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
    """from and to memory: each number read or written once, see `bench.traffic`"""
    l2: int
    """bytes from and to the L2 cache: the cells that each RoI reads once, and its output"""
    instructions: float | None
    """of warps, counted in the compiled kernel; None where they are not counted"""

    def limits(self, gpu: Gpu) -> dict[str, float]:
        """Seconds that each of the GPU's known rates allows; the longest counts."""
        limits = {"memory": self.bytes / gpu.memory, "L2": self.l2 / gpu.l2}
        if gpu.arithmetic is not None:
            limits["arithmetic"] = self.operations / gpu.arithmetic
        if self.instructions is not None and gpu.issue is not None:
            limits["issue"] = self.instructions / gpu.issue
        return limits


def read_rates(path: Path) -> Gpu:
    """A GPU's rates as `tools/gpu_first.py` measured them.

    Args:
        path: its `bandwidth.csv`.

    Raises:
        ValueError: the file does not have both rates.
    """
    with path.open(newline="") as file:
        notes = {row["choice"]: row["note"].removesuffix(" GB/s") for row in csv.DictReader(file)}
    try:
        return Gpu(*(1e9 * float(notes[f"copy {place} L2"]) for place in ("beyond", "within")))
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} has no rates of copies beyond and within L2: {error}") from error


def costs(workload: Workload, per_bin: tuple[float, float] | None = None) -> list[Cost]:
    """Forward, and backward with gradients of features, of each operator that fits the workload.

    Args:
        workload: what is pooled.
        per_bin: instructions of roi_align's forward for 256 channels of a bin whose points lie close, and for others.
    """
    found = []
    for operator, (rule, sampling) in (POSITION_SENSITIVE if workload.position_sensitive else OPERATORS).items():
        taps, cells, close = _count(workload, rule, sampling)
        forward = bytes_moved(workload, torch.float32, backward=False, box_gradients=False)
        both = bytes_moved(workload, torch.float32, backward=True, box_gradients=False)
        bins = len(workload.rois) * workload.output_size[0] * workload.output_size[1]
        channels = workload.output_channels
        instructions = None
        if operator == "roi_align" and per_bin is not None:
            instructions = bins * channels / 256 * (close * per_bin[0] + (1 - close) * per_bin[1])
        for direction, bytes, count in (("forward", forward, instructions), ("backward", both - forward, None)):
            l2 = 4 * channels * (cells + bins)
            if workload.position_sensitive:
                copy, of_map = _sectors(workload, taps, cells, direction == "backward")
                bytes, l2 = bytes + copy, 4 * channels * bins + copy + of_map
            found.append(Cost(workload.name, operator, direction, 2 * taps * channels, bytes, l2, count))
    return found


def _sectors(workload: Workload, taps: int, cells: int, backward: bool) -> tuple[int, int]:
    """Bytes of copying a position-sensitive map once, 0 where it is not, and of the sectors that bins read or add to.

    The forward reads each cell of a bin once, the backward adds at each tap, and an addition is a read and a write.
    """
    (features,), size = workload.features, workload.output_size
    spec = Spec("aligned", "points", size, (1 / workload.strides[0],), 2, size)
    copied = pays_to_copy(features.shape, True, workload.rois, spec, 1 if backward else READS)
    # side by side and beginning anywhere, or each in a sector of its own
    sectors = 1 + (workload.output_channels - 1) / 8 if copied else workload.output_channels
    return copied * 2 * features.nbytes, int(32 * sectors * (2 * taps if backward else cells))


def close_share(workload: Workload) -> float:
    """The share of roi_align's bins whose two points along each axis lie so close that they share cells."""
    return _count(workload, *OPERATORS["roi_align"])[2]


def _count(workload: Workload, rule: str, sampling: str) -> tuple[int, int, float]:
    """Taps of all bins together; cells of all RoIs together; the share of bins that read at most 3 x 3 cells."""
    rois = workload.rois
    finest = torch.tensor(float(workload.strides[0])).log2().item()
    levels = assign_levels(rois[:, 1:], len(workload.strides), finest)
    taps, cells, close, bins = 0, 0, 0, 0
    for level, (features, stride) in enumerate(zip(workload.features, workload.strides, strict=True)):
        lengths = (features.shape[2], features.shape[3])
        axes = make_bins(BINS[rule], rois[levels == level], 1 / stride, workload.output_size, lengths)
        y, x = (
            SAMPLING[sampling].taps(axis, length, 2).index.flatten(1, 2)
            for axis, length in zip(axes, lengths, strict=True)
        )
        taps += int(((y >= 0).sum(dim=(1, 2)) * (x >= 0).sum(dim=(1, 2))).sum())
        if workload.position_sensitive:
            # each bin has channels of its own
            cells += int((_distinct(y, lengths[0]).sum(dim=1) * _distinct(x, lengths[1]).sum(dim=1)).sum())
        else:
            cells += int((_distinct(y.flatten(1), lengths[0]) * _distinct(x.flatten(1), lengths[1])).sum())
        few_rows, few_columns = (_distinct(index, length) <= 3 for index, length in ((y, lengths[0]), (x, lengths[1])))
        close += int((few_rows.sum(dim=1) * few_columns.sum(dim=1)).sum())
        bins += few_rows.shape[0] * few_rows.shape[1] * few_columns.shape[1]
    return taps, cells, close / bins


def _distinct(index: Tensor, length: int) -> Tensor:
    """How many cells the last axis names; -1 is none."""
    seen = torch.zeros((*index.shape[:-1], length + 1), dtype=torch.bool)
    return seen.scatter_(-1, index.long() + 1, torch.ones_like(index, dtype=torch.bool))[..., 1:].sum(dim=-1)
