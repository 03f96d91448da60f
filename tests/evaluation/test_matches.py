"""AP from matches: that of the libraries bit for bit, and of resamples that of data sets whose images repeat."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detpool.evaluation import CocoEvaluator
from detpool.evaluation.matches import THRESHOLDS, read_matches, write_matches
from detpool.evaluation.resampling import bootstrap_weights, resampled_ap, weighted_ap

SMALL = json.loads((Path(__file__).parent / "coco_small.json").read_text())
IMAGES = 12
Truth = dict[str, Any]


def scene(seed: int = 0, ties: bool = True) -> tuple[Truth, list[dict[str, Any]]]:
    """Objects of three classes, some of them crowds, ignored or near each other, and detections; `ties` of scores."""
    rng = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for image in range(IMAGES):
        for _ in range(rng.integers(0, 9)):
            box = np.concatenate([rng.uniform(0, 60, 2), rng.uniform(20, 60, 2)]).round(1)
            label, kind = int(rng.integers(1, 4)), rng.choice(["plain", "crowd", "ignore"], p=[0.8, 0.1, 0.1])
            extra = {"iscrowd": int(kind == "crowd"), "ignore": int(kind == "ignore"), "area": float(box[2] * box[3])}
            places = {"id": len(annotations) + 1, "image_id": image, "category_id": label, "bbox": box.tolist()}
            annotations.append(places | extra)
            for _ in range(rng.integers(0, 4)):
                moved = (box + rng.normal(0, 4, 4)).round(1)
                rows.append({"image_id": image, "category_id": label, "bbox": moved.tolist()})
        for _ in range(3):
            box = np.concatenate([rng.uniform(0, 60, 2), rng.uniform(20, 60, 2)]).round(1)
            rows.append({"image_id": image, "category_id": int(rng.integers(1, 4)), "bbox": box.tolist()})
    scores = rng.integers(1, 9, len(rows)) / 8 if ties else rng.permutation(len(rows)) / len(rows)
    names = ["a", "b", "c", "never seen"]
    truth = {
        "images": [{"id": image, "height": 200, "width": 200} for image in range(IMAGES)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names, 1)],
        "annotations": annotations,
    }
    return truth, [row | {"score": float(score)} for row, score in zip(rows, scores, strict=True)]


def repeated(truth: Truth, rows: list[dict[str, Any]], weights: list[int]) -> tuple[Truth, list[dict[str, Any]]]:
    """A data set in which each image occurs as often as it weighs, copies side by side."""

    def copies(items: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
        return [item | {key: 100 * item[key] + copy} for item in items for copy in range(weights[item[key]])]

    annotations = [row | {"id": place} for place, row in enumerate(copies(truth["annotations"], "image_id"), 1)]
    images = copies(truth["images"], "id")
    return truth | {"images": images, "annotations": annotations}, copies(rows, "image_id")


@pytest.mark.parametrize("backend", ["pycocotools", "faster_coco_eval", "hotcoco"])
@pytest.mark.parametrize("seed", range(4))
def test_every_image_once_is_the_ap_of_the_libraries_bit_for_bit(seed: int, backend: str) -> None:
    truth, rows = scene(seed)
    for limits, chosen in (((1, 10, 100), None), ((1, 2), None), ((1, 10, 100), [11, 3, 7, 0])):
        evaluator = CocoEvaluator(truth, backend=backend, max_dets=limits)
        metrics, matches = evaluator.evaluate(rows, chosen), evaluator.matches(rows, chosen)
        assert matches.image_ids.tolist() == sorted(chosen or range(IMAGES))
        found = weighted_ap(matches, np.ones((1, len(matches.image_ids)), np.int32))
        assert {name: float(value[0]) for name, value in found.items()} == {name: metrics[name] for name in found}
        assert 0 < metrics["AP75"] < metrics["AP50"] < 1


@pytest.mark.parametrize("backend", ["pycocotools", "faster_coco_eval"])
def test_masks_too(backend: str) -> None:
    evaluator = CocoEvaluator(SMALL["ground_truth"], iou_type="segm", backend=backend)
    metrics = evaluator.evaluate(SMALL["detections"])
    found = resampled_ap({"segm": evaluator.matches(SMALL["detections"])}, resamples=3)
    assert {name: float(value[0]) for name, value in found.items()} == {
        n: metrics[n.removeprefix("mask_")] for n in found
    }
    assert len(found["mask_AP"]) == 4


def test_weights_are_what_pycocotools_says_of_repeated_images() -> None:
    # Without ties: copies of an image would be ranked one after the other, where weights keep a detection's together.
    truth, rows = scene(5, ties=False)
    matches = CocoEvaluator(truth).matches(rows)
    drawn = bootstrap_weights(IMAGES, 20, seed=1)
    assert drawn[0].tolist() == [1] * IMAGES
    assert (drawn.sum(1) == IMAGES).all()
    twice, none = np.full((1, IMAGES), 2), np.eye(IMAGES, dtype=int)[:2] * 3  # two data sets of a single image
    weights = np.concatenate([drawn, twice, none])
    found = weighted_ap(matches, weights)
    for place, weight in enumerate(weights.tolist()):
        many, found_in_many = repeated(truth, rows, weight)
        metrics = CocoEvaluator(many, backend="pycocotools").evaluate(found_in_many)
        for name, values in found.items():
            assert values[place] == pytest.approx(metrics[name], abs=1e-12, nan_ok=True), (place, name)
    assert np.isnan(weighted_ap(matches, np.zeros((1, IMAGES), int))["AP"]).all()
    with pytest.raises(ValueError, match=r"weights must be \(resamples, 12\) and not negative, got shape \(1, 3\)"):
        weighted_ap(matches, np.ones((1, 3)))


def test_ap_by_its_definition() -> None:
    """Mean over recalls 0, 0.01, ... 1 of the best precision at that recall or more, by brute force."""
    truth, rows = scene(2)
    truth = truth | {"categories": truth["categories"][:1]}
    truth["annotations"] = [row for row in truth["annotations"] if row["category_id"] == 1]
    matches = CocoEvaluator(truth).matches([row for row in rows if row["category_id"] == 1])
    weights = bootstrap_weights(IMAGES, 5)
    found = weighted_ap(matches, weights)
    for b, weight in enumerate(weights):
        positives = sum(weight[image] * count for image, _, count in matches.objects)
        for t, threshold in enumerate(THRESHOLDS):
            true = false = 0
            points = []
            for image, bits, ignored in zip(matches.images, matches.matched, matches.ignored, strict=True):
                for _ in range(0 if ignored >> t & 1 else weight[image]):
                    true, false = true + (bits >> t & 1), false + 1 - (bits >> t & 1)
                    points.append((true / positives, true / (true + false)))
            best = [max((p for r, p in points if r >= recall), default=0.0) for recall in np.linspace(0, 1, 101)]
            assert found[f"AP@{threshold:.2f}"][b] == pytest.approx(np.mean(best), abs=1e-12)


def test_a_class_without_an_object_left_enters_no_mean() -> None:
    boxes = {0: [0, 0, 10, 10], 1: [50, 50, 10, 10]}
    truth = {
        "images": [{"id": image, "height": 100, "width": 100} for image in boxes],
        "categories": [{"id": i, "name": name} for i, name in enumerate("ab")],
        "annotations": [
            {"id": image + 1, "image_id": image, "category_id": image, "bbox": box, "area": 100, "iscrowd": 0}
            for image, box in boxes.items()
        ],
    }
    # The object of image 0 is found; that of image 1 is not.
    matches = CocoEvaluator(truth).matches([{"image_id": 0, "category_id": 0, "bbox": boxes[0], "score": 0.5}])
    ap = weighted_ap(matches, np.array([[1, 1], [2, 0], [0, 2], [0, 0]]))["AP"]
    assert ap[:3] == pytest.approx([0.5, 1, 0], abs=1e-9)
    assert math.isnan(ap[3])


def test_files_hold_what_was_written_and_bad_ones_are_named(tmp_path: Path) -> None:
    truth, rows = scene()
    boxes = CocoEvaluator(truth).matches(rows)
    path = tmp_path / "matches.npz"
    write_matches(path, {"bbox": boxes, "segm": boxes})
    before = path.read_bytes()
    write_matches(path, read_matches(path))
    assert path.read_bytes() == before
    found = read_matches(path)["segm"]
    assert found.class_names == boxes.class_names
    for name in ("image_ids", "images", "classes", "scores", "matched", "ignored", "objects"):
        assert getattr(found, name).dtype == getattr(boxes, name).dtype
        assert (getattr(found, name) == getattr(boxes, name)).all()

    path.write_bytes(before[: len(before) // 2])
    with pytest.raises(ValueError, match="matches.npz is not a file of matches, or damaged"):
        read_matches(path)
    arrays = {
        "image_ids": boxes.image_ids,
        "spacing": 0.0,
        "class_names": np.array(boxes.class_names),
        "bbox_images": boxes.images,
    }
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match="it lacks 'bbox_classes'"):
        read_matches(path)
    for name, values, message in (
        ("images", boxes.images + 5, r"images must lie in 0 \.\. 11, got 5 \.\. 16"),
        ("scores", boxes.scores[1:], "not equally long"),
        ("matched", boxes.matched.astype(float), "matched has shape"),
        ("classes", boxes.classes[::-1], "ordered by class"),
    ):
        columns = {f"bbox_{key}": getattr(boxes, key) for key in ("classes", "scores", "matched", "ignored", "objects")}
        np.savez(path, **{**arrays, **columns, f"bbox_{name}": values})
        with pytest.raises(ValueError, match=message):
            read_matches(path)
