"""The tables of runs, and the records behind them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from detpool.evaluation.errors import ERRORS
from detpool.report import plots, tables
from detpool.report.collect import Run
from detpool.report.groups import Group, Section
from detpool.report.statistics import paired_difference, summarize
from detpool.report.tables import Table


def is_defined(groups: Sequence[Group], metric: str) -> bool:
    """Whether every run has a metric, and it is defined in one."""
    values = [run.metrics.get(metric) for group in groups for run in group.runs.values()]
    return None not in values and not all(math.isnan(value) for value in values if value is not None)


def _shown(groups: Sequence[Group], metric: str, prefix: str, usual: Sequence[str]) -> list[str]:
    """The metric, those of the usual ones that are defined, of boxes or masks as `prefix` says, and AP of the other."""
    names = [prefix + name for name in usual] + ["AP" if prefix else "mask_AP"]
    return [metric, *(name for name in names if name != metric and is_defined(groups, name))]


def metrics_table(groups: Sequence[Group], metric: str, prefix: str) -> Table:
    """The metric, COCO's usual ones, and AP of masks beside that of boxes: means and standard deviations over seeds."""
    shown = _shown(groups, metric, prefix, ("AP", "AP50", "AP75", "APs", "APm", "APl"))
    rows = [
        [g.label, str(len(g.runs)), *(tables.percent(summarize(g.values(m).values()), len(g.runs)) for m in shown)]
        for g in groups
    ]
    note = "Percent, mean ± standard deviation over seeds (n - 1)."
    return Table("Metrics", ["configuration", "seeds", *shown], rows, note)


def differences_table(groups: Sequence[Group], baseline: Group, metric: str, prefix: str) -> Table:
    """Paired differences from the baseline, with their intervals."""
    shown = _shown(groups, metric, prefix, ("AP50", "AP75", "AP@0.90"))
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


def iou_table(groups: Sequence[Group], prefix: str) -> Table:
    """AP at each IoU threshold."""
    names = [f"{prefix}AP@{iou}" for iou in plots.IOUS]
    rows = [
        [g.label, *(tables.percent(summarize(g.values(name).values()), len(g.runs)) for name in names)] for g in groups
    ]
    return Table(f"{prefix}AP by IoU threshold", ["configuration", *plots.IOUS], rows, "Percent, as above.")


def errors_table(groups: Sequence[Group]) -> Table:
    """Kinds of errors, per 100 objects."""
    kinds = ("correct", *ERRORS)
    rows = [
        [g.label, *(tables.percent(summarize(plots.error_shares(g, kind)), len(g.runs)) for kind in kinds)]
        for g in groups
    ]
    return Table(
        "Kinds of errors of boxes", ["configuration", *kinds], rows, "Per 100 objects, mean ± standard deviation."
    )


def cost_table(groups: Sequence[Group], baseline: Group) -> Table:
    """Seconds and memory of a training step, and minutes of a run."""

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


def runs_table(groups: Sequence[Group]) -> Table:
    """Where each run is, and how to get it again."""
    rows = []
    for group in groups:
        for seed, run in group.runs.items():
            revision = tables.revision(run.revision, run.dirty)
            rows.append([group.label, str(seed), str(run.folder), revision, run.command])
    header = ["configuration", "seed", "directory", "revision", "command"]
    return Table("Runs", header, rows, words=len(header), listing=True)


def run_record(section: Section, group: Group, run: Run) -> dict[str, Any]:
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


def summary_records(section: Section, baseline: Group) -> list[dict[str, Any]]:
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
