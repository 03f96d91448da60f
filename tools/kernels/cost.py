"""A cost model: the minimum work of a call, and the time that a GPU needs for it at its published rates."""

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
    """Rates of a GPU, per second."""

    memory: float
    """Bytes from and to memory."""
    l2: float
    """Bytes from and to the L2 cache."""
    arithmetic: float | None = None
    """float32 operations outside tensor cores; None if unknown."""
    issue: float | None = None
    """Warp instructions, four per multiprocessor and clock cycle; None if unknown."""


# From NVIDIA's data sheets and white papers. L2: 5,120 bytes per clock cycle on an A100; the rate of the H100 is not
# published, and assumed to be the same.
GPUS = {
    "A100 SXM 80 GB": Gpu(2039e9, 5120 * 1.41e9, 19.5e12, 108 * 4 * 1.41e9),
    "H100 SXM": Gpu(3350e9, 5120 * 1.98e9, 66.9e12, 132 * 4 * 1.98e9),
    "H200 SXM": Gpu(4800e9, 5120 * 1.98e9, 66.9e12, 132 * 4 * 1.98e9),
}

OPERATORS = {"roi_align": ("aligned", "points"), "pr_roi_pool": ("continuous", "integral")}
POSITION_SENSITIVE = {"ps_roi_align": ("aligned", "points"), "ps_roi_pool": ("rfcn", "cells")}
"""Bin rule and sampling rule by operator."""


@dataclass(frozen=True)
class Cost:
    """Cost of one direction of one operator on one workload, with float32 features."""

    workload: str
    operator: str
    direction: str
    operations: int
    """Number of multiplications and additions."""
    bytes: int
    """Bytes from and to memory if each number is read or written once (see `bench.traffic`)."""
    l2: int
    """Bytes from and to the L2 cache: the cells under each RoI, read once, and its output."""
    instructions: float | None
    """Warp instructions, counted in the compiled kernel; None if they were not counted."""

    def limits(self, gpu: Gpu) -> dict[str, float]:
        """Minimum seconds by each of the GPU's known rates; the largest is the bound."""
        limits = {"memory": self.bytes / gpu.memory, "L2": self.l2 / gpu.l2}
        if gpu.arithmetic is not None:
            limits["arithmetic"] = self.operations / gpu.arithmetic
        if self.instructions is not None and gpu.issue is not None:
            limits["issue"] = self.instructions / gpu.issue
        return limits


def read_rates(path: Path) -> Gpu:
    """Reads a GPU's rates as measured by `tools/gpu_first.py`.

    Args:
        path: the file `bandwidth.csv` written by that program.

    Raises:
        ValueError: If the file does not have both rates.
    """
    with path.open(newline="") as file:
        notes = {row["choice"]: row["note"].removesuffix(" GB/s") for row in csv.DictReader(file)}
    try:
        return Gpu(*(1e9 * float(notes[f"copy {place} L2"]) for place in ("beyond", "within")))
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} has no rates of copies beyond and within L2: {error}") from error


def costs(workload: Workload, per_bin: tuple[float, float] | None = None) -> list[Cost]:
    """Costs of forward, and of backward with gradients of features, for each operator that fits the workload.

    Args:
        workload: features and boxes.
        per_bin: instructions of roi_align's forward for 256 channels of a bin, if its points are close enough to share
            cells, and otherwise.
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
    """Bytes of copying a position-sensitive map (0 if it is not copied), and of the sectors that bins access.

    The forward reads each cell of a bin once. The backward adds at each tap; an addition is a read and a write.
    """
    (features,), size = workload.features, workload.output_size
    spec = Spec("aligned", "points", size, (1 / workload.strides[0],), 2, size)
    copied = pays_to_copy(features.shape, True, workload.rois, spec, 1 if backward else READS)
    # channels are contiguous with any alignment, or each is in its own sector
    sectors = 1 + (workload.output_channels - 1) / 8 if copied else workload.output_channels
    return copied * 2 * features.nbytes, int(32 * sectors * (2 * taps if backward else cells))


def close_share(workload: Workload) -> float:
    """Share of roi_align's bins whose two points along each axis are so close that they share cells."""
    return _count(workload, *OPERATORS["roi_align"])[2]


def _count(workload: Workload, rule: str, sampling: str) -> tuple[int, int, float]:
    """Number of taps of all bins, number of cells of all RoIs, and share of bins that read at most 3 x 3 cells."""
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
            # each bin has its own channels
            cells += int((_distinct(y, lengths[0]).sum(dim=1) * _distinct(x, lengths[1]).sum(dim=1)).sum())
        else:
            cells += int((_distinct(y.flatten(1), lengths[0]) * _distinct(x.flatten(1), lengths[1])).sum())
        few_rows, few_columns = (_distinct(index, length) <= 3 for index, length in ((y, lengths[0]), (x, lengths[1])))
        close += int((few_rows.sum(dim=1) * few_columns.sum(dim=1)).sum())
        bins += few_rows.shape[0] * few_rows.shape[1] * few_columns.shape[1]
    return taps, cells, close / bins


def _distinct(index: Tensor, length: int) -> Tensor:
    """Number of distinct cell indices along the last axis; -1 is ignored."""
    seen = torch.zeros((*index.shape[:-1], length + 1), dtype=torch.bool)
    return seen.scatter_(-1, index.long() + 1, torch.ones_like(index, dtype=torch.bool))[..., 1:].sum(dim=-1)
