"""Assembles a report: parts with notes, tables and pictures, and the numbers behind them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from detpool.errors import ConfigError, did_you_mean
from detpool.report import cost_tables, plots, tables
from detpool.report.answer import answer
from detpool.report.collect import Benchmark, Collected, Problem
from detpool.report.costs import Costs
from detpool.report.facts import facts
from detpool.report.groups import Section, make_sections
from detpool.report.plots import Picture
from detpool.report.resamples import resample
from detpool.report.tables import Table


@dataclass
class Part:
    """A part of a report under one heading.

    Attributes:
        name: prefix of the file names of its pictures.
        title: the heading.
        facts: what was trained: text by kind of fact (`detpool.report.facts`).
        notes: caveats.
        blocks: its tables and pictures, in order.
        answer: answers by question, for the top of the report; empty unless it has several configurations.
    """

    name: str
    title: str
    notes: list[str]
    blocks: list[Table | Picture]
    facts: Mapping[str, str] = field(default_factory=dict)
    answer: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Report:
    """A whole report.

    Attributes:
        title: the heading.
        problems: what was found but is not in the numbers: failed, incomplete and left out runs, unreadable files.
        parts: one for each section, one for each comparison of sections of the same data, one for each benchmark.
        numbers: the tables behind the parts, by name: `runs`, one row per run with all of its numbers; `summary`, one
            row per configuration and metric; `across`, one row per configuration, metric and pair of sections. `runs`
            and `summary` are absent without runs, `across` without sections to compare.
        notes: caveats about all parts.
    """

    title: str
    problems: list[str]
    parts: list[Part] = field(default_factory=list)
    numbers: dict[str, pd.DataFrame] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def build_report(
    collected: Collected,
    metric: str = "AP",
    baseline: str | None = None,
    by: str | None = None,
    show: Sequence[str] = (),
) -> Report:
    """Builds a report of everything that was collected.

    Args:
        collected: runs, benchmarks and problems.
        metric: the metric by which configurations are compared.
        baseline: the configuration that others are compared with, by its label or some of its `key=value` parts; by
            default the first one of each section.
        by: dotted key of a setting. Each of its values gets a part with its own baseline, and a further part shows how
            the differences from the baseline change with the value.
        show: configurations that plots show besides the best ones, given like `baseline`.

    Raises:
        ConfigError: If there is nothing to report, no run has the metric or the setting, or no configuration matches
            `baseline` or an entry of `show`, or several of a section match `baseline`.
    """
    runs = [run for run in collected.runs if metric in run.metrics]
    if collected.runs and not runs:
        known = {name for run in collected.runs for name in run.metrics}
        raise ConfigError(f"--metric {metric!r} is in no run{did_you_mean(metric, known)}")
    without = [run for run in collected.runs if metric not in run.metrics]
    problems = [*collected.problems, *(Problem(r.folder, f"left out: it has no metric {metric}") for r in without)]
    if not runs and not collected.benchmarks:
        raise ConfigError("there is nothing to report:\n" + "\n".join(f"  {problem}" for problem in problems))
    counts = {"run": len(runs), "benchmark": len(collected.benchmarks)}
    title = " and ".join(f"{n} {name}{'s' if n > 1 else ''}" for name, n in counts.items() if n)
    report = Report(title, [str(problem) for problem in problems])
    if runs:
        sections = make_sections(runs, by, baseline, show)
        resample(sections)
        _add_runs(report, sections, metric, collected.costs)
    report.parts += [_benchmark_part(f"benchmark{i}", each) for i, each in enumerate(collected.benchmarks, 1)]
    return report


def _add_runs(report: Report, sections: Sequence[Section], metric: str, costs: Sequence[Costs]) -> None:
    by_data: dict[tuple[str, ...], list[Section]] = {}
    used = set[Path]()
    for number, section in enumerate(sections, 1):
        measured = cost_tables.match(section, costs)
        notes, blocks = _notes(section, metric), _blocks(section, metric, measured)
        used |= {measured.source.path} if measured else set()
        shown = answer(section, metric, measured.costs if measured else {})
        report.parts.append(Part(str(number), section.title, notes, blocks, facts(section), shown))
        by_data.setdefault(section.data, []).append(section)
    for path in (each.path for each in costs if each.path not in used):
        report.problems.append(
            f"{path}: left out: no run here is of what it measured, or another file has more of them"
        )
    if len(by_data) > 1:
        report.notes.append(
            f"The runs were evaluated in {len(by_data)} different ways: on other data sets, splits or image sizes, or "
            "with other limits of detections. Each has tables of its own; nothing is averaged or compared across them."
        )
    report.numbers["runs"] = pd.concat(s.table.reset_index().assign(data=s.title) for s in sections).set_index("data")
    report.numbers["summary"] = pd.concat(map(tables.summary, sections)).set_index("data")
    several = [alike for alike in by_data.values() if len(alike) > 1]
    report.parts += [_across_part(f"across{number}", alike, metric) for number, alike in enumerate(several, 1)]
    if comparable := [alike for alike in map(tables.comparable, several) if len(alike) > 1]:
        report.numbers["across"] = pd.concat(map(tables.across_summary, comparable)).set_index("from")


def _blocks(section: Section, metric: str, measured: cost_tables.Measured | None) -> list[Table | Picture]:
    """Returns the tables and pictures of a section."""
    iou, errors = plots.plot_iou(section, metric), plots.plot_errors(section, metric)
    blocks = [
        tables.metrics_table(section, metric),
        tables.comparisons_table(section, metric) if section.others else None,
        tables.configurations_table(section),
        tables.classes_table(section, metric),
        tables.pivot_table(section, metric),
        tables.ranking_table(section, metric) if len(section.runs) > 2 else None,
        tables.differences_table(section, metric) if section.others else None,
        plots.plot_metric(section, metric),
        *((iou, tables.iou_table(section, metric)) if iou else ()),
        plots.plot_sizes(section, metric),
        *((errors, tables.errors_table(section)) if errors else ()),
        plots.plot_curves(section, metric),
        *((plots.plot_cost(section, metric, measured.rows), *measured.tables()) if measured else ()),
        tables.duration_table(section),
        tables.runs_table(section),
    ]
    return [block for block in blocks if block is not None]


def _across_part(name: str, sections: Sequence[Section], metric: str) -> Part:
    """Makes the part that shows how differences from the baseline change from section to section."""
    alike, first = tables.comparable(sections), sections[0]
    notes = [
        f"{section.title} is not compared with {first.title}: it has not its baseline and another configuration of it."
        for section in sections
        if section not in alike
    ]
    blocks: list[Table | Picture] = []
    if len(alike) > 1:
        blocks = [tables.across_table(alike, metric), plots.plot_across(alike, metric)]
    return Part(name, " against ".join(section.value for section in sections), notes, blocks)


def _benchmark_part(name: str, benchmark: Benchmark) -> Part:
    """Makes the part of a benchmark: how it was measured, its own pictures, and its times."""
    pictures = [Picture(path.stem, path.name, {"png": path.read_bytes()}) for path in benchmark.pictures]
    blocks: list[Table | Picture] = [tables.measurement_table(benchmark), *pictures, tables.times_table(benchmark)]
    return Part(name, f"Benchmark {benchmark.path}", tables.untimed(benchmark), blocks)


def _notes(section: Section, metric: str) -> list[str]:
    """Returns the caveats about the runs of a section."""
    runs, notes = section.all_runs, list(section.notes)
    if (drawn := len(section.drawn(metric))) < len(section.runs):
        notes.append(
            f"Plots show {drawn} of {len(section.runs)} configurations: the baseline, the best by {metric}, and what "
            "--show asks for."
        )
    seeds = {run.seed for run in runs}
    for label, by_seed in section.runs.items():
        if missing := [str(seed) for seed in sorted(seeds - by_seed.keys())]:
            plural = "s" if len(missing) > 1 else ""
            notes.append(f"{label} has no finished run of seed{plural} {', '.join(missing)}, which others have.")
    pairs = {label: len(section.runs[label].keys() & section.runs[section.baseline].keys()) for label in section.others}
    if lacking := [label for label, n in pairs.items() if n < 2]:
        who, listed = "Not all configurations share", f" (not {'; '.join(lacking)})"
        if len(lacking) == len(pairs):
            who, listed = "No configuration shares", ""
        notes.append(f"{who} two seeds with the baseline{listed}: without, nothing is known of the chance of seeds.")
    about: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "git revisions": tables.revision,
        "versions of packages": tables.versions,
        "machines, so that times do not compare": tables.machine,
        "settings of tools/shift.py": lambda record: record.get("shift", {}).get("settings", "not measured"),
    }
    for what, describe in about.items():
        counts = Counter(describe(run.record) for run in runs)
        if len(counts) > 1:
            listed = "; ".join(f"{text} ({count} run{'s' if count > 1 else ''})" for text, count in counts.items())
            notes.append(f"The runs are of different {what}: {listed}.")
    for sentence, count in Counter(str(note) for run in runs for note in run.record.get("notes") or []).items():
        notes.append(sentence if count == len(runs) else f"{sentence} ({count} of {len(runs)} runs)")
    if section.table["dirty"].any():
        notes.append("Some runs were made with files that differed from their git revision.")
    return notes
