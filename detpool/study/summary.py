"""The summary of a sweep in the terminal: the states of its runs, their metrics, and the command for a report."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from detpool.run_record import program, read_metrics, shell_command
from detpool.study.layout import STATUS, Status, read_status
from detpool.study.plan import Sweep

_ROWS = 40  # maximum number of runs in the table
_CHOSEN = "optimization_results.yaml"
"""File of Hydra's Optuna sweeper: the best parameters and their result."""


def summarize(sweep: Sweep) -> bool:
    """Prints the results of a sweep, and returns whether all of its known runs are finished."""
    folders = _left(sweep.folder) if sweep.names is None else [sweep.folder / name for name in sweep.names]
    records = {folder: found for folder in folders if (found := _record(folder)) is not None}
    statuses = {folder: _status(folder) for folder in folders if folder not in records}
    failed = {folder: status for folder, status in statuses.items() if status and status.state != "interrupted"}
    states = {folder: status.state if status else "not finished" for folder, status in statuses.items()}
    for folder, status in failed.items():
        print(f"{folder}: {status.state}: {status.error}", file=sys.stderr)
    evaluation = sweep.config.evaluation
    if records:
        names = _names(sweep, folders, records)
        rows = {names[f]: (states.get(f, ""), records[f]["metrics"] if f in records else {}) for f in folders[:_ROWS]}
        metrics = list(dict.fromkeys((str(evaluation.monitor), "AP", "AP50")))
        Console().print(_table(rows, metrics, f"{evaluation.split} split"))
        if len(folders) > _ROWS:
            print(f"and {len(folders) - _ROWS} more")
    rest = len(statuses) - len(failed)
    print(f"{sweep.folder}: {len(records)} of {len(folders)} runs finished, {len(failed)} failed, {rest} not finished")
    if (sweep.folder / _CHOSEN).is_file():
        print(_chosen(OmegaConf.load(sweep.folder / _CHOSEN), f"val/{evaluation.monitor}"))
    if records:
        print(f"a report: {shell_command([program('tools/report.py'), str(sweep.folder)])}")
    return not statuses


def _left(folder: Path) -> list[Path]:
    """Returns the directories of runs that have ended, in the order of their numbers."""
    found = {path.parent for name in (STATUS, "metrics.json") for path in folder.glob(f"*/{name}")}
    return sorted(found, key=lambda path: (len(path.name), path.name))


def _record(run_dir: Path) -> dict[str, Any] | None:
    try:
        return read_metrics(run_dir / "metrics.json")
    except (FileNotFoundError, ValueError):
        return None


def _status(run_dir: Path) -> Status | None:
    try:
        return read_status(run_dir)
    except ValueError:  # the file is damaged; the run starts again
        return None


def _names(sweep: Sweep, folders: Sequence[Path], records: Mapping[Path, Mapping[str, Any]]) -> dict[Path, str]:
    """Returns names of runs: folder names in a study, else numbers and the overrides in which the runs differ."""
    if sweep.is_study:
        return {folder: folder.name for folder in folders}
    if sweep.names is not None:
        lines = dict(zip(folders, sweep.jobs, strict=True))
    else:
        lines = {folder: shlex.split(str(record.get("command", ""))) for folder, record in records.items()}
    common = set.intersection(*map(set, lines.values())) if lines else set()
    return {f: " ".join([f.name, *(word for word in lines.get(f, ()) if word not in common)]) for f in folders}


def _table(rows: Mapping[str, tuple[str, Mapping[str, float]]], names: list[str], title: str) -> Table:
    """Makes a table with one row per run: its metrics in percent, or its state if it has none."""
    table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False, title=title, title_justify="left")
    table.add_column("run", overflow="fold")
    for name in names:
        table.add_column(f"{name}, %", justify="right", no_wrap=True)
    if any(state for state, _ in rows.values()):
        table.add_column("", no_wrap=True)
    for run, (state, metrics) in rows.items():
        values = [metrics.get(name, math.nan) for name in names]
        table.add_row(Text(run), *("-" if math.isnan(value) else f"{100 * value:.1f}" for value in values), state)
    return table


def _chosen(results: Any, metric: str) -> str:
    parameters = " ".join(f"{key}={value}" for key, value in results.best_params.items())
    return f"the best of {metric}, {results.best_value:.4f}: {parameters}"
