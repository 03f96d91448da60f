"""Shift consistency: against a detector that is known to be consistent, and by hand."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from constructed import SCORE, STRIDE, Cells, detector, ramps

from detpool.detection import JitteredProposals
from detpool.evaluation import DetectionEvaluator
from detpool.evaluation.detections import Detections
from detpool.probing.shifts import coarsest_stride, consistency, default_shifts, detect_shifted, shift_consistency

BOXES = [torch.tensor([[40.0, 52, 71, 90]]), torch.tensor([[30.0, 33.5, 88, 97]])]


class Ramps:
    """Images of ramps, and their objects."""

    category_ids, class_names, image_ids = [1], ["thing"], [1, 2]

    def __getitem__(self, index):
        target = {"boxes": BOXES[index], "labels": torch.tensor([1]), "image_id": index + 1, "orig_size": (128, 128)}
        return 255 * ramps(128, BOXES[index][0]), target

    def ground_truth(self):
        rows = []
        for number, box in enumerate(BOXES, 1):
            x, y, right, bottom = box[0].tolist()
            shape = [x, y, right - x, bottom - y]
            area = shape[2] * shape[3]
            rows.append({"id": number, "image_id": number, "category_id": 1, "bbox": shape, "area": area})
        images = [{"id": number, "height": 128, "width": 128} for number in (1, 2)]
        return {"images": images, "categories": [{"id": 1, "name": "thing"}], "annotations": rows}


def predictor(noise):
    model = detector(True, noise)
    model.backbone.strides, model.backbone.rpn_names = [STRIDE], ["0"]
    model.backbone.body = SimpleNamespace(strides=[STRIDE])
    return SimpleNamespace(model=model, device=torch.device("cpu"), config=SimpleNamespace(seed=0))


@pytest.mark.parametrize("direction", ["diagonal", "right", "down"])
def test_a_detector_that_moves_with_its_objects_is_consistent(direction):
    """RoIAlign of linear features is exact wherever an object lies; proposals are drawn once, and move along."""
    used, shifts = predictor(0.2), list(range(STRIDE + 1))
    found = list(detect_shifted(used, Ramps(), [0, 1], shifts, direction))
    assert isinstance(used.model.rpn, JitteredProposals)
    for image in found:
        for moved in image:
            # 8 bits do not round the ramps, which are float here; see `test_weights` for the tolerance.
            np.testing.assert_allclose(moved.boxes, image[0].boxes, atol=2e-3)
            np.testing.assert_allclose(moved.scores, SCORE, atol=1e-6)
    record = shift_consistency(DetectionEvaluator(Ramps()), found, [1, 2], shifts, STRIDE)
    assert [row["shift"] for row in record["shifts"]] == shifts
    summary = record["summary"]
    assert summary["AP_std"] == summary["AP_range"] == 0
    assert summary["kept"] == 1
    assert summary["iou"] == pytest.approx(1, abs=1e-3)


def detections(*rows):
    return Detections.of([{"image_id": i, "category_id": c, "bbox": box, "score": score} for i, c, box, score in rows])


def test_consistency_by_hand():
    box, off = [0.0, 0, 10, 10], [2.0, 0, 10, 10]  # IoU 80 / 120
    before = detections((1, 1, box, 0.9), (1, 2, box, 0.8), (2, 1, box, 0.6), (2, 1, [50.0, 0, 9, 9], 0.4))
    after = detections((1, 1, off, 0.7), (2, 1, box, 0.9), (2, 1, off, 0.95), (2, 2, box, 0.6))
    found = consistency(before, after, 0.5)
    # The second has none of its class left, and the third goes to the better score.
    expected = {"kept": 2 / 3, "iou": 2 / 3, "score_change": (-0.2 + 0.35) / 2, "score_error": (0.2 + 0.35) / 2}
    assert found == pytest.approx(expected | {"detections": 4 / 3})
    assert consistency(before, before, 0.5) == {
        **{"kept": 1, "iou": 1, "score_change": 0, "score_error": 0, "detections": 1}
    }
    assert all(math.isnan(value) for value in consistency(before, after, 0.99).values())


def test_summary_leaves_out_whole_strides():
    right = [
        detections((n, 1, [*box[0, :2].tolist(), *(box[0, 2:] - box[0, :2]).tolist()], 0.9))
        for n, box in enumerate(BOXES, 1)
    ]
    found = [[right[0], right[0], detections()], [right[1], detections(), detections()]]
    record = shift_consistency(DetectionEvaluator(Ramps()), found, [1, 2], [0, 3, 8], 8)
    first, second, last = (row["AP"] for row in record["shifts"])
    # COCO's AP at half the recall, of precision 1: 51 of 101 points.
    assert (first, second, last) == (pytest.approx(1), pytest.approx(51 / 101), 0)
    assert record["summary"]["AP_range"] == pytest.approx(50 / 101)
    assert record["summary"]["kept"] == 0.5
    # Of whole strides alone nothing can be said: a range of 0 would be that of a consistent detector.
    whole = shift_consistency(DetectionEvaluator(Ramps()), [each[::2] for each in found], [1, 2], [0, 8], 8)
    assert len(whole["shifts"]) == 2
    assert all(map(math.isnan, whole["summary"].values()))


def test_default_shifts_see_all_parts_of_finer_cells():
    assert coarsest_stride(predictor(0.0).model) == STRIDE
    assert Cells.out_channels == 3
    for stride in (1, 4, 8, 16, 32, 64):
        shifts = default_shifts(stride)
        assert (shifts[0], shifts[-1]) == (0, stride)
        assert len({shift % 4 for shift in shifts}) == min(4, stride + (stride < 4))
        assert len(shifts) <= 18
