import csv

import bench_step
import pytest


def test_both_poolers_make_the_same_step() -> None:
    """The comparison is fair: the same proposals, and so the same gradients."""
    model, calls = bench_step.build("small")
    norms = []
    for step in calls["training step"].values():
        step()
        norms.append([parameter.grad.norm().item() for parameter in model.parameters()])
    assert len(norms) == 2
    assert norms[0] == pytest.approx(norms[1], rel=1e-3, abs=1e-4)


def test_it_writes_a_table(tmp_path, capsys) -> None:
    assert bench_step.main(["--backbones", "small", "--rounds", "1", "--output", str(tmp_path)]) == 0
    assert "training step" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "step.csv").open()))
    assert {row["pooler"] for row in rows} == {"detpool", "torchvision"}
    assert all(float(row["median_ms"]) > 0 for row in rows)
