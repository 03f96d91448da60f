"""Which object a box is to find, and what its mask is to be, in memory that does not grow with the image's objects."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou, roi_align

_PAIRS = 2**21  # of objects and boxes at a time: 150 MiB of intermediate values


def match_boxes(matcher: Matcher, objects: Tensor, boxes: Tensor) -> Tensor:
    """`matcher(box_iou(objects, boxes))` without the whole matrix.

    Args:
        matcher: thresholds, and whether the best boxes of an object are its own below them.
        objects: (n, 4) XYXY, at least one.
        boxes: (m, 4) XYXY.

    Returns:
        int64 (m,): the object of largest IoU, the first of equals; or the matcher's ``BELOW_LOW_THRESHOLD`` or
        ``BETWEEN_THRESHOLDS``.
    """
    quality, nearest = boxes.new_full((len(boxes),), -1.0), boxes.new_zeros(len(boxes), dtype=torch.int64)
    best_of_object = torch.zeros_like(nearest, dtype=torch.bool)
    step = max(1, _PAIRS // max(1, len(boxes)))
    for start in range(0, len(objects), step):
        ious = box_iou(objects[start : start + step], boxes)
        values, rows = ious.max(0)
        nearest = torch.where(values > quality, rows + start, nearest)
        quality = torch.maximum(quality, values)
        if matcher.allow_low_quality_matches:
            best_of_object |= (ious == ious.amax(1, keepdim=True)).any(0)
    matches = torch.where(quality < matcher.high_threshold, matcher.BETWEEN_THRESHOLDS, nearest)
    matches = torch.where(quality < matcher.low_threshold, matcher.BELOW_LOW_THRESHOLD, matches)
    return torch.where(best_of_object, nearest, matches)


def mask_targets(masks: Tensor, boxes: Tensor, matches: Tensor, size: int) -> Tensor:
    """The masks of objects within boxes, resampled as RoIAlign does, of each its box alone.

    Args:
        masks: (n, H, W), 0 or 1.
        boxes: (k, 4) XYXY in pixels.
        matches: (k,), the mask of each box.
        size: height and width of the result.

    Returns:
        (k, size, size), of the type of ``boxes``.
    """
    height, width = masks.shape[-2:]
    limits = boxes.new_tensor([width, height])
    first = boxes[:, :2].floor().clamp(min=0).minimum(limits - 1)
    # RoIAlign makes a box at least one pixel wide, and reads the cells beside its last point.
    last = (boxes[:, :2] + 1).maximum(boxes[:, 2:]).floor().add(2).minimum(limits).maximum(first + 1)
    corners = torch.cat([first, last, matches[:, None].to(first)], 1).long().tolist()
    moved = torch.cat([torch.zeros_like(boxes[:, :1]), boxes - first.repeat(1, 2)], 1)[:, None]
    targets = boxes.new_empty(len(boxes), size, size)
    for target, roi, (x1, y1, x2, y2, row) in zip(targets, moved, corners, strict=True):
        target.copy_(roi_align(masks[row, y1:y2, x1:x2].to(boxes)[None, None], roi, size)[0, 0])
    return targets
