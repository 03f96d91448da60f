"""Losses of the second stage for each RoI: classification, and box regression by smooth L1 or by overlap."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import complete_box_iou_loss, distance_box_iou_loss, generalized_box_iou_loss

from detpool.detection.assignment import BoxCoder

BoxLoss = Literal["smooth_l1", "giou", "diou", "ciou"]
_OF_OVERLAP = {"giou": generalized_box_iou_loss, "diou": distance_box_iou_loss, "ciou": complete_box_iou_loss}


def roi_losses(
    logits: Tensor,
    regression: Tensor,
    labels: Tensor,
    boxes: Tensor,
    objects: Tensor,
    coder: BoxCoder,
    kind: BoxLoss = "smooth_l1",
) -> tuple[Tensor, Tensor]:
    """Returns two losses (K,) for each RoI: cross entropy, and the loss of the box of its class (0 for background).

    The means of cross entropy and smooth L1 equal torchvision's `fastrcnn_loss`.

    Args:
        logits: (K, classes + 1), background first.
        regression: (K, 4 (classes + 1)), box deltas.
        labels: (K,), 0 for background.
        boxes: (K, 4) XYXY in pixels, to which the deltas are applied.
        objects: (K, 4) XYXY, the target boxes; not used for background.
        coder: converts between deltas and boxes.
        kind: `"smooth_l1"` for a loss of the deltas; `"giou"` (Rezatofighi et al., CVPR 2019), `"diou"` or `"ciou"`
            (Zheng et al., AAAI 2020) for torchvision's losses of the predicted box in pixels.
    """
    rows = torch.arange(len(labels), device=labels.device)
    mine, positive = regression.reshape(*logits.shape, 4)[rows, labels], labels[:, None] > 0
    if kind == "smooth_l1":
        wanted = torch.where(positive, coder.encode_single(objects, boxes), mine.detach())
        box_loss = F.smooth_l1_loss(mine, wanted, beta=1 / 9, reduction="none").sum(1)
    else:
        # Background gets the unit square: a box without area has a non-finite loss, which would affect all gradients.
        square = torch.zeros_like(boxes)
        square[:, 2:] = 1
        moved = coder.decode_single(torch.where(positive, mine, 0), torch.where(positive, boxes, square))
        overlap = _OF_OVERLAP[kind](moved, torch.where(positive, objects, square))
        box_loss = torch.where(positive[:, 0], overlap, 0)
    return F.cross_entropy(logits, labels, reduction="none"), box_loss
