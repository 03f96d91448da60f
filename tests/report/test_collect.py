"""What is found below a folder, and what is said of the rest."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path

import pytest

from detpool.evaluation.errors import ERRORS
from detpool.report.collect import collect
from detpool.study.layout import write_plan, write_status

ROOT = Path(__file__).parents[2]
ODD_COUNTS = {"objects": "200", "correct": 1, **dict.fromkeys(ERRORS, 1)}


def messages(*paths):
    return [str(problem) for problem in collect(paths).problems]


def test_run_is_read_whole(make_run):
    folder = make_run("logs/demo/runs/2026-01-31", 0.5, seed=3, pooler="roi_pool")
    found = collect([folder.parents[2]])
    assert found.problems == []
    (run,) = found.runs
    assert (run.folder, run.seed, run.split) == (folder, 3, "test")
    numbers = run.numbers()
    assert math.isnan(numbers["APl"])
    expected = {"AP": 0.5, "errors/missed": 50, "step_seconds": 0.25, "peak_memory_bytes": 3 << 20, "seconds": 120.0}
    expected |= {"command": "train.py pooler=roi_pool seed=3", "revision": "a" * 40, "dirty": False}
    assert expected.items() <= numbers.items()
    # One value per epoch, counted from 1, however many rows the logger wrote.
    assert run.curves["val/AP"].to_dict() == pytest.approx({1: 0.5 / 3, 2: 1 / 3, 3: 0.5})
    assert run.curves["train/loss"].to_dict() == pytest.approx({1: 1, 2: math.exp(-1), 3: math.exp(-2)})
    assert set(run.curves) == {"train/loss", "val/AP"}


def test_natural_order_and_no_run_twice(make_run, tmp_path):
    for name in ("10", "9", "1"):
        make_run(f"sweep/{name}")
    found = collect([tmp_path / "sweep", tmp_path, tmp_path / "sweep" / "9"])
    assert [run.folder.name for run in found.runs] == ["1", "9", "10"]
    assert found.problems == []


def test_incomplete_runs_say_how_far_they_came(make_run, tmp_path):
    make_run("stopped", finished=False)
    make_run("at_once", finished=False, curves=False)
    (tmp_path / "broken_config" / ".hydra").mkdir(parents=True)
    (tmp_path / "broken_config" / ".hydra" / "config.yaml").write_text("seed: 0\n")
    assert collect([tmp_path]).runs == []
    assert messages(tmp_path) == [
        f"{tmp_path / 'at_once'}: incomplete: 0 of 3 epochs trained, no metrics.json",
        f"{tmp_path / 'broken_config'}: incomplete: ended before training, without config.yaml",
        f"{tmp_path / 'stopped'}: incomplete: 3 of 3 epochs trained, no metrics.json",
    ]


def test_broken_files_are_named(make_run, tmp_path):
    good = make_run("good")
    cases = [
        ("metrics.json", '{"metrics": {"AP": 0.5', "is not valid JSON (a run that was cut off?)"),
        ("metrics.json", '{"metrics": {}}', "holds no metric"),
        ("metrics.json", '{"metrics": {"AP": 0.5}, "seconds": "long"}', "seconds must be a number, got 'long'"),
        ("metrics.json", '{"metrics": {"AP": 0.5}, "errors": [1]}', "errors must be an object, got [1]"),
        ("metrics.json", '{"metrics": {"AP": 0.5}, "errors": {"correct": 3}}', "errors lacks objects, missed"),
        ("metrics.json", f'{{"metrics": {{"AP": 0.5}}, "errors": {json.dumps(ODD_COUNTS)}}}', "got objects='200'"),
        ("metrics.json", '{"metrics": {"AP": 0.5}, "git": {"revision": 5}}', "revision must be text, got 5"),
        ("metrics.json", '{"metrics": {"AP": 0.5}, "hardware": {"gpus": 3}}', "gpus must be a list, got 3"),
        ("config.yaml", "seed: [", "config.yaml"),
        ("config.yaml", "- 1\n", "config.yaml is not the config of a run"),
        ("config.yaml", "seed: 1\ndata: {}\n", "it has no evaluation"),
        ("config.yaml", "seed: 1\ndata: {}\nevaluation: {}\n", "it has no evaluation.split"),
        ("config.yaml", "seed: 1\ndata: 3\nevaluation: test\n", "data must be an object, got 3"),
        ("config.yaml", "seed: x\ndata: {}\nevaluation: {split: test}\n", "seed must be a whole number, got 'x'"),
        ("csv/metrics.csv", "epoch,val/AP\nx,0.5\n", "csv/metrics.csv"),
        ("csv/metrics.csv", "step,val/AP\n1,0.5\n", "csv/metrics.csv"),
    ]
    expected = {}
    for number, (file, content, message) in enumerate(cases):
        folder = make_run(f"broken/{number}")
        (folder / file).write_text(content)
        expected[folder] = message
    found = collect([tmp_path])
    assert [run.folder for run in found.runs] == [good]
    assert [problem.path for problem in found.problems] == list(expected)
    for problem in found.problems:
        assert problem.message.startswith("unreadable: ")
        assert expected[problem.path] in problem.message


def test_metrics_without_config(make_run, tmp_path):
    folder = make_run("a")
    (folder / "config.yaml").unlink()
    assert messages(tmp_path) == [f"{folder}: metrics.json without config.yaml: its settings are unknown"]


def test_folders_without_runs(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    assert messages(tmp_path / "empty", tmp_path / "nowhere", tmp_path / "notes.txt") == [
        f"{tmp_path / 'empty'}: holds no run (a folder with config.yaml) and no benchmark",
        f"{tmp_path / 'nowhere'}: does not exist",
        f"{tmp_path / 'notes.txt'}: is neither a folder nor the JSON file of a benchmark",
    ]


def test_interrupted_sweep_counts_what_was_never_started(make_run, tmp_path):
    names = [f"seed={seed}-{seed:08x}" for seed in range(6)]
    for seed, name in enumerate(names):
        make_run(name, seed=seed)
    write_plan(tmp_path, names)
    assert messages(tmp_path) == []
    for name in names[4:]:
        shutil.rmtree(tmp_path / name)
    make_run("of_an_earlier_config", seed=4)
    assert messages(tmp_path) == [f"{tmp_path}: interrupted sweep: 2 of 6 runs were never started"]
    broken = {"{": "is not valid JSON", "[]": "is not an object", '{"runs": 3}': "has no list of names 'runs'"}
    for text, message in broken.items():
        (tmp_path / "sweep.json").write_text(text)
        assert messages(tmp_path)[0].startswith(f"{tmp_path}: unreadable: sweep.json {message}")


def test_failed_runs_are_named_with_their_error(make_run, tmp_path):
    write_status(make_run("a", finished=False), "diverged", "the loss is nan at epoch 0")
    write_status(make_run("b", finished=False), "interrupted")
    write_status(tmp_path / "c", "failed", "no such file")
    (make_run("d", finished=False) / "status.json").write_text('{"status": "tired"}')
    assert collect([tmp_path]).runs == []
    assert messages(tmp_path) == [
        f"{tmp_path / 'a'}: diverged: the loss is nan at epoch 0",
        f"{tmp_path / 'b'}: interrupted: 3 of 3 epochs trained, no metrics.json",
        f"{tmp_path / 'c'}: failed: no such file",
        f"{tmp_path / 'd'}: unreadable: status.json: status must be one of diverged, failed, interrupted, got 'tired'",
    ]


def test_curves_of_a_resumed_run_are_whole_and_its_seconds_unknown(make_run, tmp_path):
    folder = make_run("a", 0.6, **{"ckpt_path": "a/checkpoints/last.ckpt"})
    text = (folder / "csv" / "metrics.csv").read_text().splitlines()
    for number, epochs in ((1, "0"), (2, "01")):  # epoch 1 was begun, cut off and resumed
        (folder / f"csv_before_{number}").mkdir()
        rows = [row for row in text if row[0] in epochs]
        (folder / f"csv_before_{number}" / "metrics.csv").write_text("\n".join([text[0], *rows]) + "\n")
    (folder / "csv" / "metrics.csv").write_text("\n".join([text[0], *(row for row in text if row[0] == "2")]) + "\n")
    (run,) = collect([tmp_path]).runs
    assert run.curves["val/AP"].to_dict() == pytest.approx({1: 0.2, 2: 0.4, 3: 0.6})
    assert run.numbers()["seconds"] is None


def test_benchmarks_of_the_operators():
    found = collect([ROOT / "results" / "ops_cpu"])
    assert found.problems == []
    assert [benchmark.path.name for benchmark in found.benchmarks] == ["bench.json", "scaling.json"]
    bench = found.benchmarks[0]
    assert [path.name for path in bench.pictures] == ["bench.png"]
    assert bench.record["command"].startswith("python tools/bench_ops.py")
    with (ROOT / "results" / "ops_cpu" / "bench.csv").open(newline="") as file:  # notes may have several lines
        assert len(bench.rows) == len(list(csv.reader(file))) - 1
    assert [benchmark.path for benchmark in collect([bench.path]).benchmarks] == [bench.path]
    assert collect([ROOT / "results" / "detectors_cpu"]).benchmarks == []  # seconds per image, no median_ms


def test_broken_benchmarks_are_named(tmp_path):
    whole = "operator,median_ms\nroi_align,1\n"
    for record, table, message in [
        ("{", whole, "Expecting property name"),
        ("{}", whole, "it is not the record of a benchmark: it has no 'command'"),
        ('{"command": "x"}', "operator,median_ms\nroi_align\n", "line 2 of bench.csv does not have the 2 columns"),
        ('{"command": "x", "git": "abc"}', whole, "bench.json: git must be an object, got 'abc'"),
    ]:
        (tmp_path / "bench.json").write_text(record)
        (tmp_path / "bench.csv").write_text(table)
        (found,) = messages(tmp_path)
        assert found.startswith(f"{tmp_path / 'bench.json'}: unreadable: {message}")
