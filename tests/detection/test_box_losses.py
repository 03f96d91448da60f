"""Losses of overlap against their papers' formulas, in NumPy, and what background does to gradients."""

import math

import numpy as np
import pytest
import torch

from detpool.detection.assignment import BoxCoder
from detpool.detection.box_losses import roi_losses

CODER = BoxCoder((10.0, 10.0, 5.0, 5.0))


def moved(box, delta):
    """Faster R-CNN's parametrisation of boxes, appendix C of R-CNN, with the weights of `CODER`."""
    (x1, y1, x2, y2), (dx, dy, dw, dh) = box, delta
    width, height = (x2 - x1) * math.exp(dw / 5), (y2 - y1) * math.exp(dh / 5)
    x, y = (x1 + x2) / 2 + dx / 10 * (x2 - x1), (y1 + y2) / 2 + dy / 10 * (y2 - y1)
    return np.array([x - width / 2, y - height / 2, x + width / 2, y + height / 2])


def plain_loss(kind, box, wanted):
    one, other = (np.array([b[2] - b[0], b[3] - b[1]]) for b in (box, wanted))
    overlap = np.prod(np.clip(np.minimum(box[2:], wanted[2:]) - np.maximum(box[:2], wanted[:2]), 0, None))
    union = one.prod() + other.prod() - overlap
    hull = np.maximum(box[2:], wanted[2:]) - np.minimum(box[:2], wanted[:2])
    iou = overlap / union
    if kind == "giou":
        return 1 - iou + (hull.prod() - union) / hull.prod()
    distance = ((box[:2] + box[2:] - wanted[:2] - wanted[2:]) ** 2).sum() / 4 / (hull**2).sum()
    v = 4 / math.pi**2 * (math.atan(other[0] / other[1]) - math.atan(one[0] / one[1])) ** 2
    return 1 - iou + distance + (v**2 / (1 - iou + v) if kind == "ciou" else 0)


def case():
    generator = torch.Generator().manual_seed(0)
    boxes, objects = torch.rand(2, 12, 4, generator=generator, dtype=torch.float64)
    boxes[:, 2:] += boxes[:, :2] + 0.2
    objects[:, 2:] += objects[:, :2] + 0.2
    logits, regression = (torch.randn(12, n, generator=generator, dtype=torch.float64) for n in (3, 12))
    labels = torch.tensor([0, 1, 2] * 4)
    boxes[0, 2:] = boxes[0, :2]  # background without area
    return logits, regression.requires_grad_(), labels, boxes, 30 * objects


@pytest.mark.parametrize("kind", ["giou", "diou", "ciou"])
def test_losses_are_the_papers(kind):
    logits, regression, labels, boxes, objects = case()
    boxes = 30 * boxes
    _, losses = roi_losses(logits, regression, labels, boxes, objects, CODER, kind)
    for row, label in enumerate(labels.tolist()):
        delta = regression[row, 4 * label : 4 * label + 4].tolist()
        expected = plain_loss(kind, moved(boxes[row].tolist(), delta), objects[row].numpy()) if label else 0.0
        assert losses[row].item() == pytest.approx(expected, abs=1e-8)
    losses.sum().backward()
    assert torch.isfinite(regression.grad).all()
    own = torch.arange(12).div(4, rounding_mode="floor")[None] == labels[:, None]
    assert not regression.grad[~own | (labels == 0)[:, None]].any()
    assert regression.grad[labels > 0].any(1).all()


@pytest.mark.parametrize("kind", ["smooth_l1", "giou", "diou"])  # of CIoU's weight alpha no gradient is taken
def test_gradients(kind):
    logits, regression, labels, boxes, objects = case()
    boxes[0, 2:] += 1  # what smooth L1 does for background does not depend on it, but divides by its width
    assert torch.autograd.gradcheck(
        lambda deltas: roi_losses(logits, deltas, labels, 30 * boxes, objects, CODER, kind)[1][labels > 0], regression
    )
