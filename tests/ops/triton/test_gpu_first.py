"""The first ten minutes on a GPU, interpreted on the CPU: no line of the program is new on the day, but a graph's."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import gpu_first
import pytest

ABSENT = ("hydra", "omegaconf", "lightning", "pycocotools", "pandas", "rich", "scipy", "jinja2")


@pytest.mark.parametrize(("program", "absent"), [("gpu_first", (*ABSENT, "matplotlib")), ("bench_ops", ABSENT)])
def test_they_need_nothing_that_a_bare_machine_lacks(program: str, absent: tuple[str, ...]) -> None:
    """Such a machine has PyTorch, torchvision, Triton, numba and NumPy, and for the benchmark's plots matplotlib."""
    code = f"import sys; sys.modules.update(dict.fromkeys({absent})); import {program}"
    subprocess.run([sys.executable, "-c", code], cwd=Path(gpu_first.__file__).parent, check=True, timeout=600)


def test_every_table_is_written(tmp_path) -> None:
    assert gpu_first.main(["--tiny", "--output", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "session.json").read_text())["versions"]["torch"]
    tables = {path.stem: list(csv.DictReader(path.open())) for path in tmp_path.glob("*.csv")}
    assert set(tables) == {"operators", "rois", "deterministic", "blocks", "bandwidth"}
    cases = {tuple(row[c] for c in ("workload", "layout", "dtype", "direction")) for row in tables["operators"]}
    assert len(cases) == 4 * 2 * 2 * 2
    for table, rows in tables.items():
        for row in rows:
            assert float(row["idle_ms"]) > 0, row
            assert float(row["replay_ms"]) > 0, row
            if row["implementation"] == "detpool" and table != "blocks":
                assert float(row["error"]) <= gpu_first.TOLERANCES[row["dtype"]]


def test_what_there_is_no_time_for_is_named(tmp_path, capsys) -> None:
    assert gpu_first.main(["--tiny", "--minutes", "1e-9", "--output", str(tmp_path)]) == 0
    assert "no time for operators: c4 roi_align contiguous float32 forward torchvision" in capsys.readouterr().out
    assert not list(tmp_path.glob("*.csv"))


def test_a_wrong_result_is_a_problem_and_keeps_its_times(tmp_path) -> None:
    session = gpu_first.Session(tmp_path, "cpu", tiny=True, end=float("inf"))
    for error in (1e-6, 1e-2, float("inf")):
        session.add("rois", {"workload": "c4", "dtype": "float32"}, lambda e=error: {"idle_ms": 2.0, "error": e})
    assert [row["idle_ms"] for row in csv.DictReader((tmp_path / "rois.csv").open())] == ["2", "2", "2"]
    first, second = session.problems
    assert "differs from torchvision by 0.01, tolerance 0.0001" in first
    assert "inf" in second
