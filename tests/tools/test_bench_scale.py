import contextlib
import csv
import json

import bench_scale
import pytest


def test_a_hundredth_of_coco(tmp_path, monkeypatch):
    # Both libraries are measured on the same detections, and say the same of them.
    said = {}
    (tmp_path / "data").mkdir()
    kept = contextlib.nullcontext(str(tmp_path / "data"))
    monkeypatch.setattr(bench_scale.tempfile, "TemporaryDirectory", lambda: kept)
    assert bench_scale.main(["--fraction", "0.01", "--workers", "fork", "--output", str(tmp_path)]) == 0
    for name in ("faster_coco_eval", "pycocotools"):
        said[name] = json.loads((tmp_path / "data" / f"metrics_{name}.json").read_text())
    (fast, fast_errors), (slow, slow_errors) = said.values()
    assert fast == pytest.approx(slow, abs=1e-12, nan_ok=True)
    assert fast_errors == slow_errors
    assert 0.05 < fast["mask_AP"] < fast["AP50"] < 1
    rows = list(csv.DictReader((tmp_path / "scale.csv").open()))
    kinds = ["making the files", *["start with masks"] * 2, "worker", *["samples"] * 4]
    kinds += ["matching anchors", "mask targets", *["evaluation"] * 2, *["padding"] * 4]
    assert [row["what"].split(",")[0] for row in rows] == kinds
    assert all(float(row["cpu_s"]) > 0 for row in rows[: len(kinds) - 4])
    padded = [float(row["padding_percent"]) for row in rows[-4:]]
    # Of landscape and portrait images alike, 1066 x 800 in 1088 x 800 where they are not mixed.
    assert padded[1] == padded[3] == pytest.approx(100 - 100 * 1066 / 1088, abs=0.05)
    assert padded[0] < padded[2] == pytest.approx(100 - 100 * 1066 * 800 / 1088**2, abs=0.1)
