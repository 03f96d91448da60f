#!/usr/bin/env python
"""Are the operators faster or slower than at another revision?

    python tools/bench_revisions.py HEAD~1                                   # all of tools/bench_ops.py, both revisions
    python tools/bench_revisions.py main --turns 5 --workloads c4 --operators roi_align roi_pool

The revision's operators, and what is built on them, go to a temporary folder, beside this checkout's other packages;
this checkout's `tools/bench_ops.py` measures the two in turns, in processes of their own, with the options that are not
of this program. Each turn gives a ratio of two medians measured within the same minutes; printed are the median of the
turns' ratios, and their range. What other programs do to the machine shows as a wide range: a ratio whose range holds 1
says nothing.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.output import console, table_of
from command_line import Parser, positive_int

from detpool.errors import ConfigError, exit_with_message

ROOT = Path(__file__).resolve().parents[1]
KEY = ("workload", "operator", "direction", "dtype", "threads", "implementation", "layout")
Case = tuple[str, ...]
Times = dict[Case, float]


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("revision", help="to compare this checkout with: a commit, tag or branch")
    parser.add_argument("--turns", type=positive_int, default=3, metavar="N", help="of both revisions; default: 3")
    options, passed_on = parser.parse_known_args(argv)
    with exit_with_message():
        if "--output" in passed_on or "--scaling" in passed_on:
            raise ConfigError("--output and --scaling are not for comparing revisions")
        with tempfile.TemporaryDirectory() as folder:
            before = _extract(options.revision, Path(folder) / "before")
            turns = []
            for turn in range(options.turns):
                # Whoever comes first, comes second in the next turn: a machine that slows down favours neither.
                order = [before, ROOT] if turn % 2 == 0 else [ROOT, before]
                times = {tree: _measure(tree, Path(folder) / f"{turn}", passed_on) for tree in order}
                turns.append((times[before], times[ROOT]))
    _print(turns, options.revision)


def _extract(revision: str, folder: Path) -> Path:
    """Writes this checkout's package into `folder`, its operators and what is built on them replaced.

    Raises:
        ConfigError: there is no such revision.
    """
    # Not a worktree: git would remember it if this program is killed.
    done = subprocess.run(["git", "-C", str(ROOT), "archive", "--format=tar", revision], capture_output=True)
    if done.returncode:
        raise ConfigError(f"cannot read revision {revision!r}: {done.stderr.decode().strip()}")
    measured = ("ops", "poolers", "visualization")
    shutil.copytree(ROOT / "detpool", folder / "detpool", ignore=shutil.ignore_patterns(*measured, "__pycache__"))
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        members = [m for m in archive if m.name.startswith(tuple(f"detpool/{name}/" for name in measured))]
        archive.extractall(folder, members, filter="data")
    return folder


def _measure(tree: Path, output: Path, options: Sequence[str]) -> Times:
    """Median milliseconds of everything of ours that this checkout's benchmark measures with the `detpool` of `tree`.

    Raises:
        ConfigError: the benchmark cannot be run with it.
    """
    command = [sys.executable, str(ROOT / "tools/bench_ops.py"), "--peers", *options, "--output", str(output)]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise ConfigError(f"the benchmark of {tree} failed: {(done.stderr or done.stdout).strip()}")
    with (output / "bench.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["status"] == "timed"]
    return {tuple(row[name] for name in KEY): float(row["median_ms"]) for row in rows}


def ratios(turns: Sequence[tuple[Times, Times]]) -> dict[Case, tuple[float, float, float]]:
    """For each case that both revisions have: median, least and greatest ratio of the times now to those before."""
    found = {}
    for case in turns[0][1]:
        if all(case in before and case in now for before, now in turns):
            values = [now[case] / before[case] for before, now in turns]
            found[case] = (statistics.median(values), min(values), max(values))
    return found


def _print(turns: Sequence[tuple[Times, Times]], revision: str) -> None:
    out = console()
    table = table_of("", KEY, (f"ms at {revision}", "ms now", "now / before", "range"))
    compared = ratios(turns)
    for case, (ratio, low, high) in compared.items():
        before, now = (statistics.median(turn[side][case] for turn in turns) for side in (0, 1))
        style = "" if low <= 1 <= high else "green" if high < 1 else "red"
        table.add_row(*case, f"{before:.2f}", f"{now:.2f}", f"{ratio:.2f}", f"{low:.2f} - {high:.2f}", style=style)
    out.print(table)
    if lacking := {case[1] for turn in turns for side in turn for case in side} - {case[1] for case in compared}:
        out.print(f"not in both revisions: {', '.join(sorted(lacking))}")


if __name__ == "__main__":
    main()
