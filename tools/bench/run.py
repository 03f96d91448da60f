"""From a case to its rows: build, check, then time whoever agrees."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from detpool.ops import BackendError

from .agreement import Agreement, compare
from .contenders import (
    BACKWARD,
    Absent,
    Case,
    Contender,
    Results,
    checked_part,
    detpool_contender,
    expected_results,
)
from .operators import Operator
from .peers import Peer
from .timing import Summary, interleave, summarise
from .traffic import bytes_moved

COPY = "copy"


@dataclass(frozen=True)
class Row:
    """What was found of one implementation in one case; None where it was not timed or there is nothing to say."""

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


@dataclass(frozen=True)
class Settings:
    """Who takes part, and for how long."""

    backends: Sequence[str]
    layouts: Sequence[str]
    peers: Mapping[str, Peer]
    yardsticks: Mapping[bool, Operator]
    """by whether channels are position-sensitive: the operator of ours that stands in for torchvision's, for operators
    which that lacks"""
    rounds: int
    """the most times each call is timed"""
    budget: float
    """seconds a case after which no further round begins"""


@dataclass(frozen=True)
class _Entrant:
    """An implementation that has been checked."""

    implementation: str
    layout: str
    operator: str
    status: str
    note: str
    agreement: Agreement | None = None
    contender: Contender | None = None
    """only of one that may be timed"""

    @property
    def key(self) -> str:
        return f"{self.implementation} {self.operator} {self.layout}"


def run_case(case: Case, settings: Settings) -> list[Row]:
    """Check everybody who can answer a case, time those who agree with the reference; ours come first."""
    torch.set_num_threads(case.threads)
    expected = expected_results(case)
    others = [_admit(name, "contiguous", case, partial(peer, case), expected) for name, peer in settings.peers.items()]
    torchvision = next((e for e in others if e.implementation == "torchvision" and e.contender), None)
    baselines: dict[str, _Entrant | None] = {other.key: torchvision for other in others}
    yardstick = None if torchvision else settings.yardsticks.get(case.operator.position_sensitive)
    if yardstick is not None and yardstick.name != case.operator.name:
        # Even where boxes get gradients, the yardstick is an ordinary training step.
        other_case = dataclasses.replace(
            case, operator=yardstick, direction=BACKWARD if case.backward else case.direction
        )
        measures = list(_ours(other_case, settings, expected_results(other_case)))
    else:
        measures = []
    ours = list(_ours(case, settings, expected))
    for number, entrant in enumerate(ours):
        baselines[entrant.key] = measures[number] if measures else torchvision

    timed = {e.key: e.contender.run for e in (*ours, *others, *measures) if e.contender}
    size = bytes_moved(case.workload, case.dtype, backward=case.backward, box_gradients=case.box_gradients)
    source = torch.ones(size // 2, dtype=torch.uint8, device=case.device)  # zeros could all be one page of memory
    target = torch.ones_like(source)

    def copy() -> None:
        target.copy_(source)
        if case.device != "cpu":
            torch.cuda.synchronize()

    times = interleave({**timed, COPY: copy}, settings.rounds, settings.budget) if timed else {}
    summaries = {key: summarise(seconds) for key, seconds in times.items()}
    return [_row(case, entrant, baselines[entrant.key], summaries, size) for entrant in (*ours, *others)]


def _ours(case: Case, settings: Settings, expected: Results) -> Iterator[_Entrant]:
    for backend in settings.backends:
        for layout in settings.layouts:
            yield _admit(
                f"detpool {backend}", layout, case, partial(detpool_contender, case, backend, layout), expected
            )


def _admit(implementation: str, layout: str, case: Case, build: Callable[[], Contender], expected: Results) -> _Entrant:
    """Build an implementation's call and compare what it returns."""
    entrant = partial(_Entrant, implementation, layout, case.operator.name)
    try:
        contender = build()
        results = contender.check()
    except (Absent, BackendError) as reason:
        return entrant("absent", str(reason))
    except Exception as error:  # one that breaks must not take the others' results with it
        return entrant("failed", f"{type(error).__name__}: {error}")
    agreement = compare(checked_part(case, results), expected, case.dtype)
    if not agreement.holds:
        return entrant("disagrees", agreement.worst, agreement)
    return entrant("timed", contender.note, agreement, contender)


def _row(case: Case, entrant: _Entrant, baseline: _Entrant | None, summaries: Mapping[str, Summary], size: int) -> Row:
    row = Row(
        workload=case.workload.name,
        operator=case.operator.name,
        direction=case.direction,
        dtype=str(case.dtype).removeprefix("torch."),
        threads=case.threads,
        implementation=entrant.implementation,
        layout=entrant.layout,
        status=entrant.status,
        note=entrant.note,
    )
    if entrant.agreement is not None:
        row = dataclasses.replace(row, error=entrant.agreement.error, tolerance=entrant.agreement.tolerance)
    summary = summaries.get(entrant.key)
    if summary is None:
        return row
    reference = summaries.get(baseline.key) if baseline is not None else None
    return dataclasses.replace(
        row,
        rounds=summary.rounds,
        median_ms=1e3 * summary.median,
        p20_ms=1e3 * summary.p20,
        p80_ms=1e3 * summary.p80,
        baseline=_baseline_name(baseline, entrant) if baseline is not None and reference is not None else "",
        speedup=reference.median / summary.median if reference is not None else None,
        gigabytes=size / 1e9,
        gb_per_s=size / 1e9 / summary.median,
        copy_gb_per_s=size / 1e9 / summaries[COPY].median,
    )


def _baseline_name(baseline: _Entrant, entrant: _Entrant) -> str:
    if baseline.operator == entrant.operator:
        return baseline.implementation
    return f"{baseline.implementation} {baseline.operator}"
