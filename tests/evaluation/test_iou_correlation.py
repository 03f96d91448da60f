"""Correlation of predicted and true IoU, on boxes whose IoU is known."""

import math

import numpy as np
import pytest

from detpool.evaluation.iou_correlation import iou_correlation


def ground_truth(count):
    return {
        "images": [{"id": i} for i in range(count)],
        "annotations": [
            {"image_id": i, "category_id": 1, "bbox": [10, 10, 100, 100], "iscrowd": 0, "area": 1e4}
            for i in range(count)
        ],
        "categories": [{"id": 1, "name": "a"}],
    }


def row(image, width, iou, category=1):
    """A detection of the object's left part, whose IoU is its width in percent."""
    return {"image_id": image, "category_id": category, "bbox": [10, 10, width, 100], "score": 0.5, "iou": iou}


def test_correlation_is_numpys_over_detections_that_have_an_object():
    true = [0.5, 0.6, 0.75, 0.9, 1.0]
    predicted = [0.7, 0.55, 0.7, 0.95, 0.8]
    rows = [row(i, 100 * t, p) for i, (t, p) in enumerate(zip(true, predicted, strict=True))]
    others = [row(0, 40, 0.99), row(1, 90, 0.1, category=2)]  # too far from the object; of another class
    expected = np.corrcoef(true, predicted)[0, 1]
    assert iou_correlation(ground_truth(5), [*rows, *others]) == pytest.approx(expected)
    assert iou_correlation(ground_truth(5), [row(i, 100 * t, t) for i, t in enumerate(true)]) == pytest.approx(1)


def test_objects_that_do_not_count_are_no_objects():
    truth = ground_truth(3)
    truth["annotations"][0]["iscrowd"] = 1
    truth["annotations"][1]["ignore"] = 1
    rows = [row(0, 60, 0.6), row(1, 70, 0.7), row(2, 80, 0.8)]
    assert math.isnan(iou_correlation(truth, rows))
    assert math.isnan(iou_correlation(truth, []))
