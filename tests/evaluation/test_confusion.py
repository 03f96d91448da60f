import csv

import numpy as np
import pytest
from error_cases import AWAY, BOX, CAT, DOG, FAR, HALF_OFF, NEAR, row, truth

from detpool.evaluation.confusion import confusion_matrix, write_confusion


@pytest.mark.parametrize(
    ("objects", "rows", "expected"),
    [
        ([(CAT, BOX), (DOG, AWAY[1])], [row(CAT, NEAR), row(DOG, AWAY[1])], {(0, 0): 1, (1, 1): 1}),
        ([(CAT, BOX)], [row(DOG, NEAR)], {(0, 1): 1}),
        ([(CAT, BOX)], [], {(0, 2): 1}),
        ([(CAT, BOX)], [row(CAT, HALF_OFF)], {(0, 2): 1, (2, 0): 1}),
        ([(CAT, BOX)], [row(DOG, BOX, image=1)], {(0, 2): 1, (2, 1): 1}),
        # The better score takes the object, whatever its class; the other lies on background.
        ([(CAT, BOX)], [row(CAT, BOX, 0.6), row(DOG, NEAR, 0.9)], {(0, 1): 1, (2, 0): 1}),
        # Of two objects the nearer one.
        ([(CAT, NEAR), (DOG, BOX)], [row(DOG, BOX)], {(1, 1): 1, (0, 2): 1}),
        ([(CAT, BOX)], [row(CAT, BOX, 0.49)], {(0, 2): 1}),
    ],
)
def test_counts(objects, rows, expected):
    wanted = np.zeros((3, 3), int)
    for place, count in expected.items():
        wanted[place] = count
    np.testing.assert_array_equal(confusion_matrix(truth(*objects, images=2), rows), wanted)


def test_crowds_thresholds_and_images():
    crowd = truth((CAT, AWAY[1]), (CAT, BOX), iscrowd=1)
    part = [0.0, 0.0, 3.0, 3.0]
    assert confusion_matrix(crowd, [row(CAT, part), row(DOG, FAR)]).tolist() == [[0, 0, 1], [0, 0, 0], [0, 1, 0]]
    two = truth((CAT, BOX), images=2)
    assert confusion_matrix(two, [row(CAT, BOX)], image_ids=[1]).sum() == 0
    assert confusion_matrix(two, [row(CAT, HALF_OFF, 0.1)], score_threshold=0.1, iou_threshold=0.4)[0, 0] == 1
    with pytest.raises(ValueError, match="row 0: category_id 4 is not in the ground truth"):
        confusion_matrix(two, [row(4, BOX)])


def test_files(tmp_path):
    write_confusion(tmp_path, np.array([[5, 1, 0], [0, 2, 3], [4, 0, 0]]), ["cat", "dog"])
    with (tmp_path / "confusion.csv").open() as file:
        lines = list(csv.reader(file))
    assert lines[0] == ["object", "cat", "dog", "background"]
    assert lines[2] == ["dog", "0", "2", "3"]
    assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")
