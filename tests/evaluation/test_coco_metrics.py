"""COCO metrics against pycocotools' own summary, and on cases that can be counted by hand."""

from __future__ import annotations

import copy
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from pycocotools import mask as rle

from detpool.evaluation import CocoEvaluator

BACKENDS = ("pycocotools", "faster_coco_eval", "hotcoco")
SMALL = json.loads((Path(__file__).parent / "coco_small.json").read_text())


def one_class(objects: list[dict[str, Any]], images: int = 2) -> dict[str, Any]:
    """Ground truth of `images` images of 1000 x 1000 and a single class."""
    return {
        "images": [{"id": i, "height": 1000, "width": 1000} for i in range(images)],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [
            {"id": i, "category_id": 1, "area": o["bbox"][2] * o["bbox"][3], "iscrowd": 0, **o}
            for i, o in enumerate(objects)
        ],
    }


def row(bbox: list[float], score: float = 1.0, image_id: int = 0) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": 1, "bbox": bbox, "score": score}


def assert_equal(metrics: dict[str, float], expected: dict[str, float], tolerance: float = 1e-12) -> None:
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, abs=tolerance, nan_ok=True), name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_equals_the_summary_of_pycocotools(iou_type: str, backend: str, capfd: pytest.CaptureFixture[str]) -> None:
    ground_truth, detections = copy.deepcopy(SMALL["ground_truth"]), copy.deepcopy(SMALL["detections"])
    evaluator = CocoEvaluator(ground_truth, iou_type=iou_type, backend=backend)
    metrics = evaluator.evaluate(detections)
    assert_equal(evaluator.evaluate(detections), metrics)
    assert (ground_truth, detections) == (SMALL["ground_truth"], SMALL["detections"])  # neither is changed
    assert capfd.readouterr() == ("", "")
    for name, value in SMALL[iou_type].items():
        assert (value == -1) == (name == "AP/never seen") != (0 < value < 1)  # every metric is reached
        assert metrics[name] == pytest.approx(math.nan if value == -1 else value, abs=1e-12, nan_ok=True), name
    thresholds = [f"AP@{percent / 100:.2f}" for percent in range(50, 100, 5)]
    assert sum(metrics[name] for name in thresholds) / 10 == pytest.approx(SMALL[iou_type]["AP"])
    assert (metrics["AP@0.50"], metrics["AP@0.75"]) == (metrics["AP50"], metrics["AP75"])
    assert set(metrics) == set(SMALL[iou_type]) | set(thresholds)


