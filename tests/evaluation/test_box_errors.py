"""Signed errors of boxes, on cases made by hand."""

import numpy as np
import pytest

from detpool.evaluation.box_errors import box_errors


def truth(*objects):
    """Objects (box, area, category and flags), all of image 4."""
    rows = [{"id": n, "image_id": 4, "bbox": box, "area": area, **rest} for n, (box, area, rest) in enumerate(objects)]
    return {"images": [{"id": 4}], "categories": [{"id": 1}, {"id": 2}], "annotations": rows}


def found(box, score=0.5, category=1):
    return {"image_id": 4, "category_id": category, "bbox": box, "score": score}


def test_errors_are_detection_minus_object_of_the_best_match():
    ground_truth = truth(([10.0, 20, 40, 30], 1000.0, {"category_id": 1}))
    rows = [
        found([11.0, 22, 42, 27], 0.6),  # centre 32, 35.5 against 30, 35
        found([10.0, 20, 40, 30], 0.5),  # a better box of a lower score
        found([10.0, 20, 40, 30], 0.9, category=2),
        found([40.0, 20, 40, 30], 0.8),  # IoU 1 / 7
    ]
    (row,) = box_errors(ground_truth, rows).to_dict("records")
    assert {name: row[name] for name in ("dx", "dy", "dw", "dh", "size")} == {
        **{"dx": 2.0, "dy": 0.5, "dw": 2.0, "dh": -3.0},
        "size": "s",
    }
    (row,) = box_errors(ground_truth, rows, iou_threshold=0.95).to_dict("records")
    assert [row[name] for name in ("dx", "dy", "dw", "dh")] == [0.0] * 4


def test_objects_that_nothing_matches_stay_and_crowds_are_none():
    ground_truth = truth(
        ([0.0, 0, 200, 200], 1024.0, {"category_id": 1}),
        ([0.0, 0, 200, 200], 9216.0, {"category_id": 2}),
        ([0.0, 0, 50, 50], 2500.0, {"category_id": 1, "iscrowd": 1}),
        ([0.0, 0, 50, 50], 2500.0, {"category_id": 1, "ignore": 1}),
    )
    table = box_errors(ground_truth, [found([100.0, 100, 200, 200])])
    assert table["size"].tolist() == ["m", "l"]
    assert np.isnan(table[["dx", "dy", "dw", "dh"]].to_numpy()).all()
    assert len(box_errors(truth(), [])) == 0
    with pytest.raises(ValueError, match="image_id is 'a'"):
        box_errors(ground_truth, [found([0.0, 0, 1, 1]) | {"image_id": "a"}])
