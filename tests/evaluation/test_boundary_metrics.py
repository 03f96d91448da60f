"""Boundary AP against the definition, computed from pixels with scipy."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as rle
from scipy.ndimage import binary_erosion

from detpool.evaluation import CocoEvaluator, DetectionEvaluator


def square(x: int, y: int, side: int) -> np.ndarray:
    pixels = np.zeros((100, 100), np.uint8, order="F")
    pixels[y : y + side, x : x + side] = 1
    return pixels


def outline(pixels: np.ndarray) -> np.ndarray:
    """Pixels of a mask within d pixels of its outline, d 2 % of the diagonal (Cheng et al., CVPR 2021)."""
    distance = max(1, round(0.02 * np.hypot(*pixels.shape)))
    inner = binary_erosion(np.pad(pixels, 1), np.ones((3, 3)), distance)[1:-1, 1:-1]
    return pixels.astype(bool) & ~inner


def iou(first: np.ndarray, second: np.ndarray) -> float:
    return (first.astype(bool) & second.astype(bool)).sum() / (first.astype(bool) | second.astype(bool)).sum()


def ground_truth(pixels: np.ndarray) -> dict:
    box = [float(v) for v in rle.toBbox(rle.encode(pixels))]
    row = {"id": 1, "image_id": 1, "category_id": 1, "bbox": box, "area": int(pixels.sum()), "iscrowd": 0}
    return {
        "images": [{"id": 1, "height": 100, "width": 100}],
        "categories": [{"id": 1, "name": "square"}],
        "annotations": [row | {"segmentation": rle.encode(pixels)}],
    }


@pytest.mark.parametrize("shift", [0, 1, 2, 4])
def test_one_object_and_one_detection(shift):
    true, found = square(20, 30, 40), square(20 + shift, 30, 40)
    rows = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1.0, "segmentation": rle.encode(found)}]
    metrics = CocoEvaluator(ground_truth(true), iou_type="boundary").evaluate(rows)
    masks, boundaries = iou(true, found), iou(outline(true), outline(found))
    assert boundaries < masks or shift == 0
    expected = {f"AP@{t / 100:.2f}": float(boundaries >= t / 100) for t in range(50, 100, 5)}
    assert {name: metrics[name] for name in expected} == expected
    assert metrics["AP"] == pytest.approx(np.mean(list(expected.values())))


def test_names_and_what_it_needs():
    class Data:
        class_names, category_ids = ["square"], [1]

        def ground_truth(self):
            return ground_truth(square(20, 30, 40))

    evaluator = DetectionEvaluator(Data(), iou_types=("bbox", "segm", "boundary"))
    names = set(evaluator.compute(partial=True))
    assert {"AP75", "mask_AP75", "boundary_AP75", "boundary_AP/square"} <= names
    assert set(evaluator.matches()) == {"bbox", "segm"}  # of which alone AP of other choices of images follows
    with pytest.raises(ValueError, match="iou_type 'boundary' needs the backend 'faster_coco_eval', got 'pycocotools'"):
        DetectionEvaluator(Data(), iou_types=("boundary",), backend="pycocotools")
