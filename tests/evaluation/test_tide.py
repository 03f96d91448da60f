"""The AP that mending each kind of error gives, worked out by hand, and AP itself against COCO's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from error_cases import AWAY, BOX, CAT, DOG, FAR, HALF_OFF, NEAR, row, truth

from detpool.evaluation import CocoEvaluator
from detpool.evaluation.tide import MENDED, error_costs

HALF = 51 / 101  # recalls 0, 0.01, ..., 0.5 of the 101 that AP is a mean over
AWAY_OFF = [104.0, 100.0, 10.0, 10.0]


@pytest.mark.parametrize(
    ("objects", "rows", "base", "gains"),
    [
        ([(CAT, BOX)], [row(CAT, NEAR)], 1.0, {}),
        ([(CAT, BOX), AWAY], [row(CAT, BOX)], HALF, {"missed": 1 - HALF, "false_negative": 1 - HALF}),
        (
            [(CAT, BOX), AWAY],
            [row(CAT, BOX, 0.9), row(CAT, AWAY_OFF, 0.8)],
            HALF,
            {"localisation": 1 - HALF, "false_negative": 1 - HALF},  # the object is not missed: its place is wrong
        ),
        # Two on the same object: the better one gets it, and the other goes.
        (
            [(CAT, BOX)],
            [row(CAT, HALF_OFF, 0.9), row(CAT, HALF_OFF, 0.8)],
            0.0,
            {"localisation": 1.0},
        ),
        # A wrong place in front of a correct one is removed.
        (
            [(CAT, BOX)],
            [row(CAT, HALF_OFF, 0.9), row(CAT, BOX, 0.8)],
            0.5,
            {"localisation": 0.5, "false_positive": 0.5},
        ),
        ([(CAT, BOX)], [row(CAT, FAR, 0.9), row(CAT, BOX, 0.8)], 0.5, {"background": 0.5, "false_positive": 0.5}),
        (
            [(CAT, BOX), AWAY],
            [row(CAT, BOX, 0.9), row(CAT, NEAR, 0.8), row(CAT, AWAY[1], 0.7)],
            (51 + 50 * 2 / 3) / 101,
            dict.fromkeys(("duplicate", "false_positive"), 1 - (51 + 50 * 2 / 3) / 101),
        ),
        # A cat taken for a dog: mended, it is a cat found, and the mean is over two classes.
        ([(CAT, BOX), (DOG, AWAY[1])], [row(DOG, NEAR, 0.9)], 0.0, {"classification": 0.5}),
        (
            [(CAT, BOX), (DOG, AWAY[1])],
            [row(DOG, HALF_OFF, 0.9), row(DOG, AWAY[1], 0.8), row(CAT, BOX, 0.7)],
            0.75,
            {"both": 0.25, "false_positive": 0.25},
        ),
    ],
)
def test_gains(objects, rows, base, gains):
    costs = error_costs(truth(*objects), rows)
    assert list(costs) == ["AP50", *(f"dAP50/{kind}" for kind in MENDED)]
    assert costs.pop("AP50") == pytest.approx(base)
    assert {name[6:]: gain for name, gain in costs.items() if abs(gain) > 1e-12} == pytest.approx(gains)


@pytest.mark.parametrize("flag", ["iscrowd", "ignore"])
def test_detections_on_crowds_and_ignored_objects_do_not_count(flag):
    ground_truth = truth((CAT, AWAY[1]), (CAT, BOX), **{flag: 1})
    costs = error_costs(ground_truth, [row(CAT, BOX, 0.9), row(CAT, AWAY[1], 0.1)])
    assert costs["AP50"] == 1.0
    assert all(np.isnan(value) for value in error_costs(truth((CAT, BOX), **{flag: 1}), []).values())


def test_of_each_image_and_class_the_best_count():
    rows = [row(CAT, FAR, 0.9), row(CAT, BOX, 0.8), row(CAT, BOX, 0.7, image=1), row(DOG, FAR, 0.1)]
    assert error_costs(truth((CAT, BOX), images=2), rows, max_dets=1)["AP50"] == 0.0
    assert error_costs(truth((CAT, BOX), images=2), rows, max_dets=2)["AP50"] == 0.5


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("limit", [3, 100])
def test_ap_is_cocos(iou_type, limit):
    small = json.loads((Path(__file__).parent / "coco_small.json").read_text())
    ground_truth, rows = small["ground_truth"], small["detections"]
    expected = CocoEvaluator(ground_truth, iou_type=iou_type, max_dets=(limit,)).evaluate(rows)["AP50"]
    assert error_costs(ground_truth, rows, iou_type=iou_type, max_dets=limit)["AP50"] == pytest.approx(expected)
    assert 0.1 < expected < 0.95
