"""Non-maximum suppression: of overlapping boxes, the best is kept, or (soft-NMS) the scores of others are reduced."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torchvision.ops import batched_nms, nms

from detpool.detection.localization import paired_iou
from detpool.ops.registration import fake, operator

Suppression = Literal["hard", "linear", "gaussian"]


def suppress(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """Like torchvision's `batched_nms`, which for many boxes waits for a GPU several times per group."""
    if torch.compiler.is_compiling():
        rows: Tensor = suppress_traced(boxes, scores, groups, threshold)
        return rows
    if boxes.device.type == "cpu":
        return batched_nms(boxes, scores, groups, threshold)
    return suppress_at_once(boxes, scores, groups, threshold)


def suppress_at_once(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """`suppress` in one call, with each group shifted to a separate place, which is exact in float64."""
    moved = boxes.double()
    if len(boxes):
        moved = moved + (groups * (moved.max() - moved.min() + 1))[:, None]
    return nms(moved, scores.double(), threshold)


@operator
def suppress_traced(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """`suppress` as a single operator of a traced program, in which the number of boxes is unknown."""
    return suppress(boxes, scores, groups, threshold)


@fake(suppress_traced)
def _(boxes: Tensor, *_: object) -> Tensor:
    return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor,
    decay: Literal["linear", "gaussian"],
    threshold: float = 0.3,
    sigma: float = 0.5,
    limit: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Soft-NMS (Bodla et al., ICCV 2017): the scores of boxes that overlap a better one of their group are reduced.

    Repeatedly, the box with the highest remaining score (the first one, if equal) is selected, and the scores of the
    others are reduced according to their IoU with it. No box is removed. The host does not wait for the GPU.

    Args:
        boxes: (K, 4) XYXY.
        scores: (K,), at least 0.
        groups: (K,), such as classes: boxes of different groups do not affect each other.
        decay: factor of the scores: `"linear"`, 1 - IoU if the IoU is above `threshold` (equation 2, with the strict
            comparison of the paper's code and of `torchvision.ops.nms`); or `"gaussian"`, exp(-IoU^2 / sigma)
            (equation 3), which for `sigma` towards 0 is NMS with threshold 0.
        threshold: IoU threshold of the linear decay (the paper: 0.3).
        sigma: sigma of the Gaussian decay, more than 0 (the paper: 0.5).
        limit: maximum number of boxes to return; None: all. The time is linear in it, and in K.

    Returns:
        Indices (min(K, limit),) in the order of selection, and their scores, which do not increase.
    """
    count = len(boxes) if limit is None else min(limit, len(boxes))
    left, rows, found = scores.clone(), [], []
    for _ in range(count):
        # An index tensor of one element selects without a wait. argmax returns the first maximum.
        row = left.argmax()[None]
        rows.append(row)
        found.append(left.index_select(0, row))
        iou = paired_iou(boxes.index_select(0, row).expand_as(boxes), boxes)
        if decay == "linear":
            factor = torch.where(iou > threshold, 1 - iou, 1)
        else:
            # For small values, avoid 0 / 0 and an underflow of the square: in the limit, any overlap gives 0.
            factor = torch.where(iou > 0, torch.exp(-iou / sigma * iou), 1)
        # Selected boxes have -1, which is less than any score and is not changed.
        touched = (groups == groups.index_select(0, row)) & (left > 0)
        left = torch.where(touched, left * factor, left).index_fill(0, row, -1)
    if not rows:
        return groups.new_zeros(0, dtype=torch.int64), scores[:0]
    return torch.cat(rows), torch.cat(found)
