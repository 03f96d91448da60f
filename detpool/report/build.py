"""Puts a report together: sections of notes, tables and pictures, and the numbers behind them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from detpool.errors import ConfigError, did_you_mean
from detpool.report import plots, tables
from detpool.report.benchmarks import benchmark_blocks, benchmark_notes
from detpool.report.collect import Collected, Problem, Run
from detpool.report.groups import Group, Section, check_baseline, find_baseline, make_sections
from detpool.report.plots import Picture, to_picture
from detpool.report.run_tables import (
    cost_table,
    differences_table,
    errors_table,
    iou_table,
    is_defined,
    metrics_table,
    run_record,
    runs_table,
    summary_records,
)
from detpool.report.statistics import COVERAGE
from detpool.report.tables import Table

SIZES = {"s": "small: below 32² pixels", "m": "medium", "l": "large: above 96² pixels"}


@dataclass
class Part:
    """A part of a report under one heading; `notes` say what to beware of."""

    title: str
    notes: list[str] = field(default_factory=list)
    blocks: list[Table | Picture] = field(default_factory=list)


@dataclass
class Report:
    """A whole report.

    Attributes:
        title: its heading, what it is about.
        problems: what was found and is not in the numbers, and what else concerns all parts.
        parts: one for each data set and split (and value of a setting), then one for each benchmark.
        runs: a record for each run, with all of its numbers.
        summary: a record for each configuration and metric.
    """

    title: str
    problems: list[str]
    parts: list[Part]
    runs: list[dict[str, Any]]
    summary: list[dict[str, Any]]


def build_report(
    collected: Collected, metric: str = "AP", baseline: str | None = None, by: str | None = None
) -> Report:
    """A report of everything that was collected.

    Args:
        collected: runs, benchmarks and problems.
        metric: the metric that configurations are compared by.
        baseline: the configuration that others are compared with, by its label or some of its `key=value` parts;
            default the first of each section.
        by: dotted key of a setting, each of whose values gets a part with a baseline of its own.

    Raises:
        ConfigError: nothing can be reported, no run has the metric or the setting, or none is the baseline.
    """
    problems = list(collected.problems)
    runs = _with_metric(collected.runs, metric, problems)
    if not runs and not collected.benchmarks:
        reasons = "\n".join(f"  {problem}" for problem in problems)
        raise ConfigError(f"there is nothing to report:\n{reasons}")
    sections = make_sections(runs, by)
    if baseline is not None:
        check_baseline(sections, baseline)
    notes = [str(problem) for problem in problems]
    if (count := len({section.data for section in sections})) > 1:
        notes.append(
            f"The runs were evaluated on {count} different data sets or splits. Each has tables of its own; "
            "nothing is averaged or compared across them."
        )
    counts = {"run": len(runs), "benchmark": len(collected.benchmarks)}
    title = " and ".join(f"{n} {name}{'s' if n > 1 else ''}" for name, n in counts.items() if n)
    report = Report(title, notes, [], [], [])
    for number, section in enumerate(sections, 1):
        chosen = find_baseline(section, baseline)
        part = _part(section, chosen or section.groups[0], metric, f"{number}_")
        if chosen is None:
            part.notes.insert(0, f"No configuration here is {baseline}: the first one is the baseline.")
        report.parts.append(part)
        report.runs += [run_record(section, group, run) for group in section.groups for run in group.runs.values()]
        report.summary += summary_records(section, chosen or section.groups[0])
    for number, benchmark in enumerate(collected.benchmarks, 1):
        blocks = benchmark_blocks(benchmark, f"benchmark{number}_")
        report.parts.append(Part(f"Benchmark {benchmark.path}", benchmark_notes(benchmark), blocks))
    return report


def _with_metric(runs: Sequence[Run], metric: str, problems: list[Problem]) -> list[Run]:
    """The runs that have the metric; the others become problems, unless nobody has it."""
    having = [run for run in runs if metric in run.metrics]
    if runs and not having:
        known = {name for run in runs for name in run.metrics}
        raise ConfigError(f"--metric {metric!r} is in no run{did_you_mean(metric, known)}")
    problems += [Problem(r.folder, f"left out: it has no metric {metric}") for r in runs if metric not in r.metrics]
    return having


def _part(section: Section, baseline: Group, metric: str, name: str) -> Part:
    """Everything about the runs on one data set and split; `name` begins the names of its pictures."""
    groups = section.groups
    prefix = "mask_" if metric.startswith("mask_") else ""
    part = Part(section.title, [*map(str, section.problems), *_notes(section, baseline)])
    blocks = part.blocks
    blocks.append(metrics_table(groups, metric, prefix))
    if len(groups) > 1:
        blocks.append(differences_table(groups, baseline, metric, prefix))
    blocks.append(
        to_picture(
            plots.plot_metric(groups, baseline, metric), f"{name}{_file_name(metric)}", f"{metric} of every seed"
        )
    )
    if all(is_defined(groups, f"{prefix}AP@{iou}") for iou in plots.IOUS):
        blocks.append(
            to_picture(plots.plot_iou(groups, baseline, prefix), f"{name}iou", "AP over IoU thresholds", _IOU_NOTE)
        )
        blocks.append(iou_table(groups, prefix))
    sizes = {f"{prefix}AP{size}": text for size, text in SIZES.items() if is_defined(groups, f"{prefix}AP{size}")}
    if sizes:
        blocks.append(to_picture(plots.plot_sizes(groups, sizes), f"{name}sizes", "AP by size of the objects"))
    if recorded := [group for group in groups if any(run.errors for run in group.runs.values())]:
        blocks.append(to_picture(plots.plot_errors(recorded), f"{name}errors", "Kinds of errors of boxes", _ERROR_NOTE))
        blocks.append(errors_table(recorded))
    if any(run.curves.keys() & {"train/loss", f"val/{metric}"} for run in section.runs):
        blocks.append(to_picture(plots.plot_curves(groups, metric), f"{name}training", "Training, a line a seed"))
    if any(run.step_seconds is not None for run in section.runs):
        blocks.append(to_picture(plots.plot_cost(groups, metric), f"{name}cost", f"{metric} and what a step costs"))
    blocks.append(cost_table(groups, baseline))
    blocks.append(runs_table(groups))
    return part


_IOU_NOTE = "Where on the left lines lie on each other, the right shows what sets them apart at high IoU."
_ERROR_NOTE = (
    "Of boxes; of each class the n best-scored detections, n being its number of objects. Correct: IoU >= 0.5 with an "
    "object of its class that no other has; duplicate: that another has; classification: with an object of another "
    "class; localisation: 0.1 <= IoU < 0.5 with one of its class; both: with one of another class; background: none. "
    "Missed: objects that no detection accounts for by being correct or nearly so."
)


def _notes(section: Section, baseline: Group) -> list[str]:
    """What to beware of in the runs of a section."""
    groups, runs = section.groups, section.runs
    notes = []
    seeds = sorted({run.seed for run in runs})
    for group in groups:
        if missing := [str(seed) for seed in seeds if seed not in group.runs]:
            plural = "s" if len(missing) > 1 else ""
            notes.append(f"{group.label} has no finished run of seed{plural} {', '.join(missing)}, which others have.")
    if len(groups) > 1:
        pairs = {g.label: len(g.runs.keys() & baseline.runs.keys()) for g in groups if g is not baseline}
        if lacking := [label for label, n in pairs.items() if n < 2]:
            everyone = len(lacking) == len(pairs)
            who = "No configuration shares" if everyone else "Not all configurations share"
            listed = "" if everyone else f" (not {'; '.join(lacking)})"
            notes.append(f"{who} two seeds with the baseline{listed}: without, there are no intervals.")
        if few := sorted({n for n in pairs.values() if n in COVERAGE}):
            held = ", ".join(f"{COVERAGE[n]} % of the time with {n} seeds" for n in few)
            notes.append(f"Bootstrap intervals of so few seeds, nominally 95 %, are too narrow: they hold {held}.")
    about: dict[str, Callable[[Run], str]] = {
        "git revisions": lambda run: tables.revision(run.revision and run.revision[:10], run.dirty),
        "versions of packages": lambda run: ", ".join(f"{name} {v}" for name, v in run.versions.items()),
        "machines, so that times do not compare": lambda run: tables.machine(run.hardware),
    }
    for what, describe in about.items():
        counts = Counter(describe(run) for run in runs)
        if len(counts) > 1:
            listed = "; ".join(f"{text} ({count} run{'s' if count > 1 else ''})" for text, count in counts.items())
            notes.append(f"The runs are of different {what}: {listed}.")
    for sentence, count in Counter(note for run in runs for note in run.notes).items():
        notes.append(sentence if count == len(runs) else f"{sentence} ({count} of {len(runs)} runs)")
    if any(run.dirty for run in runs):
        notes.append("Some runs were made with files that differed from their git revision.")
    return notes


def _file_name(metric: str) -> str:
    return "".join(character if character.isalnum() else "_" for character in metric)