@pytest.mark.parametrize("backend", BACKENDS)
def test_some_images_only(backend: str) -> None:
    chosen = {5, 42, 77, 6}
    part = {
        key: [item for item in items if key == "categories" or item["id" if key == "images" else "image_id"] in chosen]
        for key, items in SMALL["ground_truth"].items()
    }
    rows = [item for item in SMALL["detections"] if item["image_id"] in chosen]
    expected = CocoEvaluator(part, backend=backend).evaluate(rows)
    whole = CocoEvaluator(SMALL["ground_truth"], backend=backend)
    assert_equal(whole.evaluate(SMALL["detections"], chosen), expected)
    assert whole.evaluate(SMALL["detections"])["AP"] != pytest.approx(expected["AP"])


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_ground_truth_as_detections_is_perfect(iou_type: str, shared_dir: Path) -> None:
    path = shared_dir / "data" / "coco_cc" / "annotations" / "instances_val2017.json"
    ground_truth = json.loads(path.read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in ground_truth["images"]}
    assert any(annotation["iscrowd"] for annotation in ground_truth["annotations"])
    rows = []
    for annotation in ground_truth["annotations"]:
        detection = {key: annotation[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9}
        if iou_type == "segm":
            height, width = sizes[annotation["image_id"]]
            encoded = rle.frPyObjects(annotation["segmentation"], height, width)
            merged = rle.merge(encoded) if isinstance(encoded, list) else encoded
            detection["segmentation"] = {"size": [height, width], "counts": merged["counts"].decode()}
        rows.append(detection)
    results = [CocoEvaluator(ground_truth, iou_type=iou_type, backend=backend).evaluate(rows) for backend in BACKENDS]
    for others in results[1:]:
        assert_equal(others, results[0])
    for name in ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100"):
        assert results[0][name] == 1.0, name
    assert results[0]["AR1"] < 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_dense_images_need_more_detections(backend: str) -> None:
    boxes = [[(i % 12) * 80.0, (i // 12) * 80.0, 60.0, 60.0] for i in range(120)]
    ground_truth = one_class([{"image_id": 0, "bbox": box} for box in boxes])
    rows = [row(box, 1 - i / 1000) for i, box in enumerate(boxes)]
    metrics = CocoEvaluator(ground_truth, backend=backend).evaluate(rows)
    # 100 of 120 found: precision is 1 at the 84 recalls 0, 0.01, ... 0.83 of 101.
    assert metrics["AP"] == pytest.approx(84 / 101)
    assert metrics["AR100"] == pytest.approx(100 / 120)
    assert all(math.isnan(metrics[name]) for name in ("APs", "APl", "ARs", "ARl"))  # all are of medium size
    metrics = CocoEvaluator(ground_truth, backend=backend, max_dets=(1, 10, 150)).evaluate(rows)
    assert metrics["AP"] == metrics["APm"] == metrics["AR150"] == 1
    assert metrics["AR10"] == pytest.approx(10 / 120)
    assert "AR100" not in metrics


@pytest.mark.parametrize("backend", BACKENDS)
def test_ignored_objects_neither_help_nor_hurt(backend: str) -> None:
    plain, ignored = [0.0, 0.0, 100.0, 100.0], [300.0, 300.0, 100.0, 100.0]
    ground_truth = one_class([{"image_id": 0, "bbox": plain}, {"image_id": 0, "bbox": ignored, "ignore": 1}])
    evaluator = CocoEvaluator(ground_truth, backend=backend)
    assert evaluator.evaluate([row(plain, 0.5), row(ignored, 0.9)])["AP"] == pytest.approx(1)
    assert evaluator.evaluate([row(plain, 0.5)])["AP"] == pytest.approx(1)
    # A plain object in its place would have to be found, and a detection of nothing counts.
    assert evaluator.evaluate([row(plain, 0.5), row([600.0, 600.0, 50.0, 50.0], 0.9)])["AP"] == pytest.approx(0.5)
    counted = CocoEvaluator(
        one_class([{"image_id": 0, "bbox": plain}, {"image_id": 0, "bbox": ignored}]), backend=backend
    )
    assert counted.evaluate([row(plain, 0.5)])["AP"] == pytest.approx(51 / 101)


def renamed(ids: Any, categories: Any, annotation_ids: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The fixed file with other ids of images and categories, whose order is that of the given functions."""
    truth = {
        "images": [image | {"id": ids(image["id"])} for image in SMALL["ground_truth"]["images"]],
        "categories": [c | {"id": categories(c["id"])} for c in SMALL["ground_truth"]["categories"]],
        "annotations": [
            row
            | {"image_id": ids(row["image_id"]), "category_id": categories(row["category_id"])}
            | {"id": annotation_ids(i)}
            for i, row in enumerate(SMALL["ground_truth"]["annotations"])
        ],
    }
    rows = [
        row | {"image_id": ids(row["image_id"]), "category_id": categories(row["category_id"])}
        for row in SMALL["detections"]
    ]
    return truth, rows


@pytest.mark.parametrize(("iou_type", "backend"), [("bbox", "pycocotools"), ("segm", "faster_coco_eval")])
def test_metrics_do_not_depend_on_ids(iou_type: str, backend: str) -> None:
    expected = CocoEvaluator(SMALL["ground_truth"], iou_type=iou_type).evaluate(SMALL["detections"])
    for ids, categories, annotation_ids in (
        (lambda i: 1_700_000_000_000_000_000 + i, lambda i: i, lambda i: i),  # nanoseconds
        (lambda i: i, lambda i: 2**60 + i, lambda i: 5),
        (lambda i: i - 2**62, lambda i: i - 50, lambda i: -i),
        (lambda i: i * 2**32, lambda i: i * 2**32, lambda i: f"object {i}"),
    ):
        truth, rows = renamed(ids, categories, annotation_ids)
        assert_equal(CocoEvaluator(truth, iou_type=iou_type, backend=backend).evaluate(rows), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_area_is_too_large_to_count(backend: str) -> None:
    box = [0.0, 0.0, 1e6, 1e6]
    truth = one_class([{"image_id": 0, "bbox": box}])
    metrics = CocoEvaluator(truth, backend=backend).evaluate([row(box)])
    assert metrics["AP"] == metrics["APl"] == pytest.approx(1)
    assert CocoEvaluator(truth, backend=backend).evaluate([])["AP"] == 0
    truth["annotations"][0]["area"] = -1
    with pytest.raises(ValueError, match="annotation 0 has area -1"):
        CocoEvaluator(truth, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_predicted_and_nothing_to_find(backend: str) -> None:
    found_nothing = CocoEvaluator(SMALL["ground_truth"], backend=backend).evaluate([])
    assert found_nothing["AP"] == found_nothing["AR100"] == found_nothing["AP/disc"] == 0
    assert math.isnan(found_nothing["AP/never seen"])
    empty = CocoEvaluator(one_class([]), backend=backend)
    for metrics in (empty.evaluate([]), empty.evaluate([row([0, 0, 9, 9])]), empty.evaluate([], image_ids=[])):
        assert set(metrics) == set(found_nothing) - {"AP/disc", "AP/box", "AP/never seen"} | {"AP/thing"}
        assert all(math.isnan(value) for value in metrics.values())


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_size_of_a_mask_is_its_own(backend: str) -> None:
    def masked(x: int, width: int, height: int) -> dict[str, Any]:
        encoded = rle.frPyObjects([[x, 0, x + width, 0, x + width, height, x, height]], 1000, 1000)[0]
        return {"size": [1000, 1000], "counts": encoded["counts"].decode()}

    ground_truth = one_class([{"image_id": 0, "bbox": [0, 0, 20, 20], "segmentation": masked(0, 20, 20)}])
    # A small mask in a box that is not: counted among the small ones, where it is wrong.
    wrong = row([500, 0, 100, 100], 0.9) | {"segmentation": masked(500, 10, 10)}
    right = row([0, 0, 20, 20], 0.5) | {"segmentation": masked(0, 20, 20)}
    metrics = CocoEvaluator(ground_truth, iou_type="segm", backend=backend).evaluate([right, wrong])
    assert metrics["APs"] == pytest.approx(0.5)


def test_what_is_wrong_is_named() -> None:
    box: list[float] = [0, 0, 9, 9]
    truth = one_class([{"image_id": 0, "bbox": box}])
    twice = truth | {"categories": [*truth["categories"], {"id": 2, "name": "thing"}]}

    def evaluate(*changes: dict[str, int], **options: Any) -> None:
        iou_type = options.pop("iou_type", "bbox")
        CocoEvaluator(one_class([]), iou_type=iou_type).evaluate([row(box) | change for change in changes], **options)

    for call, message in (
        (lambda: CocoEvaluator(truth, backend="pycoco"), "one of pycocotools, faster_coco_eval, hotcoco, got 'pycoco'"),
        (lambda: CocoEvaluator(truth, iou_type="mask"), "iou_type must be one of bbox, segm, boundary, got 'mask'"),
        (lambda: CocoEvaluator(truth, max_dets=(100, 10)), r"must be ascending positive integers, got \[100, 10\]"),
        (lambda: CocoEvaluator(truth, max_dets=()), "max_dets must be ascending"),
        (lambda: CocoEvaluator(truth, iou_type="segm"), "annotation 0 has no segmentation"),
        (lambda: CocoEvaluator(twice), "category names must be unique"),
        (lambda: evaluate({}, {"image_id": 9}), "row 1: image_id 9 is not in the ground truth, which has 0, 1"),
        (lambda: evaluate({}, {"category_id": 2}), "row 1: category_id 2 is not in the ground truth, which has 1"),
        (lambda: evaluate(image_ids=[0, 3]), "image_ids: not in the ground truth: 3"),
        (lambda: evaluate({}, iou_type="segm"), "row 0 has no segmentation"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_a_library_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hotcoco", None)
    with pytest.raises(ValueError, match=r"hotcoco.*pip install 'detpool\[hotcoco\]'"):
        CocoEvaluator(SMALL["ground_truth"], backend="hotcoco")
