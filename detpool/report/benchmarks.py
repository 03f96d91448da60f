"""A benchmark's part of a report."""

from __future__ import annotations

from collections import Counter

from detpool.report.collect import Benchmark
from detpool.report.plots import Picture
from detpool.report.tables import Table, machine, revision

_UNTOLD = ("status", "note", "error", "tolerance", "rounds", "gigabytes", "gb_per_s", "copy_gb_per_s")
"""Columns that only the benchmark's own CSV file tells."""
_TOLD_IF_VARIED = ("dtype", "threads")


def benchmark_notes(benchmark: Benchmark) -> list[str]:
    """Which rows have no time."""
    untimed = [row for row in benchmark.rows if not _is_timed(row)]
    if not untimed:
        return []
    counts = Counter((row.get("implementation", ""), row["status"]) for row in untimed)
    listed = "; ".join(f"{name}: {count} {status}" for (name, status), count in counts.items())
    return [f"{len(untimed)} rows were not timed ({listed}); the benchmark's own CSV file says why."]


def benchmark_blocks(benchmark: Benchmark, name: str) -> list[Table | Picture]:
    """How it was measured, its own pictures, and its times; `name` begins the names of the pictures."""
    record = benchmark.record
    git = record.get("git") or {}
    facts = [
        ["command", str(record["command"])],
        ["revision", revision(git.get("revision"), bool(git.get("dirty")))],
        ["machine", machine(record.get("hardware") or {})],
        ["versions", ", ".join(f"{k} {v}" for k, v in (record.get("versions") or {}).items() if v)],
    ]
    return [
        Table("How it was measured", ["", ""], facts, words=2, listing=True),
        *(Picture(f"{name}{path.stem}", path.name, {"png": path.read_bytes()}) for path in benchmark.pictures),
        _times(benchmark),
    ]


def _times(benchmark: Benchmark) -> Table:
    """What was timed: words first, then numbers."""
    timed = [row for row in benchmark.rows if _is_timed(row)]
    told = [name for name in benchmark.columns if name not in _UNTOLD and any(row[name] for row in timed)]
    told = [name for name in told if name not in _TOLD_IF_VARIED or len({row[name] for row in timed}) > 1]
    numbers = [name for name in told if all(_is_number(row[name]) for row in timed if row[name])]
    header = [*(name for name in told if name not in numbers), *numbers]
    rows = [[row[name] for name in header] for row in timed]
    return Table("Times", header, rows, words=len(header) - len(numbers), listing=True)


def _is_timed(row: dict[str, str]) -> bool:
    return row.get("status", "timed") == "timed"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
