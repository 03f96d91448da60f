"""Puts a report together: sections of notes, tables and pictures, and the numbers behind them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from detpool.errors import ConfigError, did_you_mean
from detpool.evaluation.errors import ERRORS
from detpool.study import plots, tables
from detpool.study.collect import Benchmark, Collected, Problem, Run
from detpool.study.groups import Group, Section, check_baseline, find_baseline, make_sections
from detpool.study.plots import Picture, to_picture
from detpool.study.statistics import FEW_SEEDS, paired_difference, summarize
from detpool.study.tables import Table

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
        parts: one for each data set and split, then one for each benchmark.
        runs: a record for each run, with all of its numbers.
        summary: a record for each configuration and metric.
    """

    title: str
    problems: list[str]
    parts: list[Part]
    runs: list[dict[str, Any]]
    summary: list[dict[str, Any]]


def build_report(collected: Collected, metric: str = "AP", baseline: str | None = None) -> Report:
    """A report of everything that was collected.

    Args:
        collected: runs, benchmarks and problems.
        metric: the metric that configurations are compared by.
        baseline: the configuration that others are compared with, by its label or some of its `key=value` parts;
            default the first of each section.

    Raises:
        ConfigError: nothing can be reported, no run has the metric, or none is the baseline.
    """
    problems = list(collected.problems)
    runs = _with_metric(collected.runs, metric, problems)
    if not runs and not collected.benchmarks:
        reasons = "\n".join(f"  {problem}" for problem in problems)
        raise ConfigError(f"there is nothing to report:\n{reasons}")
    sections = make_sections(runs)
    if baseline is not None:
        check_baseline(sections, baseline)
    notes = [str(problem) for problem in problems]
    if len(sections) > 1:
        notes.append(
            f"The runs were evaluated on {len(sections)} different data sets or splits. Each has tables of its own; "
            "nothing is averaged or compared across them."
        )
    counts = {"run": len(runs), "benchmark": len(collected.benchmarks)}
    title = " and ".join(f"{count} {name}{'s' if count > 1 else ''}" for name, count in counts.items() if count)
    report = Report(title, notes, [], [], [])
    for number, section in enumerate(sections, 1):
        chosen = find_baseline(section, baseline)
        part = _part(section, chosen or section.groups[0], metric, f"{number}_")
        if chosen is None:
            part.notes.insert(0, f"No configuration here is {baseline}: the first one is the baseline.")
        report.parts.append(part)
        report.runs += [_run_record(section, group, run) for group in section.groups for run in group.runs.values()]
        report.summary += _summary_records(section, chosen or section.groups[0])
    report.parts += [_benchmark_part(b, f"benchmark{i}_") for i, b in enumerate(collected.benchmarks, 1)]
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
    blocks.append(_metrics_table(groups, metric, prefix))
    if len(groups) > 1:
        blocks.append(_differences_table(groups, baseline, metric, prefix))
    blocks.append(
        to_picture(
            plots.plot_metric(groups, baseline, metric), f"{name}{_file_name(metric)}", f"{metric} of every seed"
        )
    )
    if all(_has(groups, f"{prefix}AP@{iou}") for iou in plots.IOUS):
        blocks.append(
            to_picture(plots.plot_iou(groups, baseline, prefix), f"{name}iou", "AP over IoU thresholds", _IOU_NOTE)
        )
        blocks.append(_iou_table(groups, prefix))
    sizes = {f"{prefix}AP{size}": text for size, text in SIZES.items() if _has(groups, f"{prefix}AP{size}")}
    if sizes:
        blocks.append(to_picture(plots.plot_sizes(groups, sizes), f"{name}sizes", "AP by size of the objects"))
    if any(run.errors for run in section.runs):
        title = "Kinds of errors"
        blocks.append(to_picture(plots.plot_errors(_recorded(groups, "errors")), f"{name}errors", title, _ERROR_NOTE))
        blocks.append(_errors_table(_recorded(groups, "errors")))
    if any(run.curves for run in section.runs):
        blocks.append(to_picture(plots.plot_curves(groups, metric), f"{name}training", "Training, a line a seed"))
    if any(run.step_seconds is not None for run in section.runs):
        blocks.append(to_picture(plots.plot_cost(groups, metric), f"{name}cost", f"{metric} and what a step costs"))
    blocks.append(_cost_table(groups, baseline))
    blocks.append(_runs_table(groups))
    return part


