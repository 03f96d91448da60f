"""IoU-Net's algorithms against slow and plain forms of them."""

import math

import pytest
import torch
from torchvision.ops import box_iou

from detpool.detection.localization import iou_guided_nms, jittered_boxes, paired_iou, refine_boxes


def random_boxes(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 60
    return torch.cat([corner, corner + 5 + 40 * torch.rand(count, 2, generator=generator)], 1)


def test_paired_iou_is_the_diagonal_of_torchvisions():
    one, other = random_boxes(30), random_boxes(30, seed=1)
    torch.testing.assert_close(paired_iou(one, other), box_iou(one, other).diagonal())
    assert paired_iou(torch.zeros(1, 4), torch.zeros(1, 4)).tolist() == [0.0]


def test_jittered_boxes_are_spread_evenly_over_iou():
    torch.manual_seed(0)
    objects = torch.tensor([[10.0, 10, 50, 90], [60, 20, 90, 40], [0, 0, 30, 30]])
    boxes, rows = jittered_boxes(objects, (100, 100), 4000)
    assert boxes.shape == (4000, 4)
    assert boxes.min() >= 0
    assert boxes.max() <= 100
    iou = box_iou(boxes, objects)[torch.arange(4000), rows]
    assert iou.min() >= 0.5 - 1e-6
    counts = torch.histc(iou, bins=10, min=0.5, max=1.0)
    # 400 each, within six standard deviations of a draw of 4000
    assert ((counts - 400).abs() < 6 * math.sqrt(4000 * 0.1 * 0.9)).all(), counts
    assert torch.bincount(rows, minlength=3).min() > 4000 / 6  # no object is left out


def test_jitter_of_an_object_that_fills_a_tiny_image():
    torch.manual_seed(0)
    boxes, rows = jittered_boxes(torch.tensor([[0.0, 0, 2, 2]]), (2, 2), 50)
    assert len(boxes) == len(rows) == 50
    assert (boxes[:, 2:] > boxes[:, :2]).all()


def plain_iou_guided_nms(boxes, scores, labels, ious, threshold):
    """Algorithm 1 as printed, class by class."""
    result = []
    for label in labels.unique().tolist():
        left = [i for i in range(len(boxes)) if labels[i] == label]
        while left:
            best = max(left, key=lambda i: ious[i])
            cluster = [i for i in left if i == best or box_iou(boxes[i][None], boxes[best][None]).item() > threshold]
            result.append((max(scores[i].item() for i in cluster), best))
            left = [i for i in left if i not in cluster]
    return sorted(result, reverse=True)


@pytest.mark.parametrize(("count", "threshold"), [(80, 0.3), (80, 0.5), (0, 0.5)])
def test_iou_guided_nms_is_algorithm_1(count, threshold):
    boxes = random_boxes(count)
    generator = torch.Generator().manual_seed(5)
    scores, ious = torch.rand(2, count, generator=generator)
    labels = torch.randint(1, 4, (count,), generator=generator)
    rows, best = iou_guided_nms(boxes, scores, labels, ious, threshold)
    expected = plain_iou_guided_nms(boxes, scores, labels, ious, threshold)
    assert len(rows) < 80
    assert rows.tolist() == [row for _, row in expected]
    torch.testing.assert_close(best, torch.tensor([score for score, _ in expected]))


def test_iou_guided_nms_at_ties_with_the_threshold():
    """Boxes whose IoU is 0.5 but for rounding, of which nms may decide otherwise: no score goes astray."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        corner = torch.randint(40, (60, 2), generator=generator) / 3
        boxes = torch.cat([corner, corner + torch.randint(2, 14, (60, 2), generator=generator) / 3], 1)
        labels = torch.randint(1, 4, (60,), generator=generator)
        scores, ious = torch.rand(2, 60, generator=generator)
        rows, best = iou_guided_nms(boxes, scores, labels, ious, 0.5)
        assert (best >= scores[rows]).all()
        source = (scores == best[:, None]).int().argmax(1)
        assert torch.equal(labels[source], labels[rows])
        assert (paired_iou(boxes[source], boxes[rows]) > 0.5 - 1e-5).all()


def test_refinement_climbs_a_true_iou():
    """With the true IoU for a prediction, boxes move to their objects and none gets worse."""
    objects = random_boxes(40)
    size = (objects[:, 2:] - objects[:, :2]).repeat(1, 2)
    start = objects + 0.1 * size * (torch.rand(40, 4, generator=torch.Generator().manual_seed(1)) - 0.5)

    def predict(boxes, rows):
        return paired_iou(boxes, objects[rows])

    before, after = predict(start, torch.arange(40)), predict(refine_boxes(predict, start), torch.arange(40))
    assert (after >= before).all()
    assert after.mean() > before.mean() + 0.03
    many = predict(refine_boxes(predict, start, steps=30, tolerance=0.0), torch.arange(40))
    assert many.mean() > 0.97


def test_refinement_leaves_boxes_where_nothing_is_gained():
    boxes = random_boxes(5)
    flat = refine_boxes(lambda moved, rows: (moved * 0).sum(1), boxes)
    assert torch.equal(flat, boxes)
    assert torch.equal(refine_boxes(lambda moved, rows: moved.sum(1), boxes, steps=0), boxes)
    # A gradient that lies: each step it points to is worse.
    lying = refine_boxes(lambda moved, rows: -(moved - boxes[rows]).abs().sum(1) + 0 * moved.sum(1), boxes)
    assert torch.equal(lying, boxes)
    assert refine_boxes(lambda moved, rows: moved.sum(1), torch.zeros(0, 4)).shape == (0, 4)
