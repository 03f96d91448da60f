"""Random boxes around objects, boxes at a given distance from objects, and IoU-Net's suppression and refinement."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import batched_nms, box_iou

MIN_IOU = 0.5
"""IoU-Net is trained on boxes of at least this IoU with their object."""


def paired_iou(first: Tensor, second: Tensor) -> Tensor:
    """IoU (K,) of each box of (K, 4) with the one in the same row."""
    top_left = torch.maximum(first[:, :2], second[:, :2])
    bottom_right = torch.minimum(first[:, 2:], second[:, 2:])
    overlap = (bottom_right - top_left).clamp(min=0).prod(1)
    areas = sum((box[:, 2:] - box[:, :2]).prod(1) for box in (first, second))
    return overlap / (areas - overlap).clamp(min=1e-12)


def jittered_boxes(
    objects: Tensor, image_shape: tuple[int, int], count: int, min_iou: float = MIN_IOU
) -> tuple[Tensor, Tensor]:
    """Draws boxes around objects, about uniformly distributed over IoU (Jiang et al., ECCV 2018, section 3.1).

    Candidates are randomly shifted and scaled boxes of objects. Those with an IoU below `min_iou` are dropped, and each
    tenth of the remaining IoU range is sampled equally often.

    Args:
        objects: (n, 4) XYXY in pixels, n at least 1.
        image_shape: (height, width) to which boxes are clipped.
        count: number of boxes.
        min_iou: minimum IoU with the object.

    Returns:
        Boxes (count, 4), and the index of the object of each box (count,).
    """
    rows = torch.randint(len(objects), (8 * count,), device=objects.device)
    rows = torch.cat([rows, torch.arange(len(objects), device=objects.device)])
    base = objects[rows]
    size = base[:, 2:] - base[:, :2]
    # One maximum displacement per box: if it were drawn per coordinate, few boxes would stay close to their object.
    reach = torch.rand(len(rows), 1, device=objects.device) * 0.35
    reach[-len(objects) :] = 0  # the objects themselves, so that some boxes remain after the threshold
    centre = (base[:, :2] + base[:, 2:]) / 2 + reach * size * (2 * torch.rand_like(size) - 1)
    half = size / 2 * torch.exp(1.5 * reach * (2 * torch.rand_like(size) - 1))
    height, width = image_shape
    limit = torch.tensor([width, height, width, height], device=objects.device)
    boxes = torch.minimum(torch.cat([centre - half, centre + half], 1).clamp(min=0), limit)
    iou = paired_iou(boxes, base)
    kept = torch.where(iou >= min_iou)[0]
    part = ((iou[kept] - min_iou) / (1 - min_iou) * 10).long().clamp(0, 9)
    weights = 1 / torch.bincount(part, minlength=10).clamp(min=1)[part]
    drawn = kept[torch.multinomial(weights, count, replacement=True)]
    return boxes[drawn], rows[drawn]


def displaced_boxes(
    objects: Tensor, image_shape: tuple[int, int], noise: float | None = None, iou: float | None = None
) -> Tensor:
    """Returns one box per object, at a given distance and in a random direction.

    A direction is a unit vector (a, b, c, d), drawn uniformly from PyTorch's generator. At distance t, a box of width w
    and height h is moved by (t a w, t b h), and its sides are multiplied by exp(t c) and exp(t d): t = 0.1 is at most a
    tenth of the side. Directions do not depend on t: with the same seed, boxes for several t lie on the same rays.

    Args:
        objects: (n, 4) XYXY in pixels.
        image_shape: (height, width) to which boxes are clipped; this never increases the distance to an object within
            the image.
        noise: the distance t.
        iou: used instead of the distance: the IoU, in (0, 1], of each box with its object before clipping.

    Returns:
        Boxes (n, 4), in the order of the objects; exactly the objects for `noise=0` or `iou=1`.
    """
    direction = F.normalize(torch.randn(len(objects), 4, device=objects.device), dim=1)
    if iou is None:
        boxes = _along(objects, direction, objects.new_full((len(objects), 1), noise or 0.0))
    else:
        near = objects.new_zeros(len(objects), 1)
        far = near + (0 if iou == 1 else 4 - 2 * math.log(iou))  # at this distance, every box has a lower IoU
        for _ in range(40):
            middle = (near + far) / 2
            closer = paired_iou(_along(objects, direction, middle), objects)[:, None] >= iou
            near, far = torch.where(closer, middle, near), torch.where(closer, far, middle)
        boxes = _along(objects, direction, near)
    height, width = image_shape
    return torch.minimum(boxes.clamp(min=0), boxes.new_tensor([width, height, width, height]))


def _along(objects: Tensor, direction: Tensor, distance: Tensor) -> Tensor:
    """Boxes at distances (n, 1) from objects (n, 4); at distance 0, exactly the objects."""
    size = objects[:, 2:] - objects[:, :2]
    shift = distance * direction[:, :2] * size
    growth = torch.expm1(distance * direction[:, 2:]) * size / 2
    return objects + torch.cat([shift - growth, shift + growth], 1)


def iou_guided_nms(
    boxes: Tensor, scores: Tensor, labels: Tensor, ious: Tensor, threshold: float
) -> tuple[Tensor, Tensor]:
    """Non-maximum suppression by predicted IoU (Jiang et al., algorithm 1).

    The box with the highest predicted IoU of each cluster is kept, and gets the highest class score of the cluster.

    Args:
        boxes: (K, 4) XYXY.
        scores, labels, ious: (K,) class scores, classes, and predicted IoUs, by which boxes are ranked.
        threshold: a box belongs to the cluster of a kept box of its class if their IoU is above this value.

    Returns:
        Indices of the kept boxes in order of decreasing score, and their scores.
    """
    kept = batched_nms(boxes, ious, labels, threshold)
    if len(kept) == 0:
        return kept, scores[:0]
    together = (box_iou(boxes[kept], boxes) > threshold) & (labels[kept][:, None] == labels[None])
    together[torch.arange(len(kept), device=kept.device), kept] = True
    # A box belongs to the first kept box that suppresses it. argmax returns the first maximum only for integers.
    order = torch.arange(len(kept), 0, -1, device=kept.device)[:, None]
    owner = (together * order).argmax(0)
    # If an IoU is close to the threshold, `batched_nms`, which shifts the classes apart, may round differently from
    # `box_iou`. A kept box always owns itself, and a suppressed box may have no owner.
    owner[kept] = torch.arange(len(kept), device=kept.device)
    owned = together.any(0)
    best = scores.new_zeros(len(kept)).scatter_reduce(0, owner[owned], scores[owned], "amax")
    falling = best.argsort(descending=True, stable=True)
    return kept[falling], best[falling]


def refine_boxes(
    predict: Callable[[Tensor, Tensor], Tensor],
    boxes: Tensor,
    steps: int = 5,
    step_size: float = 0.02,
    tolerance: float = 1e-3,
) -> Tensor:
    """Refines boxes by gradient ascent on their predicted IoU (Jiang et al., algorithm 2).

    Steps are taken in coordinates relative to the box's width and height: a pixel coordinate moves by the rate times
    the gradient times the square of the side (the paper multiplies by the side once, which makes the step depend on the
    image's resolution). A step that does not increase the prediction is undone, and the rate of the box is halved (the
    paper accepts a small decrease). A box whose gain is less than `tolerance` is not moved any more.

    Args:
        predict: `predict(boxes, rows)` returns differentiable IoUs (k,) of boxes (k, 4), which are versions of
            `boxes[rows]`.
        boxes: (K, 4) XYXY in pixels.
        steps: maximum number of steps.
        step_size: change of a relative coordinate for a gradient of 1 with respect to it.
        tolerance: gain of predicted IoU below which a box stops.

    Returns:
        Boxes (K, 4), detached.
    """
    boxes = boxes.detach().clone()
    rows = torch.arange(len(boxes), device=boxes.device)  # indices of the boxes that still move
    rate = torch.full((len(boxes), 1), step_size, dtype=boxes.dtype, device=boxes.device)

    def evaluate(there: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            there = there.detach().requires_grad_()
            score = predict(there, rows)
            (slope,) = torch.autograd.grad(score.sum(), there)
        return score.detach(), slope

    score, slope = evaluate(boxes)
    for _ in range(steps):
        if len(rows) == 0:
            break
        moved = _step(boxes[rows], slope, rate[rows])
        new_score, new_slope = evaluate(moved)
        gain = new_score - score
        better = gain > 0
        boxes[rows[better]] = moved[better]
        rate[rows[~better]] /= 2
        score, slope = torch.where(better, new_score, score), torch.where(better[:, None], new_slope, slope)
        moving = ~better | (gain >= tolerance)
        rows, score, slope = rows[moving], score[moving], slope[moving]
    return boxes


def _step(boxes: Tensor, slope: Tensor, rate: Tensor) -> Tensor:
    size = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    moved = boxes + rate * slope * size**2
    # If a side crossed the opposite one, the box would be invalid.
    centre = (moved[:, :2] + moved[:, 2:]) / 2
    half = ((moved[:, 2:] - moved[:, :2]) / 2).clamp(min=0.5)
    return torch.cat([centre - half, centre + half], 1)
