"""IoU-Net: Faster R-CNN with a head that predicts how well a box fits."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from detpool.detection.assemble import PYRAMID_RPN, HeadFactory, PoolerFactory, ProposalFactory
from detpool.detection.backbones import Body
from detpool.detection.detector import TwoStageDetector
from detpool.detection.faster_rcnn import faster_rcnn_fpn
from detpool.detection.heads import FlattenHead
from detpool.detection.iou_heads import IoUHeads
from detpool.detection.slots import LayerFactory


def iou_net(
    num_classes: int,
    body: Body,
    box_pooler: PoolerFactory,
    iou_pooler: PoolerFactory,
    head_pool: HeadFactory = FlattenHead,
    fpn_channels: int = 256,
    iou_channels: int = 1024,
    class_agnostic: bool = False,
    context: LayerFactory | None = None,
    rpn: ProposalFactory = PYRAMID_RPN,
    proposals: nn.Module | None = None,
    roi_heads: Callable[..., IoUHeads] = IoUHeads,
) -> TwoStageDetector:
    """IoU-Net (Jiang et al., ECCV 2018) on Faster R-CNN with a feature pyramid.

    The IoU head is trained on jittered boxes of the objects instead of proposals. Predictions contain the predicted
    IoUs of the final boxes as `ious`.

    Args:
        iou_pooler: builds the pooler of the IoU head. Refinement needs its gradients with respect to boxes, which
            `pr_roi_pool`, `roi_align` and all operators with continuous bins have.
        num_classes, body, box_pooler, head_pool, fpn_channels, iou_channels: see `detpool.detection.faster_rcnn_fpn`.
        class_agnostic, context, rpn, proposals: see `detpool.detection.faster_rcnn_fpn`.
        roi_heads: builds the second stage from poolers, heads and predictors.

    Raises:
        ConfigError: If the parts do not fit each other, or refinement is enabled and the pooler has no gradient with
            respect to boxes.
    """
    return faster_rcnn_fpn(
        num_classes,
        body,
        box_pooler,
        head_pool,
        fpn_channels=fpn_channels,
        class_agnostic=class_agnostic,
        iou_pooler=iou_pooler,
        iou_channels=iou_channels,
        context=context,
        rpn=rpn,
        proposals=proposals,
        roi_heads=roi_heads,
    )
