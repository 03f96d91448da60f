"""What a sweep prints at its end."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from detpool.config import Configs
from detpool.files import write_json_atomically
from detpool.study.layout import write_status
from detpool.study.plan import Sweep
from detpool.study.summary import summarize

CONFIGS = Configs(Path(__file__).parents[2] / "configs", "train")


def sweep(folder, names, *overrides, jobs=()):
    return Sweep(folder, CONFIGS.compose(list(overrides)), names, list(jobs), is_study=not jobs and names is not None)


def finish(run_dir, command="train.py", **metrics):
    write_json_atomically(run_dir / "metrics.json", {"metrics": metrics, "command": command})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """That of a sweep, in which one run is finished; the terminal is as wide as the table."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    finish(Path("a sweep/finished"), AP=0.1234, AP50=None)
    return Path("a sweep")


def words(text):
    return [" ".join(line.split()) for line in text.splitlines()]


def test_a_sweep_is_complete_only_if_all_its_runs_are_finished(folder, capsys):
    names = ["finished", "failed", "interrupted", "of another process", "damaged"]
    write_status(folder / "failed", "failed", "no such file")
    write_status(folder / "interrupted", "interrupted")
    (folder / "damaged").mkdir()
    for name in ("metrics.json", "status.json"):
        (folder / "damaged" / name).touch()
    assert not summarize(sweep(folder, names))
    said = capsys.readouterr()
    assert said.err == f"{folder}/failed: failed: no such file\n"
    lines = words(said.out)
    assert "test split" in lines
    assert "run AP, % AP50, %" in lines
    assert "finished 12.3 -" in lines
    assert "failed - - failed" in lines
    assert "interrupted - - interrupted" in lines
    assert "of another process - - not finished" in lines
    assert lines[-2] == f"{folder}: 1 of 5 runs finished, 1 failed, 3 not finished"
    assert lines[-1] == "a report: python tools/report.py 'a sweep'"
    for name in names[2:]:
        assert not summarize(sweep(folder, ["finished", name]))
    assert summarize(sweep(folder, ["finished"]))
    # A sweeper chose them: only what they left is known.
    assert not summarize(sweep(folder, None))


def test_the_metric_that_is_monitored_comes_first(folder, capsys):
    finish(folder / "b", mask_AP=0.5, AP=0.25, AP50=0.75)
    assert summarize(sweep(folder, ["b"], "evaluation.monitor=mask_AP", "evaluation.split=val"))
    lines = words(capsys.readouterr().out)
    assert "val split" in lines
    assert "run mask_AP, % AP, % AP50, %" in lines
    assert "b 50.0 25.0 75.0" in lines


def test_without_a_finished_run_there_is_nothing_to_report(folder, capsys):
    assert not summarize(sweep(folder, ["other"]))
    assert capsys.readouterr().out == f"{folder}: 0 of 1 runs finished, 0 failed, 1 not finished\n"


def test_of_many_runs_the_table_shows_the_first(folder, capsys):
    names = [f"seed={seed}" for seed in range(50)]
    for name in names:
        finish(folder / name, AP=0.5)
    assert summarize(sweep(folder, names))
    lines = words(capsys.readouterr().out)
    assert sum(line.startswith("seed=") for line in lines) == 40
    assert "and 10 more" in lines


def test_what_optuna_found_is_told(folder, capsys):
    for number in (2, 10):
        finish(folder / str(number), f"train.py task=x optim.optimizer.lr={number}", AP=0.01 * number)
    write_status(folder / "1", "diverged")
    shutil.rmtree(folder / "finished")
    (folder / "optimization_results.yaml").write_text(
        "name: optuna\nbest_params:\n  optim.optimizer.lr: 0.01\n  pooler: roi_pool\nbest_value: 0.25\n"
    )
    assert not summarize(sweep(folder, None))
    lines = words(capsys.readouterr().out)
    assert "the best of val/AP, 0.2500: optim.optimizer.lr=0.01 pooler=roi_pool" in lines
    assert "1 - - diverged" in lines
    runs = [line for line in lines if "lr=" in line and "best" not in line]
    assert runs == ["2 optim.optimizer.lr=2 2.0 -", "10 optim.optimizer.lr=10 10.0 -"]


def test_runs_with_numbers_are_told_apart(folder, capsys):
    """Those of a sweep without a study: by what is not the same in all of their command lines."""
    for number in "01":
        finish(folder / number, AP=0.5)
    jobs = [["task=x", "pooler=roi_pool", "seed=0"], ["task=x", "pooler=roi_align", "seed=0"]]
    assert summarize(sweep(folder, ["0", "1"], jobs=jobs))
    lines = words(capsys.readouterr().out)
    assert "0 pooler=roi_pool 50.0 -" in lines
    assert "1 pooler=roi_align 50.0 -" in lines
