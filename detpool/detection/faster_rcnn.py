"""Faster R-CNN with a feature pyramid, on torchvision's parts; the RoI pooling is ours."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead

from detpool.detection.backbones import Body, FPNBackbone
from detpool.detection.transform import NormalizeAndBatch
from detpool.errors import ConfigError, did_you_mean
from detpool.poolers import RoIPooler


def faster_rcnn_fpn(
    num_classes: int,
    body: Body,
    box_pooler: Callable[..., RoIPooler],
    fpn_channels: int = 256,
    head_channels: int = 1024,
    anchor_sizes: Sequence[Sequence[int]] = ((32,), (64,), (128,), (256,), (512,)),
    anchor_aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
    **faster_rcnn: Any,
) -> FasterRCNN:
    """Faster R-CNN (Ren et al., NIPS 2015) with FPN (Lin et al., CVPR 2017).

    The model takes images as they come, (3, H, W) RGB in [0, 1], and does not resize them: that is the data's business.

    Args:
        num_classes: classes without background.
        body: the convolutional network under the pyramid.
        box_pooler: called with `featmap_names` and `strides` of the pyramid, returns the pooler of the box head.
        fpn_channels: channels of every pyramid level.
        head_channels: width of the two fully connected layers of the box head.
        anchor_sizes: anchor sides in pixels, one list per pyramid level and one for the extra coarsest level.
        anchor_aspect_ratios: height / width of the anchors, the same at all levels.
        faster_rcnn: any further argument of `torchvision.models.detection.FasterRCNN` (`rpn_*`, `box_*`).

    Raises:
        ConfigError: if `anchor_sizes` does not have one entry per level of the pyramid, or an argument is one of
            torchvision's that is fixed here.
    """
    _check_arguments(faster_rcnn)
    backbone = FPNBackbone(body, fpn_channels)
    levels = len(body.strides) + 1
    if len(anchor_sizes) != levels:
        raise ConfigError(
            f"model.anchor_sizes must have {levels} entries, one per pyramid level (strides {body.strides}, and one "
            f"more from pooling the last), got {len(anchor_sizes)}: {[list(sizes) for sizes in anchor_sizes]}"
        )
    pooler = box_pooler(featmap_names=backbone.level_names, strides=body.strides)
    model = FasterRCNN(
        backbone,
        rpn_anchor_generator=AnchorGenerator(
            tuple(tuple(sizes) for sizes in anchor_sizes), (tuple(anchor_aspect_ratios),) * levels
        ),
        box_roi_pool=pooler,
        box_head=TwoMLPHead(fpn_channels * pooler.output_size[0] * pooler.output_size[1], head_channels),
        box_predictor=FastRCNNPredictor(head_channels, num_classes + 1),
        **faster_rcnn,
    )
    model.transform = NormalizeAndBatch(body.image_mean, body.image_std, max(body.strides))
    return model


def _check_arguments(arguments: dict[str, Any]) -> None:
    # FasterRCNN hands what it does not know to its transform, which ignores it.
    known = [name for name in inspect.signature(FasterRCNN).parameters if name.startswith(("rpn_", "box_", "bbox_"))]
    fixed = {"rpn_anchor_generator", "box_roi_pool", "box_head", "box_predictor"}
    for name in arguments:
        if name not in known or name in fixed:
            raise ConfigError(f"model.{name} is not an argument of this model{did_you_mean(name, set(known) - fixed)}")
