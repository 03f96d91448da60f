"""Results as a table on the terminal, CSV and JSON."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from detpool.files import write_csv_atomically, write_json_atomically
from detpool.run_record import provenance

from .run import Row

PACKAGES = ("numpy", "numba", "openvino", "onnx", "onnxruntime")
"""Further ones whose versions matter to a benchmark."""
PIPED_WIDTH = 170


def console() -> Console:
    """As wide as the terminal; wide enough for the table where there is none."""
    terminal = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if terminal else PIPED_WIDTH, highlight=False)


def print_rows(rows: Sequence[Row], out: Console) -> None:
    """One table a workload, number of threads and dtype; who was not timed, and why, below."""
    for title, group in _grouped(rows).items():
        table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
        for column in ("operator", "direction", "implementation", "layout"):
            table.add_column(column, overflow="fold")
        for column in ("ms", "p20 - p80", "speed-up", "GB/s", "of copy", "error"):
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column("against; remarks")
        shown = [row for row in group if row.status == "timed"]
        previous = None
        for row in shown:
            same = previous is not None and (row.operator, row.direction) == (previous.operator, previous.direction)
            if not same and previous is not None:
                table.add_section()
            style = "bold" if row.implementation.startswith("detpool") else ""
            table.add_row(*(("", "") if same else (row.operator, row.direction)), *_cells(row), style=style)
            previous = row
        out.print(table)
        for line in _left_out(group):
            out.print(line)


def _grouped(rows: Iterable[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        threads = f"{row.threads} thread{'s' if row.threads > 1 else ''}"
        groups.setdefault(f"{row.workload}, {row.dtype}, {threads}", []).append(row)
    return groups


def _cells(row: Row) -> list[str]:
    assert row.gb_per_s is not None
    assert row.copy_gb_per_s is not None
    return [
        row.implementation,
        row.layout,
        f"{row.median_ms:.2f}",
        f"{row.p20_ms:.2f} - {row.p80_ms:.2f}",
        "-" if row.speedup is None else f"{row.speedup:.2f}x",
        f"{row.gb_per_s:.2f}",
        f"{100 * row.gb_per_s / row.copy_gb_per_s:.0f}%",
        "0" if row.error == 0 else f"{row.error:.0e}",
        "; ".join(filter(None, [re.sub(r"^detpool \w+", "our", row.baseline), row.note])),
    ]


def _left_out(rows: Iterable[Row]) -> list[Text]:
    """A line for each implementation and reason: wrong results, failures, and what it does not compute at all."""
    cases: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.status == "timed":
            continue
        reason = row.note if row.status == "absent" else f"{row.status}: {_first_line(row.note)}"
        if row.status == "disagrees":
            reason += f" the tolerance of {row.tolerance:g}, by {row.error:.2g} at most"
        known = cases.setdefault((f"not timed: {row.implementation}", reason), [])
        if row.operator not in known:
            known.append(row.operator)
    return [Text(f"  {name}: {reason} ({', '.join(names)})", style="dim") for (name, reason), names in cases.items()]


def _first_line(text: str) -> str:
    return next(iter(text.splitlines()), "")


def print_scaling(rows: Sequence[Row], values: Sequence[float], out: Console) -> None:
    """A table for each quantity that was varied, with its values as columns; who was not timed, and why, below."""
    for quantity in dict.fromkeys(row.workload for row in rows):
        lines: dict[tuple[str, str, str, str], dict[float, str]] = {}
        for row, value in zip(rows, values, strict=True):
            if row.workload == quantity and row.status in ("timed", "disagrees"):
                line = lines.setdefault((row.operator, row.direction, row.implementation, row.layout), {})
                line[value] = "wrong" if row.median_ms is None else f"{row.median_ms:.2f}"
        columns = sorted({value for line in lines.values() for value in line})
        title = f"ms by {quantity}"
        table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
        for column in ("operator", "direction", "implementation", "layout"):
            table.add_column(column, no_wrap=True)
        for value in columns:
            table.add_column(f"{value:g}", justify="right", no_wrap=True)
        for names, line in lines.items():
            table.add_row(*names, *(line.get(value, "-") for value in columns))
        out.print(table)
    for line_out in _left_out(rows):
        out.print(line_out)


def write_csv(path: Path, rows: Sequence[Row], values: Sequence[float] | None = None) -> None:
    """One line a row, every field of `Row` a column; `values` of what was varied, if given, in one more."""
    records = [dataclasses.asdict(row) for row in rows]
    if values is not None:
        records = [{"value": value, **record} for value, record in zip(values, records, strict=True)]
    write_csv_atomically(
        path, [{k: f"{v:.6g}" if isinstance(v, float) else v for k, v in record.items()} for record in records]
    )


def write_json(
    path: Path, command: Sequence[str], settings: Mapping[str, Any], seconds: float, load: Mapping[str, Any]
) -> None:
    """What is needed to judge the numbers, and to get them again.

    Args:
        path: the file.
        command: the words of the command line.
        settings: the arguments of the run, defaults included.
        seconds: wall-clock time of the run.
        load: the machine's load average before and after.
    """
    record = {
        "settings": {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()},
        "seconds": round(seconds, 1),
        "load_average": dict(load),
        **provenance(command, PACKAGES),
    }
    write_json_atomically(path, record)
