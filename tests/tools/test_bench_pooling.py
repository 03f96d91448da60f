"""The benchmark of pooling layers runs, leaves what reports read, and compares like with like."""

import csv

import bench_pooling
import pytest
import torch
from torch import nn

from detpool import layers
from detpool.report.collect import collect


def test_a_small_run_writes_a_benchmark(tmp_path, capsys) -> None:
    arguments = ["--layers", "SoftmaxPool2d", "GatedPool2d", "MaxTokenPool masked", "--images", "1", "--rounds", "1"]
    assert bench_pooling.main([*arguments, "--layouts", "channels_last", "--output", str(tmp_path)]) == 0
    rows = list(csv.DictReader((tmp_path / "pooling.csv").open()))
    assert [row["layer"] for row in rows[::2]] == ["SoftmaxPool2d", "GatedPool2d", "MaxTokenPool masked"]
    for row in rows:
        ratio = float(row["median_ms"]) / float(row["max_pool_ms"])
        assert ratio == pytest.approx(float(row["ratio"]), rel=1e-2)
        assert float(row["memory_mb"]) > 0
    assert [int(row["parameters"]) for row in rows[::2]] == [0, 64 * 9, 0]
    assert "slower than 4x" in capsys.readouterr().out
    found = collect([tmp_path])
    assert len(found.benchmarks) == 1
    assert not found.problems


def test_every_layer_is_measured() -> None:
    classes = {name for name in layers.__all__ if isinstance(getattr(layers, name), type)}
    # what the others are measured against
    classes -= {"MaxPool2d", "AdaptiveMaxPool2d"}
    assert {name.split()[0] for name in bench_pooling.CASES} == classes


def test_layer_and_maximum_have_as_many_windows() -> None:
    for name, case in bench_pooling.CASES.items():
        x = torch.randn((2, *bench_pooling.ROIS[1:]) if case.tokens else (2, 4, 14, 21))
        windows, maxima = case.build(x.shape[1])(x), case.maximum(x)
        if name == "MaxBlurPool2d":  # of whose maxima every fourth is left
            maxima = maxima[:, :, ::2, ::2]
        if name in ("LPPool2d", "FractionalMaxPool2d", "FractionalRegionPool2d"):
            assert abs(maxima.shape[2] - windows.shape[2]) <= 1
        else:
            assert windows.numel() == maxima.numel(), name


def test_memory_is_what_a_call_allocates() -> None:
    def call() -> torch.Tensor:
        first = torch.ones(1_000_000)  # 4 MB
        second = first + 1
        del first
        return nn.functional.relu(second)

    assert bench_pooling.peak_bytes(call) == pytest.approx(8e6, rel=1e-4)  # and a scalar


def test_arguments_are_checked(capsys) -> None:
    for arguments in (["--layers", "MaxPool"], ["--rounds", "0"]):
        with pytest.raises(SystemExit):
            bench_pooling.main(arguments)
        assert arguments[0] in capsys.readouterr().err
