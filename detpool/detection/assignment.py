"""Matching of boxes with objects, and mask targets, in memory that does not grow with the number of objects."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torchvision.models.detection import _utils as torchvision_utils
from torchvision.models.detection._utils import Matcher, encode_boxes
from torchvision.ops import box_iou, roi_align

from detpool.object_masks import ObjectMasks

_PIXELS = 2**21  # of masks per step: 30 MiB of intermediate values
_PAIRS = 2**21  # of objects and boxes per step: 130 MiB of intermediate values


class BoxCoder(torchvision_utils.BoxCoder):
    """torchvision's box coder, without its copy of the weights to the device at each call, for which the host waits."""

    def encode_single(self, reference_boxes: Tensor, proposals: Tensor) -> Tensor:
        return encode_boxes(reference_boxes, proposals, self.weights)

    def decode(self, rel_codes: Tensor, boxes: list[Tensor]) -> Tensor:
        # torchvision tests whether there are boxes, which is unknown in traced code
        return self.decode_single(rel_codes, torch.cat(boxes)).unflatten(1, (-1, 4))


def match_boxes(matcher: Matcher, objects: Tensor, boxes: Tensor) -> Tensor:
    """Computes `matcher(box_iou(objects, boxes))` without the whole matrix.

    Args:
        matcher: thresholds, and whether an object also keeps its best boxes if their IoU is below them.
        objects: (n, 4) XYXY, at least one.
        boxes: (m, 4) XYXY.

    Returns:
        int64 (m,): the index of the object with the largest IoU (the first one, if equal), or the matcher's
        ``BELOW_LOW_THRESHOLD`` or ``BETWEEN_THRESHOLDS``.
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


def mask_targets(masks: ObjectMasks | Tensor, boxes: Tensor, matches: Tensor, size: int) -> Tensor:
    """Resamples the masks of objects within boxes like RoIAlign; only the part within each box is decoded.

    Args:
        masks: masks of n objects, or a tensor (n, H, W) of 0 and 1.
        boxes: (k, 4) XYXY in pixels.
        matches: (k,), index of the object of each box.
        size: height and width of the result.

    Returns:
        (k, size, size), with the dtype of ``boxes``.
    """
    masks = ObjectMasks.from_dense(masks) if isinstance(masks, Tensor) else masks
    limits = masks.grid[:2].flip(0).to(boxes)  # width and height of the image
    first = boxes[:, :2].floor().clamp(min=0).minimum(limits - 1)
    # RoIAlign makes a box at least one pixel wide, and reads the cells next to its last point.
    last = ((boxes[:, :2] + 1).maximum(boxes[:, 2:]).floor() + 2).minimum(limits).maximum(first + 1)
    order = (last - first).amax(1).argsort()
    targets = boxes.new_empty(len(boxes), size, size)
    # `tolist` is the only wait for a GPU here.
    for start, end, width, height in _of_similar_size((last - first)[order].long().tolist()):
        some = order[start:end]
        # The part must end where the image ends, because RoIAlign treats edges specially.
        corners = first[some].minimum(torch.stack([limits[0] - width, limits[1] - height]))
        parts = masks.crop(matches[some], corners.long(), (height, width))[:, None].to(boxes)
        numbers = torch.arange(len(some), device=boxes.device)[:, None]
        rois = torch.cat([numbers, boxes[some] - corners.repeat(1, 2)], 1)
        targets[some] = roi_align(parts, rois, size)[:, 0]
    return targets


def _of_similar_size(extents: list[list[int]]) -> Iterator[tuple[int, int, int, int]]:
    """Slices (start, end, maximum width, maximum height) of extents, each with at most `_PIXELS` or a single extent."""
    start = width = height = 0
    for end, extent in enumerate(extents):
        wider, higher = max(width, extent[0]), max(height, extent[1])
        if end > start and (end + 1 - start) * wider * higher > _PIXELS:
            yield start, end, width, height
            start, (wider, higher) = end, extent
        width, height = wider, higher
    if extents:
        yield start, len(extents), width, height
