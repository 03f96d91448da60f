"""Kinds of errors: every case made by hand, and the sums that must hold whatever comes."""

from __future__ import annotations

import random
from typing import Any

import pytest
from error_cases import AWAY, BOX, CAT, DOG, FAR, HALF_OFF, NEAR, masked, row, truth

from detpool.evaluation.errors import ERRORS, error_decomposition


def counted(ground_truth: dict[str, Any], *rows: dict[str, Any], **options: Any) -> dict[str, int]:
    """What is not zero, the number of objects apart."""
    counts = error_decomposition(ground_truth, rows, **options)
    assert set(counts) == {"objects", "detections", "correct", *ERRORS}
    return {name: count for name, count in counts.items() if count and name != "objects"}


@pytest.mark.parametrize(
    ("objects", "rows", "expected"),
    [
        ([(CAT, BOX)], [row(CAT, NEAR)], {"detections": 1, "correct": 1}),
        ([(CAT, BOX)], [], {"missed": 1}),
        ([(CAT, BOX), AWAY], [row(CAT, BOX, 0.9), row(CAT, NEAR, 0.8)], {"correct": 1, "duplicate": 1, "missed": 1}),
        # The better score takes the object, whichever comes first.
        ([(CAT, BOX), AWAY], [row(CAT, NEAR, 0.8), row(CAT, BOX, 0.9)], {"correct": 1, "duplicate": 1, "missed": 1}),
        ([(CAT, BOX)], [row(CAT, HALF_OFF)], {"localisation": 1}),
        ([(CAT, BOX), (DOG, AWAY[1])], [row(DOG, NEAR)], {"classification": 1, "missed": 1}),
        ([(CAT, BOX), (DOG, AWAY[1])], [row(DOG, HALF_OFF)], {"both": 1, "missed": 2}),
        ([(CAT, BOX)], [row(CAT, FAR)], {"background": 1, "missed": 1}),
        ([(CAT, BOX)], [row(CAT, BOX, image=1)], {"background": 1, "missed": 1}),
        # On a dog that is taken for a cat, with a cat beside it: a wrong class, not a bad place.
        ([(DOG, BOX), (CAT, HALF_OFF)], [row(CAT, [-1.0, 0.0, 10.0, 10.0])], {"classification": 1, "missed": 1}),
        # A second box on a cat that is found, though a dog stands there as well: its own class comes first.
        (
            [(CAT, BOX), (DOG, BOX), AWAY],
            [row(CAT, BOX, 0.9), row(CAT, BOX, 0.8)],
            {"correct": 1, "duplicate": 1, "missed": 2},
        ),
    ],
)
def test_kinds(objects, rows, expected):
    counts = counted(truth(*objects, images=2), *rows)
    assert counts == {"detections": len(rows), **expected} if rows else counts == expected


def test_as_many_detections_of_each_class_as_objects():
    """The second best cat and the best dog's rival stand below the line, and are no errors."""
    ground_truth = truth((CAT, BOX), (DOG, AWAY[1]))
    rows = [row(CAT, BOX, 0.9), row(CAT, FAR, 0.89), row(DOG, AWAY[1], 0.2), row(DOG, FAR, 0.1)]
    assert counted(ground_truth, *rows) == {"detections": 2, "correct": 2}
    # A class without objects has no detections to judge.
    assert counted(truth((CAT, BOX)), row(DOG, BOX, 0.99), row(CAT, BOX, 0.1)) == {"detections": 1, "correct": 1}


@pytest.mark.parametrize("flag", ["iscrowd", "ignore"])
def test_crowds_and_ignored_objects_are_neither_found_nor_missed(flag):
    ground_truth = truth((CAT, AWAY[1]), (CAT, BOX), **{flag: 1})
    # The detection on it takes no place of the one that may be considered.
    assert counted(ground_truth, row(CAT, BOX, 0.9), row(CAT, AWAY[1], 0.1)) == {"detections": 1, "correct": 1}
    assert counted(ground_truth) == {"missed": 1}
    # A part of a crowd is a detection in it, whatever its IoU; a part of an ignored object is not.
    part = [0.0, 0.0, 3.0, 3.0]
    expected = {"missed": 1} if flag == "iscrowd" else {"detections": 1, "background": 1, "missed": 1}
    assert counted(ground_truth, row(CAT, part)) == expected


def test_thresholds_and_images():
    ground_truth = truth((CAT, BOX), images=2)
    assert counted(ground_truth, row(CAT, HALF_OFF), iou_threshold=0.4) == {"detections": 1, "correct": 1}
    assert counted(ground_truth, row(CAT, FAR), background_threshold=0.05) == {"detections": 1, "localisation": 1}
    assert error_decomposition(ground_truth, [row(CAT, BOX)], image_ids=[1])["objects"] == 0
    for thresholds in ((0.5, 0.0), (0.5, 0.6), (1.1, 0.1)):
        with pytest.raises(ValueError, match=f"got {thresholds[1]} and {thresholds[0]}"):
            error_decomposition(ground_truth, [], iou_threshold=thresholds[0], background_threshold=thresholds[1])
    with pytest.raises(ValueError, match="row 0: category_id 4 is not in the ground truth"):
        error_decomposition(ground_truth, [row(4, BOX)])


def test_sums_and_order_of_rows():
    draw = random.Random(0)

    def box() -> list[float]:
        return [draw.uniform(0, 30), draw.uniform(0, 30), draw.uniform(5, 20), draw.uniform(5, 20)]

    for _ in range(50):
        objects = [(draw.choice([CAT, DOG]), box()) for _ in range(draw.randint(1, 8))]
        ground_truth = truth(*objects, ignore=draw.randint(0, 1))
        rows = [row(draw.choice([CAT, DOG]), box(), draw.random()) for _ in range(20)]
        rows += [row(category, [v + draw.uniform(-2, 2) for v in place], draw.random()) for category, place in objects]
        counts = error_decomposition(ground_truth, rows)
        assert counts["correct"] + sum(counts[kind] for kind in ERRORS[:-1]) == counts["detections"]
        assert counts["detections"] <= counts["objects"]
        # An object is found, missed, or the nearest of at most one error each.
        assert counts["correct"] + counts["missed"] <= counts["objects"]
        explained = counts["objects"] - counts["correct"] - counts["missed"]
        assert explained <= counts["classification"] + counts["localisation"]
        draw.shuffle(rows)
        assert error_decomposition(ground_truth, rows) == counts


def test_kinds_of_errors_of_masks():
    """Of masks that fill their boxes the errors are those of boxes; one beside its object in the same box is none's."""
    ground_truth = truth((CAT, BOX), (DOG, AWAY[1]), (CAT, [40.0, 40.0, 10.0, 10.0]), images=2)
    rows = [row(CAT, NEAR, 0.9), row(CAT, AWAY[1], 0.8), row(DOG, FAR, 0.7)]
    filled = masked(ground_truth), [masked(each) for each in rows]
    assert counted(*filled[:1], *filled[1], iou_type="segm") == counted(ground_truth, *rows)
    halves = [[0.0, 0.0, 10.0, 5.0], [0.0, 5.0, 10.0, 5.0]]
    truth_above, row_below = masked(truth((CAT, BOX)), halves[0]), masked(row(CAT, BOX), halves[1])
    assert counted(truth_above, row_below) == {"detections": 1, "correct": 1}
    assert counted(truth_above, row_below, iou_type="segm") == {"detections": 1, "background": 1, "missed": 1}