_IOU_NOTE = "Where on the left lines lie on each other, the right shows what sets them apart at high IoU."
_ERROR_NOTE = (
    "Of each class the n best-scored detections, n being its number of objects. Correct: IoU >= 0.5 with an object of "
    "its class that no other has; duplicate: that another has; classification: with an object of another class; "
    "localisation: 0.1 <= IoU < 0.5 with one of its class; both: with one of another class; background: none. Missed: "
    "objects that no detection accounts for by being correct or nearly so."
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
        pairs = min(len(group.runs.keys() & baseline.runs.keys()) for group in groups)
        if pairs < FEW_SEEDS:
            notes.append(
                f"With {pairs} seed{'s' if pairs != 1 else ''} in common, bootstrap intervals "
                + ("do not exist." if pairs < 2 else "are too narrow (of nominally 95 %, they hold 75 % with 3 seeds).")
            )
    about: dict[str, Callable[[Run], str]] = {
        "git revisions": lambda run: (run.revision or "unknown")[:10] + (" with changes" if run.dirty else ""),
        "versions of packages": lambda run: ", ".join(f"{name} {v}" for name, v in run.versions.items()),
        "machines, so that times do not compare": lambda run: _machine(run.hardware),
    }
    for what, describe in about.items():
        counts: dict[str, int] = {}
        for run in runs:
            counts[describe(run)] = counts.get(describe(run), 0) + 1
        if len(counts) > 1:
            listed = "; ".join(f"{text} ({count} run{'s' if count > 1 else ''})" for text, count in counts.items())
            notes.append(f"The runs are of different {what}: {listed}.")
    if any(run.dirty for run in runs):
        notes.append("Some runs were made with files that differed from their git revision.")
    return notes


def _machine(hardware: Mapping[str, Any]) -> str:
    gpus = ", ".join(map(str, hardware.get("gpus") or []))
    return f"{hardware.get('cpu')}, {hardware.get('cores')} cores" + (f", {gpus}" if gpus else "")


def _has(groups: Sequence[Group], metric: str) -> bool:
    """Whether every run has a metric, and it is defined in one."""
    values = [run.metrics.get(metric) for group in groups for run in group.runs.values()]
    return None not in values and not all(math.isnan(value) for value in values if value is not None)


def _recorded(groups: Iterable[Group], attribute: str) -> list[Group]:
    return [group for group in groups if any(getattr(run, attribute) is not None for run in group.runs.values())]


def _metrics_table(groups: Sequence[Group], metric: str, prefix: str) -> Table:
    usual = [prefix + name for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")]
    shown = [metric, *(name for name in usual if name != metric and _has(groups, name))]
    rows = [
        [g.label, str(len(g.runs)), *(tables.percent(summarize(g.values(m).values()), len(g.runs)) for m in shown)]
        for g in groups
    ]
    note = "Percent, mean ± standard deviation over seeds (n - 1)."
    return Table("Metrics", ["configuration", "seeds", *shown], rows, note)


def _differences_table(groups: Sequence[Group], baseline: Group, metric: str, prefix: str) -> Table:
    usual = [f"{prefix}{name}" for name in ("AP50", "AP75", "AP@0.90")]
    shown = [metric, *(name for name in usual if name != metric and _has(groups, name))]
    rows = []
    for group in groups:
        if group is not baseline:
            found = [paired_difference(group.values(name), baseline.values(name)) for name in shown]
            rows.append([group.label, str(found[0].n), *map(tables.percent_points, found)])
    note = (
        f"Points of percent, mean over the seeds that both have, with the 95 % bootstrap interval over these pairs. "
        f"Baseline: {baseline.label}."
    )
    header = ["configuration", "pairs", *(f"Δ {name}" for name in shown)]
    return Table(f"Paired differences from {baseline.label}", header, rows, note)


def _iou_table(groups: Sequence[Group], prefix: str) -> Table:
    names = [f"{prefix}AP@{iou}" for iou in plots.IOUS]
    rows = [
        [g.label, *(tables.percent(summarize(g.values(name).values()), len(g.runs)) for name in names)] for g in groups
    ]
    return Table(f"{prefix}AP by IoU threshold", ["configuration", *plots.IOUS], rows, "Percent, as above.")


def _errors_table(groups: Sequence[Group]) -> Table:
    kinds = ("correct", *ERRORS)
    rows = [
        [g.label, *(tables.percent(summarize(plots.error_shares(g, kind)), len(g.runs)) for kind in kinds)]
        for g in groups
    ]
    return Table("Kinds of errors", ["configuration", *kinds], rows, "Per 100 objects, mean ± standard deviation.")


def _cost_table(groups: Sequence[Group], baseline: Group) -> Table:
    def values(group: Group, name: str) -> list[float | None]:
        return [getattr(run, name) for run in group.runs.values()]

    base = summarize(values(baseline, "step_seconds")).mean
    rows = []
    for group in groups:
        step = summarize(values(group, "step_seconds"))
        relative = step.mean / base if step.n else math.nan
        rows.append(
            [
                group.label,
                tables.scaled(step, len(group.runs), 1e3, 1),
                "-" if math.isnan(relative) else f"{relative:.2f}",
                tables.scaled(summarize(values(group, "peak_memory_bytes")), len(group.runs), 2**-20, 0),
                tables.scaled(summarize(values(group, "seconds")), len(group.runs), 1 / 60, 1),
            ]
        )
    header = ["configuration", "ms a step", "× baseline", "MiB a step", "minutes a run"]
    note = (
        "A step is forward, backward and optimizer on one batch (the median of the run); its memory is the peak: on a "
        "GPU what PyTorch's allocator handed out, on a CPU the resident memory of the process, in a sweep together "
        "with what earlier runs left. - : not recorded."
    )
    return Table("Cost", header, rows, note)


def _runs_table(groups: Sequence[Group]) -> Table:
    rows = []
    for group in groups:
        for seed, run in group.runs.items():
            revision = (run.revision or "unknown") + (" with changes" if run.dirty else "")
            rows.append([group.label, str(seed), str(run.folder), revision, run.command])
    header = ["configuration", "seed", "directory", "revision", "command"]
    return Table("Runs", header, rows, words=len(header), listing=True)


def _run_record(section: Section, group: Group, run: Run) -> dict[str, Any]:
    """All numbers of a run."""
    return {
        "data": section.title,
        "configuration": group.label,
        "seed": run.seed,
        "folder": str(run.folder),
        "revision": run.revision,
        "dirty": run.dirty,
        "seconds": run.seconds,
        "step_seconds": run.step_seconds,
        "peak_memory_bytes": run.peak_memory_bytes,
        **run.metrics,
        **{f"errors/{kind}": count for kind, count in (run.errors or {}).items()},
        "command": run.command,
    }


def _summary_records(section: Section, baseline: Group) -> list[dict[str, Any]]:
    """Statistics of every metric that all runs of the section have."""
    names = [n for n in section.runs[0].metrics if all(n in run.metrics for run in section.runs)]
    records = []
    for group in section.groups:
        for name in names:
            summary = summarize(group.values(name).values())
            difference = paired_difference(group.values(name), baseline.values(name))
            compared = group is not baseline and difference.n > 0
            records.append(
                {
                    "data": section.title,
                    "configuration": group.label,
                    "metric": name,
                    "seeds": summary.n,
                    "mean": summary.mean,
                    "std": summary.std,
                    "baseline": baseline.label,
                    "pairs": difference.n if compared else None,
                    "difference": difference.mean if compared else None,
                    "low": difference.low if compared else None,
                    "high": difference.high if compared else None,
                }
            )
    return records


_UNTOLD = (
    "status",
    "note",
    "error",
    "tolerance",
    "rounds",
    "gigabytes",
    "gb_per_s",
    "copy_gb_per_s",
    "dtype",
    "threads",
)
"""Columns of a benchmark that its own CSV file tells; those that vary are shown all the same."""


def _benchmark_part(benchmark: Benchmark, name: str) -> Part:
    timed = [row for row in benchmark.rows if row.get("status", "timed") == "timed"]
    part = Part(f"Benchmark {benchmark.path}")
    left_out: dict[tuple[str, str], int] = {}
    for row in benchmark.rows:
        if row.get("status", "timed") != "timed":
            key = (row["status"], row.get("implementation", ""))
            left_out[key] = left_out.get(key, 0) + 1
    if left_out:
        listed = "; ".join(f"{who}: {count} {status}" for (status, who), count in left_out.items())
        part.notes.append(f"{sum(left_out.values())} rows were not timed ({listed}); the CSV file beside it says why.")
    record = benchmark.record
    git = record.get("git") or {}
    facts = [
        ["command", str(record["command"])],
        ["revision", f"{git.get('revision') or 'unknown'}{' with changes' if git.get('dirty') else ''}"],
        ["machine", _machine(record.get("hardware") or {})],
        ["versions", ", ".join(f"{k} {v}" for k, v in (record.get("versions") or {}).items() if v)],
    ]
    part.blocks.append(Table("How it was measured", ["", ""], facts, words=2, listing=True))
    part.blocks += [Picture(f"{name}{path.stem}", path.name, {"png": path.read_bytes()}) for path in benchmark.pictures]
    varied = [c for c in _UNTOLD if c in ("dtype", "threads") and len({row.get(c) for row in timed}) > 1]
    columns = [c for c in benchmark.columns if (c not in _UNTOLD or c in varied) and any(row[c] for row in timed)]
    numbers = {c for c in columns if all(_is_number(row[c]) for row in timed if row[c])}
    ordered = [*(c for c in columns if c not in numbers), *(c for c in columns if c in numbers)]
    rows = [[row[c] for c in ordered] for row in timed]
    part.blocks.append(Table("Times", ordered, rows, words=len(columns) - len(numbers), listing=True))
    return part


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _file_name(metric: str) -> str:
    return "".join(character if character.isalnum() else "_" for character in metric)
