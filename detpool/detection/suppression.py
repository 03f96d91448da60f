"""Non-maximum suppression: of boxes that overlap the best stays, or (soft-NMS) the others lose some of their score."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torchvision.ops import batched_nms, nms

from detpool.detection.localization import paired_iou
from detpool.ops.registration import fake, operator

Suppression = Literal["hard", "linear", "gaussian"]


def suppress(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """As torchvision's `batched_nms`, which waits for a GPU several times for each group of many boxes."""
    if torch.compiler.is_compiling():
        rows: Tensor = suppress_traced(boxes, scores, groups, threshold)
        return rows
    if boxes.device.type == "cpu":
        return batched_nms(boxes, scores, groups, threshold)
    return suppress_at_once(boxes, scores, groups, threshold)


def suppress_at_once(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """`suppress` by one call, each group moved to a place of its own: exact in float64, as boxes have fewer digits."""
    moved = boxes.double()
    if len(boxes):
        moved = moved + (groups * (moved.max() - moved.min() + 1))[:, None]
    return nms(moved, scores.double(), threshold)


@operator
def suppress_traced(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """`suppress` as one operator of a traced program, which cannot ask how many boxes there are."""
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
    """Soft-NMS (Bodla et al., ICCV 2017): boxes that overlap a better one of their group lose score, and all stay.

    The box of the highest score is taken, and those not taken lose by their IoU with it, until none is left. Of equal
    scores the first is taken. The host waits for nothing.

    Args:
        boxes: (K, 4) XYXY.
        scores: (K,), at least 0.
        groups: (K,), such as classes: boxes of different ones do not touch each other's scores.
        decay: what scores are multiplied by: `"linear"`, 1 - IoU where that is above `threshold` (equation 2 with the
            strict comparison of the paper's code, and of `torchvision.ops.nms`); or `"gaussian"`,
            exp(-IoU^2 / sigma) (equation 3), which for `sigma` towards 0 is NMS with threshold 0.
        threshold: of the linear decay (the paper: 0.3).
        sigma: of the Gaussian decay, more than 0 (the paper: 0.5).
        limit: the best so many boxes are enough; None: all. Time is linear in it, and in K.

    Returns:
        rows (min(K, limit),) in the order in which they are taken, and their scores, which do not rise.
    """
    count = len(boxes) if limit is None else min(limit, len(boxes))
    left, rows, found = scores.clone(), [], []
    for _ in range(count):
        # A row of one element selects without a wait, and argmax takes the first of equals.
        row = left.argmax()[None]
        rows.append(row)
        found.append(left.index_select(0, row))
        iou = paired_iou(boxes.index_select(0, row).expand_as(boxes), boxes)
        if decay == "linear":
            factor = torch.where(iou > threshold, 1 - iou, 1)
        else:
            # Whatever is small, no 0 / 0, and no square that vanishes: in the limit any overlap leaves nothing.
            factor = torch.where(iou > 0, torch.exp(-iou / sigma * iou), 1)
        # Those taken have -1, which is less than any score and stays so.
        touched = (groups == groups.index_select(0, row)) & (left > 0)
        left = torch.where(touched, left * factor, left).index_fill(0, row, -1)
    if not rows:
        return groups.new_zeros(0, dtype=torch.int64), scores[:0]
    return torch.cat(rows), torch.cat(found)
