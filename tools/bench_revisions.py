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


def _measure(tree: Path, output: Path, options: Sequence[str]) -> pd.Series:
    """Median milliseconds of all of ours that this checkout's benchmark measures with the `detpool` of `tree`.

    Raises:
        ConfigError: the benchmark cannot be run with it.
    """
    command = [sys.executable, str(ROOT / "tools/bench_ops.py"), "--peers", *options, "--output", str(output)]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise ConfigError(f"the benchmark of {tree} failed: {(done.stderr or done.stdout).strip()}")
    rows = pd.read_csv(output / "bench.csv", dtype=dict.fromkeys(KEY, str))
    return rows[rows["status"] == "timed"].set_index(KEY)["median_ms"]


def ratios(turns: Sequence[tuple[pd.Series, pd.Series]]) -> pd.DataFrame:
    """For each case that both revisions have: median, least and greatest ratio of the times now to those before."""
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
