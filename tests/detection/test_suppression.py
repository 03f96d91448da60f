"""Soft-NMS against the rule as printed, under hypothesis, and against NMS where it becomes that."""

import math

import pytest
import torch
from detector_cases import composed
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import batched_nms

from detpool.detection.suppression import soft_nms
from detpool.errors import ConfigError
from detpool.training.runs import build_module

relaxed = settings(deadline=None, max_examples=60, derandomize=True)

# Whole pixels and eighths, so that boxes touch, coincide and have equal scores.
candidates = st.lists(
    st.tuples(*[st.integers(0, 12)] * 2, *[st.integers(1, 9)] * 2, st.integers(1, 8), st.integers(0, 1)),
    min_size=1,
    max_size=14,
)


def to_tensors(rows):
    x, y, width, height, score, group = torch.tensor(rows, dtype=torch.float64).unbind(1)
    return torch.stack([x, y, x + width, y + height], 1), score / 8, group.long()


def plain_iou(one, other):
    width = max(0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return width * height / (areas - width * height)


@relaxed
@given(candidates, st.sampled_from(["linear", "gaussian"]), st.sampled_from([0.0, 0.3, 0.5]), st.floats(0.01, 2))
def test_scores_are_those_of_the_rule_as_printed(rows, decay, threshold, sigma):
    boxes, scores, groups = to_tensors(rows)
    taken, found = soft_nms(boxes, scores, groups, decay, threshold, sigma)
    assert sorted(taken.tolist()) == list(range(len(rows)))
    left = dict(enumerate(scores.tolist()))
    for row, score in zip(taken.tolist(), found.tolist(), strict=True):
        # Of scores that are equal but for rounding either may be the next.
        assert left[row] == pytest.approx(score, abs=1e-12)
        assert left.pop(row) >= max(left.values(), default=0) - 1e-12
        for other in left:
            if groups[other] == groups[row]:
                iou = plain_iou(boxes[row].tolist(), boxes[other].tolist())
                factor = 1 - iou if decay == "linear" and iou > threshold else 1
                left[other] *= math.exp(-(iou**2) / sigma) if decay == "gaussian" else factor
    best, of_best = soft_nms(boxes, scores, groups, decay, threshold, sigma, limit=3)
    assert torch.equal(best, taken[:3])
    assert torch.equal(of_best, found[:3])


@relaxed
@given(candidates, st.sampled_from([1e-6, 1e-30, 1e-60]), st.sampled_from([torch.float32, torch.float64]))
def test_with_sigma_towards_0_it_is_nms(rows, sigma, dtype):
    """Of threshold 0: boxes that touch or are apart keep their score, whatever is small; all others lose it."""
    boxes, scores, groups = to_tensors(rows)
    boxes, scores = boxes.to(dtype), scores.to(dtype)
    taken, found = soft_nms(boxes, scores, groups, "gaussian", sigma=sigma)
    stay = found > 1e-6
    assert torch.equal(taken[stay], batched_nms(boxes, scores, groups, 0.0))
    assert torch.equal(found[stay], scores[taken[stay]])


def test_ties_and_boxes_without_area():
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 2], [0, 0, 4, 4], [9, 9, 9, 9], [9, 9, 9, 9]])
    scores = torch.tensor([0.5, 0.4, 0.5, 0.3, 0.3])
    groups = torch.zeros(5, dtype=torch.int64)
    rows, found = soft_nms(boxes, scores, groups, "linear", threshold=0.5)
    # The first of equals; an IoU of just the threshold takes nothing, as in NMS; nor does one of 0 / 0.
    assert rows.tolist() == [0, 1, 3, 4, 2]
    torch.testing.assert_close(found, torch.tensor([0.5, 0.4, 0.3, 0.3, 0.0]))
    # No box is taken twice, where all that are left have a score of 0.
    rows, found = soft_nms(boxes[[0] * 4], scores[[0] * 4], groups[:4], "linear")
    assert rows.tolist() == [0, 1, 2, 3]
    assert found.tolist() == [0.5, 0, 0, 0]
    empty = soft_nms(boxes[:0], scores[:0], groups[:0], "gaussian")
    assert [len(part) for part in empty] == [0, 0]


def test_heads_drop_what_has_fallen_below_the_threshold():
    overrides = ["model.roi_heads.nms=gaussian", "model.roi_heads.nms_sigma=0.1", "model.roi_heads.score_thresh=0.2"]
    config = composed("faster_rcnn", "roi_align", overrides)
    config.class_names = ["a", "b", "c"]
    heads = build_module(config).model.roi_heads
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 5], [30, 30, 40, 40]])
    found = {"boxes": boxes, "scores": torch.tensor([0.9, 0.8, 0.7, 0.3]), "labels": torch.ones(4, dtype=torch.int64)}
    (detection,) = heads.suppress({}, [found], [(64, 64)])
    assert detection["boxes"].tolist() == boxes[[0, 3]].tolist()
    torch.testing.assert_close(detection["scores"], torch.tensor([0.9, 0.3]))


def test_words_are_checked_before_any_work():
    with pytest.raises(ConfigError, match=r"model\.roi_heads\.nms must be .*gaussian.*, got 'soft'"):
        composed("faster_rcnn", "roi_align", ["model.roi_heads.nms=soft"])
    with pytest.raises(ConfigError, match=r"model\.roi_heads\.box_loss must be .*giou.*, got 'iou'"):
        composed("faster_rcnn", "roi_align", ["model.roi_heads.box_loss=iou"])
