import os
import subprocess
import sys
from pathlib import Path

import bench_revisions
import pandas as pd
import pytest

from detpool.errors import ConfigError

ROOT = Path(__file__).parents[2]
CASE = ("c4", "roi_align", "forward", "float32", "1", "detpool cpu", "contiguous")


def times(milliseconds: float | None) -> pd.Series:
    index = pd.MultiIndex.from_tuples([] if milliseconds is None else [CASE], names=bench_revisions.KEY)
    return pd.Series([] if milliseconds is None else [milliseconds], index, dtype=float)


def test_ratio_is_the_median_of_those_of_the_turns_not_that_of_medians() -> None:
    # The machine was twice as slow in the second turn; in each turn the operator took half the time of before.
    turns = [(times(4), times(2)), (times(8), times(4)), (times(4), times(1))]
    assert bench_revisions.ratios(turns).loc[CASE].tolist() == [0.5, 0.25, 0.5]
    assert bench_revisions.ratios([(times(None), times(2))]).empty


@pytest.mark.slow
def test_two_revisions_are_measured() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout, for the other revision")
    options = "HEAD --turns 1 --quick --threads 1 --rounds 2 --workloads c4 --operators roi_align --directions forward"
    script = str(ROOT / "tools" / "bench_revisions.py")
    wide = {**os.environ, "COLUMNS": "170"}
    done = subprocess.run([sys.executable, script, *options.split()], capture_output=True, text=True, env=wide)
    assert done.returncode == 0, done.stderr
    (header,) = [line for line in done.stdout.splitlines() if "now / before" in line]
    assert "ms at HEAD" in header
    lines = [line.split() for line in done.stdout.splitlines() if "roi_align" in line]
    assert {line[line.index("cpu") + 1] for line in lines} == {"contiguous", "channels_last"}, done.stdout


def test_a_benchmark_that_fails_is_a_message_with_all_that_it_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)ended with status 2:.*no-such-workload"):
        bench_revisions._measure(ROOT, tmp_path, ["--workloads", "no-such-workload"])


def test_unknown_revision_is_a_message() -> None:
    script = str(ROOT / "tools" / "bench_revisions.py")
    done = subprocess.run([sys.executable, script, "no-such-revision"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "cannot read revision 'no-such-revision'" in done.stderr
    assert "Traceback" not in done.stderr
