"""Faster R-CNN and Mask R-CNN: on a feature pyramid, on a single map, and with the last stage as the head."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

from detpool.detection.assemble import (
    PYRAMID_RPN,
    SINGLE_MAP_RPN,
    Backbone,
    HeadFactory,
    PoolerFactory,
    ProposalFactory,
    RoIHeadsFactory,
    assemble,
    build_pooler,
)
from detpool.detection.backbones import Body, FPNBackbone, SingleMapBackbone
from detpool.detection.detector import TwoStageDetector
from detpool.detection.heads import (
    ClassMapHead,
    FlattenHead,
    ImageContext,
    StageHead,
    build_box_predictor,
    build_predictor,
)
from detpool.detection.iou_heads import build_roi_heads
from detpool.detection.roi_heads import TwoStageHeads
from detpool.detection.slots import LayerFactory
from detpool.errors import ConfigError, check_numbers

HeadContext = Literal["cls", "mean", "attention"]


def faster_rcnn_fpn(
    num_classes: int,
    body: Body,
    box_pooler: PoolerFactory,
    head_pool: HeadFactory = FlattenHead,
    mask_pooler: PoolerFactory | None = None,
    fpn_channels: int = 256,
    mask_channels: int = 256,
    mask_convolutions: int = 4,
    class_agnostic: bool = False,
    iou_pooler: PoolerFactory | None = None,
    iou_channels: int = 1024,
    context: LayerFactory | None = None,
    head_context: HeadContext | None = None,
    rpn: ProposalFactory = PYRAMID_RPN,
    proposals: nn.Module | None = None,
    roi_heads: RoIHeadsFactory = TwoStageHeads,
) -> TwoStageDetector:
    """Faster R-CNN (Ren et al., NIPS 2015) with FPN (Lin et al., CVPR 2017); with masks Mask R-CNN (ICCV 2017).

    With ResNet-50 and the default poolers and heads, its state dict is that of torchvision's
    `fasterrcnn_resnet50_fpn` or `maskrcnn_resnet50_fpn`.

    Args:
        num_classes: number of classes without background.
        body: the convolutional network below the pyramid.
        box_pooler: builds the pooler of the box head from `featmap_names` and `strides` of the pyramid.
        head_pool: builds the box head from one tuple (channels, height, width), the shape of pooled RoIs.
        mask_pooler: like `box_pooler`, for masks; None: no masks. Masks have twice the resolution of the pooler.
        fpn_channels: number of channels of every pyramid level.
        mask_channels: number of channels of the mask head's convolutions.
        mask_convolutions: number of 3 x 3 convolutions of the mask head.
        class_agnostic: whether to predict one box per RoI instead of one per class.
        iou_pooler: like `box_pooler`, for an IoU head, which requires `roi_heads=IoUHeads` (see `iou_net`); None: no
            IoU head.
        iou_channels: width of the IoU head's two fully connected layers.
        context: builds a shape-preserving layer on the body's last map, before the pyramid; None: none.
        head_context: a vector of the whole image for the box head, pooled from the tokens of the body's last map: the
            "mean" of its cells, the class token ("cls") of a transformer that has one, or "attention" (see
            `ImageContext`); None: only RoIs.
        rpn: builds the region proposal network from `map_names`, `channels` and `strides`; its `anchor_sizes` are one
            list for each pyramid level and one for the extra coarsest level.
        proposals: module that provides proposals in place of the RPN, such as `GivenProposals`; None: the RPN.
        roi_heads: builds the second stage from poolers, heads and predictors.

    Raises:
        ConfigError: If the parts do not fit each other.
    """
    backbone = FPNBackbone(body, fpn_channels, context)
    parts = box_head(backbone, box_pooler, head_pool, num_classes, class_agnostic)
    parts += mask_head(backbone, mask_pooler, mask_channels, mask_convolutions, num_classes)
    heads = build_roi_heads(roi_heads, parts, backbone, iou_pooler, iou_channels, num_classes)
    add_image_context(heads, head_context, backbone)
    return assemble(backbone, heads, rpn, proposals)


def faster_rcnn_c5(
    num_classes: int,
    body: Body,
    box_pooler: PoolerFactory,
    head_pool: HeadFactory = FlattenHead,
    mask_pooler: PoolerFactory | None = None,
    mask_channels: int = 256,
    mask_convolutions: int = 4,
    class_agnostic: bool = False,
    iou_pooler: PoolerFactory | None = None,
    iou_channels: int = 1024,
    context: LayerFactory | None = None,
    head_context: HeadContext | None = None,
    rpn: ProposalFactory = SINGLE_MAP_RPN,
    proposals: nn.Module | None = None,
    roi_heads: RoIHeadsFactory = TwoStageHeads,
) -> TwoStageDetector:
    """Faster or Mask R-CNN on the last map only: "C5", at stride 32, or "DC5", dilated, at stride 16.

    The stride is that of the body (`output_stride`). The Mask R-CNN paper (He et al., ICCV 2017, table 2d) uses this
    model to compare poolings at stride 32. With `GivenProposals` it is Fast R-CNN (Girshick, ICCV 2015), and with
    `SpatialPyramidPooler` in addition it is the detector of SPP-Net (He et al., ECCV 2014), here trained end to end.

    Arguments that are not listed are those of `faster_rcnn_fpn`.

    Args:
        rpn: builds the region proposal network; its `anchor_sizes` are one list.

    Raises:
        ConfigError: if the parts do not fit each other.
    """
    backbone = SingleMapBackbone(body, context=context)
    parts = box_head(backbone, box_pooler, head_pool, num_classes, class_agnostic)
    parts += mask_head(backbone, mask_pooler, mask_channels, mask_convolutions, num_classes)
    heads = build_roi_heads(roi_heads, parts, backbone, iou_pooler, iou_channels, num_classes)
    add_image_context(heads, head_context, backbone)
    return assemble(backbone, heads, rpn, proposals)


def faster_rcnn_c4(
    num_classes: int,
    body: Body,
    box_pooler: PoolerFactory,
    mask_pooler: PoolerFactory | None = None,
    mask_channels: int = 256,
    class_agnostic: bool = False,
    iou_pooler: PoolerFactory | None = None,
    iou_channels: int = 1024,
    context: LayerFactory | None = None,
    rpn: ProposalFactory = SINGLE_MAP_RPN,
    proposals: nn.Module | None = None,
    roi_heads: RoIHeadsFactory = TwoStageHeads,
) -> TwoStageDetector:
    """Faster or Mask R-CNN "C4": RoIs are pooled from the map before the last stage, which works on each RoI.

    Deep Residual Learning (He et al., CVPR 2016, appendix) introduced it; Mask R-CNN (figure 4, left, and table 2c)
    predicts masks from the same stage.

    Arguments that are not listed are those of `faster_rcnn_fpn`. The last stage halves the resolution that the poolers
    of boxes and masks give (the paper: 14 x 14 to 7 x 7), and the masks double it again.

    Args:
        mask_channels: channels of the deconvolution before the masks.
        rpn: builds the region proposal network; its `anchor_sizes` are one list.

    Raises:
        ConfigError: if the parts do not fit each other.
    """
    stage, channels = body.take_last_stage()
    backbone = SingleMapBackbone(body, context=context)
    pooler, _ = build_pooler(box_pooler, backbone, "pooler")
    parts: list[nn.Module] = [pooler, StageHead(stage, channels)]
    parts.append(build_predictor(channels, num_classes, class_agnostic))
    if mask_pooler is not None:
        pooler, _ = _build_mask_pooler(mask_pooler, backbone)
        parts += [pooler, stage, MaskRCNNPredictor(channels, mask_channels, num_classes + 1)]
    heads = build_roi_heads(roi_heads, parts, backbone, iou_pooler, iou_channels, num_classes)
    return assemble(backbone, heads, rpn, proposals)


def box_head(
    backbone: Backbone, make_pooler: PoolerFactory, make_head: HeadFactory, num_classes: int, class_agnostic: bool
) -> list[nn.Module]:
    """Builds pooler, head and predictor of boxes."""
    pooler, shape = build_pooler(make_pooler, backbone, "pooler")
    head: Any = make_head(shape)
    return [pooler, head, build_box_predictor(head, num_classes, class_agnostic)]


def add_image_context(heads: TwoStageHeads, pool: HeadContext | None, backbone: Backbone) -> None:
    """Adds a vector of the whole image to the box heads (see `head_context` of `faster_rcnn_fpn`); None: nothing.

    Raises:
        ConfigError: If the box head or the body does not support it.
    """
    if pool is None:
        return
    body = backbone.body
    if isinstance(heads.box_head, ClassMapHead):
        raise ConfigError(f"model.head_context={pool} is added to vectors of RoIs, and head_pool=class_maps gives maps")
    if pool == "cls" and not body.has_class_token:
        raise ConfigError(
            f"model.head_context=cls: {type(body).__name__} has no class token; backbone=vit_small has, and mean and "
            f"attention need none"
        )
    backbone.image_tokens = True
    heads.image_context = ImageContext(pool, body.channels[-1], heads.box_head.out_channels, body.strides[-1])


def mask_head(
    backbone: Backbone, make_pooler: PoolerFactory | None, channels: int, convolutions: int, num_classes: int
) -> list[nn.Module]:
    """Builds pooler, head and predictor of masks; returns an empty list if `make_pooler` is None."""
    if make_pooler is None:
        return []
    check_numbers("model", "at least 0", lambda n: n >= 0, mask_convolutions=convolutions)
    pooler, channels_in = _build_mask_pooler(make_pooler, backbone)
    head = MaskRCNNHeads(channels_in, (channels,) * convolutions, dilation=1)
    return [pooler, head, MaskRCNNPredictor(channels if convolutions else channels_in, channels, num_classes + 1)]


def _build_mask_pooler(factory: PoolerFactory, backbone: Backbone) -> tuple[nn.Module, int]:
    pooler, (channels, height, width) = build_pooler(factory, backbone, "mask_pooler")
    if height != width:
        raise ConfigError(
            f"mask_pooler: masks are square, so as many bins high as wide are accepted, got {height} x {width}"
        )
    return pooler, channels
