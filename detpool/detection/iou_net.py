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

    The IoU head is trained on jittered boxes of the objects, not on proposals. A detection has the predicted IoU of its
    final box as `ious`.

    Args:
        num_classes: classes without background.
        body: the convolutional network under the pyramid.
        box_pooler: called with `featmap_names` and `strides` of the pyramid, returns the pooler of the box head.
        iou_pooler: the same for the IoU head; refinement needs gradients with respect to boxes from it, which
            `pr_roi_pool`, `roi_align` and every operator with continuous bins have.
        head_pool: called with one tuple (channels, height, width) of pooled RoIs, returns the box head.
        fpn_channels: channels of every pyramid level.
        iou_channels: width of the IoU head's two fully connected layers.
        class_agnostic: see `detpool.detection.faster_rcnn_fpn`.
        context: layer on the body's last map, which it keeps the shape of, before the pyramid; None: none.
        rpn, proposals: see `detpool.detection.faster_rcnn_fpn`.
        roi_heads: builds the second stage from poolers, heads and predictors.

    Raises:
        ConfigError: if the parts do not fit each other, or if refinement is asked for with a pooler that has no
            gradient with respect to boxes.
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
