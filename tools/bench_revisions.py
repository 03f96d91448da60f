#!/usr/bin/env python
"""Compares the speed of the operators with that at another revision.

    python tools/bench_revisions.py HEAD~1                                   # all of tools/bench_ops.py, both revisions
    python tools/bench_revisions.py main --turns 5 --workloads c4 --operators roi_align roi_pool

The revision's operators, and the packages built on them, are copied to a temporary folder together with the other
packages of this checkout. This checkout's `tools/bench_ops.py` measures both in turns, in separate processes; options
that are not those of this program are passed to it. Each turn gives a ratio of two medians measured within the same
minutes. The median and the range of these ratios are printed. Other programs on the machine widen the range; if the
range contains 1, no difference has been shown.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from bench.output import Table
from command_line import Parser, positive_int

from detpool.errors import ConfigError, exit_with_message

ROOT = Path(__file__).resolve().parents[1]
KEY = ["workload", "operator", "direction", "dtype", "threads", "implementation", "layout"]


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
                # The order alternates, so that a machine that slows down favors neither.
                order = [before, ROOT] if turn % 2 == 0 else [ROOT, before]
                times = {tree: _measure(tree, Path(folder) / f"{turn}", passed_on) for tree in order}
                turns.append((times[before], times[ROOT]))
    _print(turns, options.revision)


def _extract(revision: str, folder: Path) -> Path:
    """Copies this checkout's package to `folder`, with the revision's operators and the packages built on them.

    Raises:
        ConfigError: If the revision does not exist.
    """
    # Not a worktree, which would stay registered with git if this program is killed.
    done = subprocess.run(["git", "-C", str(ROOT), "archive", "--format=tar", revision], capture_output=True)
    if done.returncode:
        raise ConfigError(f"cannot read revision {revision!r}: {done.stderr.decode().strip()}")
    measured = ("ops", "poolers", "visualization")
    shutil.copytree(ROOT / "detpool", folder / "detpool", ignore=shutil.ignore_patterns(*measured, "__pycache__"))
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        members = [m for m in archive if m.name.startswith(tuple(f"detpool/{name}/" for name in measured))]
        archive.extractall(folder, members, filter="data")
    return folder


def _measure(tree: Path, output: Path, options: Sequence[str]) -> pd.Series:
    """Runs this checkout's benchmark with the package `detpool` in `tree`; returns median milliseconds by case.

    Raises:
        ConfigError: If the benchmark fails.
    """
    command = [sys.executable, str(ROOT / "tools/bench_ops.py"), "--peers", *options, "--output", str(output)]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
        said = "\n".join(filter(None, (done.stdout.strip()[-2000:], done.stderr.strip())))
        raise ConfigError(f"the benchmark of {tree} ended with {how}:\n{said}")
    rows = pd.read_csv(output / "bench.csv", dtype=dict.fromkeys(KEY, str))
    return rows[rows["status"] == "timed"].set_index(KEY)["median_ms"]


def ratios(turns: Sequence[tuple[pd.Series, pd.Series]]) -> pd.DataFrame:
    """Median, minimum and maximum over turns of the ratio of new to old time, for each case of both revisions."""
    return pd.concat([now / before for before, now in turns], axis=1).dropna().agg(["median", "min", "max"], axis=1)


def _print(turns: Sequence[tuple[pd.Series, pd.Series]], revision: str) -> None:
    table = Table("", KEY, (f"ms at {revision}", "ms now", "now / before", "range"), ["in all turns"])
    before, now = (pd.concat(times, axis=1).median(axis=1) for times in zip(*turns, strict=True))
    compared = ratios(turns)
    for case, ratio, low, high in compared.itertuples(name=None):
        verdict = "" if low <= 1 <= high else "faster" if high < 1 else "slower"
        numbers = f"{before[case]:.2f}", f"{now[case]:.2f}", f"{ratio:.2f}", f"{low:.2f} - {high:.2f}"
        table.add_row(*case, *numbers, verdict)
    print(table)
    if lacking := {case[1] for case in before.index.union(now.index).difference(compared.index)}:
        print(f"not in both revisions: {', '.join(sorted(lacking))}")


if __name__ == "__main__":
    main()
