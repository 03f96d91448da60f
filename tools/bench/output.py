"""Writes results as plain text tables, CSV and JSON."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

from detpool.files import write_csv_atomically, write_json_atomically
from detpool.run_record import provenance

from .run import Row

PACKAGES = ("numpy", "numba", "openvino", "onnx", "onnxruntime", "timm")
"""Further packages whose versions are recorded."""
Item = TypeVar("Item")


class Table:
    """A text table with a title: numbers are right-aligned, names and remarks left-aligned."""

    def __init__(self, title: str, names: Sequence[str], numbers: Sequence[str], remarks: Sequence[str] = ()) -> None:
        self._title, self._numbers = title, range(len(names), len(names) + len(numbers))
        self._lines: list[Sequence[str]] = [(*names, *numbers, *remarks)]

    def add_row(self, *cells: str) -> None:
        self._lines.append(cells)

    def add_gap(self) -> None:
        """Adds an empty line."""
        self._lines.append(())

    def __str__(self) -> str:
        widths = [max(map(len, column)) for column in zip(*filter(None, self._lines), strict=True)]
        head, *rows = (
            "  ".join(f"{cell:{'>' if n in self._numbers else '<'}{widths[n]}}" for n, cell in enumerate(line)).rstrip()
            for line in self._lines
        )
        return "\n".join(["", self._title, "", head, "-" * (sum(widths) + 2 * len(widths) - 2), *rows]).rstrip() + "\n"


def progress(items: Sequence[Item], title: str) -> Iterator[Item]:
    """Yields the items, and shows their number if there is a terminal."""
    for number, item in enumerate(items, 1):
        if sys.stderr.isatty():
            print(f"\r{title}: {number} of {len(items)}", end="", file=sys.stderr, flush=True)
        yield item


def print_rows(rows: Sequence[Row]) -> None:
    """Prints one table for each workload, number of threads and dtype, and below what was not timed and why."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(f"{row.workload}, {row.dtype}, {in_words(row.threads, 'thread')}", []).append(row)
    for title, group in groups.items():
        numbers = ("ms", "p20 - p80", "speed-up", "GB/s", "of copy", "error")
        table = Table(title, ("operator", "direction", "implementation", "layout"), numbers, ["against; remarks"])
        timed = (row for row in group if row.status == "timed")
        for case, alike in groupby(timed, attrgetter("operator", "direction")):
            for number, row in enumerate(alike):
                table.add_row(*(("", "") if number else case), *_cells(row))
            table.add_gap()
        print(table)
        _print_left_out(group)


def in_words(number: int, noun: str) -> str:
    """Number and noun, such as "1 thread" and "2 threads"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


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
        "-" if row.error is None else "0" if row.error == 0 else f"{row.error:.0e}",
        "; ".join(filter(None, [re.sub(r"^detpool \w+", "our", row.baseline), row.note])),
    ]


def _print_left_out(rows: Iterable[Row]) -> None:
    """Prints a line for each implementation and reason: wrong results, failures, and unsupported operators."""
    cases: dict[tuple[str, str], dict[str, None]] = {}
    for row in rows:
        if row.status != "timed":
            reason = row.note if row.status == "absent" else f"{row.status}: {row.note.partition(chr(10))[0]}"
            if row.status == "disagrees":
                reason += f" the tolerance of {row.tolerance:g}, by {row.error:.2g} at most"
            cases.setdefault((row.implementation, reason), {})[row.operator] = None
    for (name, reason), operators in cases.items():
        print(f"  not timed: {name}: {reason} ({', '.join(operators)})")


def print_scaling(found: Sequence[tuple[float, Row]]) -> None:
    """A table for each quantity that was varied, with its values as columns; who was not timed, and why, below."""
    names = ("operator", "direction", "implementation", "layout")
    for quantity in dict.fromkeys(row.workload for _, row in found):
        lines: dict[tuple[str, ...], dict[float, str]] = {}
        for value, row in found:
            if row.workload == quantity and row.status in ("timed", "disagrees"):
                line = lines.setdefault(tuple(getattr(row, name) for name in names), {})
                line[value] = "wrong" if row.median_ms is None else f"{row.median_ms:.2f}"
        columns = sorted({value for line in lines.values() for value in line})
        table = Table(f"ms by {quantity}", names, [f"{value:g}" for value in columns])
        for case, line in lines.items():
            table.add_row(*case, *(line.get(value, "-") for value in columns))
        print(table)
    _print_left_out([row for _, row in found])


def write_csv(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """One line a record, its keys the columns; floats with six digits."""
    write_csv_atomically(
        path, [{k: f"{v:.6g}" if isinstance(v, float) else v for k, v in record.items()} for record in records]
    )


@contextmanager
def recorded(path: Path, program: str, argv: Sequence[str] | None, options: argparse.Namespace) -> Iterator[None]:
    """Writes what is needed to judge the numbers that are measured within, and to get them again.

    Args:
        path: The JSON file, beside the results.
        program: The program's path, as users write it.
        argv: Its arguments; None for those of the process.
        options: What it made of them.
    """
    begin, load = time.perf_counter(), {"before": os.getloadavg()}
    yield
    load["after"] = os.getloadavg()
    record = {
        "settings": {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()},
        "seconds": round(time.perf_counter() - begin, 1),
        "load_average": load,
        **provenance(["python", program, *(sys.argv[1:] if argv is None else argv)], PACKAGES),
    }
    write_json_atomically(path, record)
