import contextlib
import csv
import json

import bench_scale
import pytest
from pycocotools import mask as rle
from scale.pasting import encode_masks, encode_pasted_masks


@pytest.mark.slow
def test_a_hundredth_of_coco(tmp_path, monkeypatch):
    # Both libraries are measured on the same detections, and say the same of them.
    said = {}
    (tmp_path / "data").mkdir()
    kept = contextlib.nullcontext(str(tmp_path / "data"))
    monkeypatch.setattr(bench_scale.tempfile, "TemporaryDirectory", lambda: kept)
    options = ["--fraction", "0.01", "--objects365", "0.001", "--workers", "fork", "--output", str(tmp_path)]
    assert bench_scale.main(options) == 0
    for name in ("faster_coco_eval", "pycocotools"):
        said[name] = json.loads((tmp_path / "data" / f"metrics_{name}.json").read_text())
    (fast, fast_errors), (slow, slow_errors) = said.values()
    assert fast == pytest.approx(slow, abs=1e-12, nan_ok=True)
    assert fast_errors == slow_errors
    assert 0.05 < fast["mask_AP"] < fast["AP50"] < 1
    rows = list(csv.DictReader((tmp_path / "scale.csv").open()))
    kinds = ["making the files", *["start with masks"] * 2, "worker", *["samples"] * 4]
    kinds += ["matching anchors", "mask targets", *["predicted masks"] * 2, *["evaluation"] * 2]
    kinds += ["making the file of Objects365", *["start with Objects365"] * 2, *["study of 4 runs"] * 2]
    timed = len(kinds)
    kinds += [*["disk of a run"] * 3, *["padding"] * 4]
    assert [row["what"].split(",")[0] for row in rows] == kinds
    assert all(float(row["cpu_s"]) > 0 for row in rows[:timed])
    sizes = {row["what"]: float(row["disk_mib"]) for row in rows if row["what"].startswith("disk")}
    # 44 million parameters of four bytes, and not the momentum of each, which a checkpoint to train on has too.
    assert 44e6 * 4 / 2**20 < sizes["disk of a run, checkpoints"] < 1.1 * 44e6 * 4 / 2**20
    assert sizes["disk of a run, predictions"] > 0
    padded = [float(row["padding_percent"]) for row in rows[-4:]]
    # Of landscape and portrait images alike, 1066 x 800 in 1088 x 800 where they are not mixed.
    assert padded[1] == padded[3] == pytest.approx(100 - 100 * 1066 / 1088, abs=0.05)
    assert padded[0] < padded[2] == pytest.approx(100 - 100 * 1066 * 800 / 1088**2, abs=0.1)


def test_both_ways_give_the_same_masks():
    ((ours,), (theirs,)) = (convert(1)() for convert in (encode_masks, encode_pasted_masks))
    pairs = list(zip(ours.segmentations, theirs.segmentations, strict=True))
    both, either = (sum(rle.area(rle.merge(list(pair), intersect=how)) for pair in pairs) for how in (True, False))
    # What is sampled at the file's pixels, and what is resized to them, differs at edges alone. Moved by a pixel,
    # ours would be at 0.95 or less.
    assert both / either > 0.98
