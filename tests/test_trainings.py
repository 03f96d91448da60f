"""Trainings that must reach a number: minutes each, run by `make test-slow`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


def train(tmp_path, *arguments):
    command = [sys.executable, str(ROOT / "train.py"), f"hydra.run.dir={tmp_path / 'run'}", *arguments]
    subprocess.run(command, cwd=tmp_path, check=True)
    return json.loads((tmp_path / "run" / "metrics.json").read_text())["metrics"]


def test_demo(tmp_path):
    assert train(tmp_path, "experiment=demo")["AP50"] >= 0.80


def test_bccd(tmp_path, shared_dir):
    metrics = train(tmp_path, "experiment=bccd", f"data.root={shared_dir / 'data' / 'bccd'}")
    assert metrics["AP"] >= 0.57
    assert metrics["AP50"] >= 0.90


def test_coco_trains_one_epoch(tmp_path, shared_dir):
    """Every image and annotation of a real slice of COCO: crowds, sparse category ids, all sizes."""
    metrics = train(
        tmp_path,
        "data=coco",
        f"data.root={shared_dir / 'data' / 'coco_cc'}",
        "data.train_transform.min_size=256",
        "data.train_transform.max_size=384",
        "data.eval_transform.min_size=256",
        "data.eval_transform.max_size=384",
        "trainer.max_epochs=1",
    )
    assert len([name for name in metrics if name.startswith("AP/")]) == 80


@pytest.mark.parametrize(
    ("arguments", "least"),
    [
        ("experiment=shapes_faster_rcnn_c4", {"AP50": 0.80}),
        ("experiment=shapes_rfcn pooler.output_size=3", {"AP50": 0.80}),
        ("experiment=shapes_rfcn pooler.output_size=7", {"AP50": 0.80}),
        ("experiment=shapes_light_head_rcnn", {"AP50": 0.80}),
        ("experiment=shapes_iou_net", {"AP50": 0.80, "iou_pearson": 0.60}),
        ("experiment=shapes_mask_rcnn", {"mask_AP50": 0.75}),
    ],
)
def test_detectors_on_shapes(tmp_path, arguments, least):
    metrics = train(tmp_path, *arguments.split())
    assert all(metrics[name] >= value for name, value in least.items()), {name: metrics[name] for name in least}


def test_a_detector_of_other_classes_is_a_better_start(tmp_path):
    """Six classes, then two of them: one epoch from the weights of the first is ahead of one from scratch."""
    (tmp_path / "six").mkdir()
    train(tmp_path / "six", "experiment=demo", "trainer.max_epochs=2", "keep_checkpoints=best")
    two = ["experiment=demo", "data.classes=[ring,star]", "data.train_images=400", "trainer.max_epochs=1"]
    for seed in range(3):
        found = {}
        for name, weights in {"scratch": "null", "started": tmp_path / "six" / "run"}.items():
            folder = tmp_path / f"{name}{seed}"
            folder.mkdir()
            found[name] = train(folder, *two, f"seed={seed}", f"model.weights={weights}")["AP"]
        assert found["started"] > found["scratch"], (seed, found)


def test_nuclei(tmp_path, shared_dir):
    metrics = train(tmp_path, "experiment=nuclei", f"data.root={shared_dir / 'data' / 'nuclei'}")
    assert metrics["mask_AP"] >= 0.47
    assert metrics["mask_AP50"] >= 0.85
