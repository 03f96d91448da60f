import math

import numpy as np
import pytest
from error_cases import AWAY, BOX, CAT, DOG, FAR, NEAR, row, truth

from detpool.evaluation.calibration import calibration, calibration_error


def test_error_is_the_mean_distance_by_bins():
    said, true = np.array([0.9, 0.9, 0.6, 0.6, 0.1]), np.array([1.0, 0.0, 1.0, 1.0, 0.0])
    # Bins of a fifth: 0.9 is right half of the time, 0.6 (the upper end of a bin) always, 0.1 never.
    assert calibration_error(said, true, bins=5) == pytest.approx((2 * 0.4 + 2 * 0.4 + 0.1) / 5)
    assert calibration_error(said, true, bins=1) == pytest.approx(abs(true.mean() - said.mean()))
    assert calibration_error(np.array([0.0, 1.0]), np.array([0.0, 1.0])) == 0.0
    assert math.isnan(calibration_error(np.zeros(0), np.zeros(0)))


def test_scores_that_are_probabilities_have_a_small_error():
    draw = np.random.default_rng(0)
    said = draw.random(20000)
    assert calibration_error(said, (draw.random(20000) < said).astype(float)) < 0.02
    assert calibration_error(said, (draw.random(20000) < said / 2).astype(float)) == pytest.approx(0.25, abs=0.02)


def test_scores_and_predicted_ious_of_each_class():
    ground_truth = truth((CAT, BOX), (CAT, AWAY[1]), (DOG, [50.0, 50.0, 10.0, 10.0]), ignore=1)
    rows = [
        row(CAT, NEAR, 0.9) | {"iou": 0.8},  # correct, IoU 2 / 3
        row(CAT, BOX, 0.5) | {"iou": 0.7},  # a duplicate, IoU 1
        row(CAT, FAR, 0.1) | {"iou": 0.1},  # background, IoU 1 / 19
        row(DOG, [50.0, 50.0, 10.0, 10.0], 0.3) | {"iou": 0.3},  # on an object that is ignored
        row(DOG, FAR, 0.2) | {"iou": 0.2},
    ]
    found = calibration(ground_truth, rows)
    cats, dogs = 0.1 + 0.5 + 0.1, 0.2
    assert found["ECE/cat"] == pytest.approx(cats / 3)
    assert found["ECE/dog"] == pytest.approx(dogs)
    assert found["ECE"] == pytest.approx((cats + dogs) / 4)
    assert found["iou_ECE/cat"] == pytest.approx((0.8 - 2 / 3 + 0.3 + 0.1 - 1 / 19) / 3)
    assert found["iou_ECE/dog"] == pytest.approx(0.2)  # the only dog is ignored: there is nothing to overlap
    without = [{name: value for name, value in each.items() if name != "iou"} for each in rows]
    assert calibration(ground_truth, without) == {name: found[name] for name in ("ECE", "ECE/cat", "ECE/dog")}
    assert math.isnan(calibration(ground_truth, [])["ECE"])
