"""Runs a case: builds all implementations, checks their results, and times those that agree with the reference."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from detpool.ops import BackendError

from .contenders import BACKWARD, Absent, Case, Contender, Results, checked_part, detpool_contender, expected_results
from .operators import Operator
from .peers import Peer
from .timing import Summary, measure
from .traffic import bytes_moved

COPY = "copy"
OWN = "own"
"""Name of the implementation of a user's own operator, which has no backends."""
NOT_CHECKED = "not checked: it has no argument 'backend', and so no reference"
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Maximum error by dtype of the features, relative to the largest magnitude in the tensor or 1 if that is smaller.

Sums in float32 may be computed in another order; results in float16 and bfloat16 have 11 and 8 bits."""


@dataclass(frozen=True)
class Row:
    """Results of one implementation in one case; fields are None if it was not timed or they do not apply."""

    workload: str
    operator: str
    direction: str
    dtype: str
    threads: int
    implementation: str
    layout: str
    """of the features; what an operator returns has the same"""
    status: str
    """timed, disagrees, absent or failed"""
    note: str
    error: float | None = None
    """greatest difference from the reference, relative to the largest number or 1"""
    tolerance: float | None = None
    rounds: int | None = None
    median_ms: float | None = None
    p20_ms: float | None = None
    p80_ms: float | None = None
    baseline: str = ""
    speedup: float | None = None
    """median of the baseline divided by this median"""
    gigabytes: float | None = None
    """least bytes to move, in 1e9"""
    gb_per_s: float | None = None
    copy_gb_per_s: float | None = None
    """of a copy that moves as many bytes, timed in the same rounds"""

    @property
    def key(self) -> str:
        """Unique name of the call among those that are timed together."""
        return f"{self.implementation} {self.operator} {self.layout}"


@dataclass(frozen=True)
class Settings:
    """Implementations that take part, and limits on the time."""

    backends: Sequence[str]
    layouts: Sequence[str]
    peers: Mapping[str, Peer]
    yardsticks: Mapping[bool, Operator]
    """Operators of detpool with which those are compared that torchvision lacks, by whether channels are
    position-sensitive."""
    rounds: int
    """Maximum number of times that each call is timed."""
    budget: float
    """Seconds per case after which no further round begins."""


Expected = Callable[[], Results]
"""Results to compare with, computed only if somebody serves the call: the reference may need a lot of memory."""
Calls = dict[str, Callable[[], object]]
"""Calls that may be timed, by the key of their rows."""


def run_case(case: Case, settings: Settings) -> list[Row]:
    """Checks all implementations of a case, and times those that agree with the reference; detpool's come first."""
    torch.set_num_threads(case.threads)
    calls: Calls = {}
    expected = cache(partial(expected_results, case)) if case.operator.has_backends else None
    ours = _admit_ours(case, settings, expected, calls)
    others = [
        _admit(name, "contiguous", case, partial(peer, case), expected, calls) for name, peer in settings.peers.items()
    ]
    torchvision = next((row for row in others if row.implementation == "torchvision" and row.key in calls), None)
    baselines = [torchvision] * (len(ours) + len(others))
    yardstick = None if torchvision else settings.yardsticks.get(case.operator.position_sensitive)
    if yardstick is not None and yardstick.name != case.operator.name:
        # Even where boxes get gradients, the yardstick is an ordinary training step.
        direction = BACKWARD if case.backward else case.direction
        other = dataclasses.replace(case, operator=yardstick, direction=direction)
        baselines[: len(ours)] = _admit_ours(other, settings, cache(partial(expected_results, other)), calls)

    size = bytes_moved(case.workload, case.dtype, backward=case.backward, box_gradients=case.box_gradients)
    source = torch.ones(size // 2, dtype=torch.uint8, device=case.device)  # zeros could all be one page of memory
    copy = partial(torch.ones_like(source).copy_, source)
    times = measure({**calls, COPY: copy}, settings.rounds, settings.budget) if calls else {}
    return [_timed(row, baseline, times, size) for row, baseline in zip((*ours, *others), baselines, strict=True)]


def _admit_ours(case: Case, settings: Settings, expected: Expected | None, calls: Calls) -> list[Row]:
    backends: Mapping[str, str | None] = {f"detpool {backend}": backend for backend in settings.backends}
    return [
        _admit(name, layout, case, partial(detpool_contender, case, backend, layout), expected, calls)
        for name, backend in (backends if case.operator.has_backends else {OWN: None}).items()
        for layout in settings.layouts
    ]


def _admit(
    implementation: str,
    layout: str,
    case: Case,
    build: Callable[[], Contender],
    expected: Expected | None,
    calls: Calls,
) -> Row:
    """Builds an implementation's call, checks its results, and returns its row without times.

    If it agrees with `expected`, or nothing is expected, it is added to `calls`.
    """
    dtype = str(case.dtype).removeprefix("torch.")
    names = (case.workload.name, case.operator.name, case.direction, dtype, case.threads, implementation, layout)
    row = partial(Row, *names)
    try:
        contender = build()
        results = contender.check()
    except (Absent, BackendError) as reason:
        return row("absent", str(reason))
    except Exception as error:  # a failure must not affect the others
        return row("failed", f"{type(error).__name__}: {error}")
    if expected is None:
        unchecked = row("timed", "; ".join(filter(None, (contender.note, NOT_CHECKED))))
        calls[unchecked.key] = contender.run
        return unchecked
    tolerance = tolerance_of(case)
    off, worst = compare(checked_part(case, results), expected(), tolerance)
    if off > tolerance:
        return row("disagrees", worst, off, tolerance)
    admitted = row("timed", contender.note, off, tolerance)
    calls[admitted.key] = contender.run
    return admitted


def tolerance_of(case: Case) -> float:
    """The tolerance of a case: that of `TOLERANCES`, or, for rotated boxes on large maps, that of rounded positions.

    Backends compute rotated positions in different ways, each rounded by up to half a unit in the last place of the
    longest side of a map, along each axis; between neighboring cells, features change by about their largest number.
    """
    if not case.operator.is_rotated:
        return TOLERANCES[case.dtype]
    longest = max(max(features.shape[2:]) for features in case.workload.features)
    positions = torch.float64 if case.dtype == torch.float64 else torch.float32
    return max(TOLERANCES[case.dtype], torch.finfo(positions).eps * longest)


def compare(
    results: Mapping[str, Sequence[Tensor]], expected: Mapping[str, Sequence[Tensor]], tolerance: float
) -> tuple[float, str]:
    """Returns the greatest error in lists of tensors (one per level) by name, and where and how often it occurs.

    The error is relative as in `TOLERANCES`, and infinite for a wrong shape or NaN.
    """
    greatest, worst = 0.0, ""
    for name, tensors in results.items():
        for level, (tensor, truth) in enumerate(zip(tensors, expected[name], strict=True)):
            label = f"{name} of level {level}" if len(tensors) > 1 else name
            if tensor.shape != truth.shape:
                return math.inf, f"{label} is {tuple(tensor.shape)}, not {tuple(truth.shape)}"
            if truth.numel():
                tensor, truth = tensor.double(), truth.double()
                errors = ((tensor - truth).abs() / truth.abs().max().clamp(min=1)).nan_to_num(nan=math.inf)
                if (largest := float(errors.max())) > greatest:
                    greatest = largest
                    worst = f"{label}: {int((errors > tolerance).sum())} of {truth.numel()} numbers exceed"
    return greatest, worst


def _timed(row: Row, baseline: Row | None, times: Mapping[str, Summary], size: int) -> Row:
    if row.key not in times:
        return row
    found, name, speedup = times[row.key], "", None
    if baseline is not None and baseline.key in times:
        speedup = times[baseline.key].median / found.median
        same = baseline.operator == row.operator
        name = baseline.implementation if same else f"{baseline.implementation} {baseline.operator}"
    gigabytes = size / 1e9
    rates = {"gb_per_s": gigabytes / found.median, "copy_gb_per_s": gigabytes / times[COPY].median}
    found_numbers: dict[str, Any] = {"rounds": found.rounds, **found.columns(), "gigabytes": gigabytes, **rates}
    return dataclasses.replace(row, baseline=name, speedup=speedup, **found_numbers)
