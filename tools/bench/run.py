"""From a case to its rows: build, check, then time whoever agrees."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from detpool.ops import BackendError

from .agreement import compare
from .contenders import BACKWARD, Absent, Case, Contender, Results, checked_part, detpool_contender, expected_results
from .operators import Operator
from .peers import Peer
from .timing import Summary, measure
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
    """An implementation that has been checked: its row without times, and its call if it may be timed."""

    row: Row
    contender: Contender | None = None

    @property
    def key(self) -> str:
        return f"{self.row.implementation} {self.row.operator} {self.row.layout}"


def run_case(case: Case, settings: Settings) -> list[Row]:
    """Check everybody who can answer a case, time those who agree with the reference; ours come first."""
    torch.set_num_threads(case.threads)
    expected = expected_results(case)
    others = [_admit(name, "contiguous", case, partial(peer, case), expected) for name, peer in settings.peers.items()]
    torchvision = next((e for e in others if e.row.implementation == "torchvision" and e.contender), None)
    ours = list(_ours(case, settings, expected))
    baselines: list[_Entrant | None] = [torchvision] * (len(ours) + len(others))
    measures: list[_Entrant] = []
    yardstick = None if torchvision else settings.yardsticks.get(case.operator.position_sensitive)
    if yardstick is not None and yardstick.name != case.operator.name:
        # Even where boxes get gradients, the yardstick is an ordinary training step.
        direction = BACKWARD if case.backward else case.direction
        other_case = dataclasses.replace(case, operator=yardstick, direction=direction)
        measures = list(_ours(other_case, settings, expected_results(other_case)))
        baselines[: len(ours)] = measures

    timed = {e.key: e.contender.run for e in (*ours, *others, *measures) if e.contender}
    size = bytes_moved(case.workload, case.dtype, backward=case.backward, box_gradients=case.box_gradients)
    source = torch.ones(size // 2, dtype=torch.uint8, device=case.device)  # zeros could all be one page of memory
    copy = partial(torch.ones_like(source).copy_, source)
    times = measure({**timed, COPY: copy}, settings.rounds, settings.budget) if timed else {}
    return [
        _timed(entrant, baseline, times, size) for entrant, baseline in zip((*ours, *others), baselines, strict=True)
    ]


def _ours(case: Case, settings: Settings, expected: Results) -> Iterator[_Entrant]:
    for backend in settings.backends:
        for layout in settings.layouts:
            build = partial(detpool_contender, case, backend, layout)
            yield _admit(f"detpool {backend}", layout, case, build, expected)


def _admit(implementation: str, layout: str, case: Case, build: Callable[[], Contender], expected: Results) -> _Entrant:
    """Build an implementation's call and compare what it returns."""
    dtype = str(case.dtype).removeprefix("torch.")
    names = (case.workload.name, case.operator.name, case.direction, dtype, case.threads, implementation, layout)
    row = partial(Row, *names)
    try:
        contender = build()
        results = contender.check()
    except (Absent, BackendError) as reason:
        return _Entrant(row("absent", str(reason)))
    except Exception as error:  # one that breaks must not take the others' results with it
        return _Entrant(row("failed", f"{type(error).__name__}: {error}"))
    found = compare(checked_part(case, results), expected, case.dtype)
    if not found.holds:
        return _Entrant(row("disagrees", found.worst, found.error, found.tolerance))
    return _Entrant(row("timed", contender.note, found.error, found.tolerance), contender)


def _timed(entrant: _Entrant, baseline: _Entrant | None, times: Mapping[str, Summary], size: int) -> Row:
    if entrant.key not in times:
        return entrant.row
    found, name, speedup = times[entrant.key], "", None
    if baseline is not None and baseline.key in times:
        speedup = times[baseline.key].median / found.median
        same = baseline.row.operator == entrant.row.operator
        name = baseline.row.implementation if same else f"{baseline.row.implementation} {baseline.row.operator}"
    return dataclasses.replace(
        entrant.row,
        rounds=found.rounds,
        median_ms=1e3 * found.median,
        p20_ms=1e3 * found.p20,
        p80_ms=1e3 * found.p80,
        baseline=name,
        speedup=speedup,
        gigabytes=size / 1e9,
        gb_per_s=size / 1e9 / found.median,
        copy_gb_per_s=size / 1e9 / times[COPY].median,
    )
