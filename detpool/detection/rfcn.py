"""R-FCN and Light-Head R-CNN: position-sensitive maps, and little or nothing computed on each RoI."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

from detpool.detection.assemble import (
    SINGLE_MAP_RPN,
    PoolerFactory,
    ProposalFactory,
    RoIHeadsFactory,
    assemble,
    build_heads,
    build_pooler,
)
from detpool.detection.backbones import Body, SingleMapBackbone
from detpool.detection.detector import TwoStageDetector
from detpool.detection.heads import LargeSeparableConv, Vote, VotePredictor, build_predictor
from detpool.detection.roi_heads import TwoStageHeads
from detpool.detection.slots import LayerFactory
from detpool.errors import ConfigError

HARDEST_128 = functools.partial(TwoStageHeads, batch_size_per_image=128, hard_examples=True)
HARD_EXAMPLES = functools.partial(TwoStageHeads, hard_examples=True)


def rfcn(
    num_classes: int,
    body: Body,
    box_pooler: PoolerFactory,
    reduced_channels: int = 1024,
    separate_rpn: bool = True,
    context: LayerFactory | None = None,
    rpn: ProposalFactory = SINGLE_MAP_RPN,
    proposals: nn.Module | None = None,
    roi_heads: RoIHeadsFactory = HARDEST_128,
) -> TwoStageDetector:
    """R-FCN (Dai et al., NIPS 2016): every bin of a RoI reads its own score maps, and the bins vote.

    A 1 x 1 convolution reduces the last map, and another one computes k^2 (C + 1) score maps and 4 k^2 maps of
    class-agnostic box deltas, for the k x k bins of the pooler. RoIs are only pooled and averaged over bins.

    Args:
        num_classes: number of classes C without background.
        body: the convolutional network; the paper's has a dilated last stage, `output_stride=16`.
        box_pooler: builds a position-sensitive pooler; its output size is k.
        reduced_channels: number of channels after the first 1 x 1 convolution.
        separate_rpn: whether proposals come from the map before the last ("conv4"), as in the paper, or the last one.
        context: builds a shape-preserving layer on the body's last map; None: none.
        rpn, proposals: see `faster_rcnn_c5`.
        roi_heads: builds the second stage; by default with online hard example mining, the hardest 128 per image.

    Raises:
        ConfigError: If the pooler is not position-sensitive, or the parts do not fit each other.
    """
    outputs = num_classes + 1 + 4
    height, width = _output_size(box_pooler)
    maps = nn.Conv2d(reduced_channels, outputs * height * width, kernel_size=1)
    nn.init.normal_(maps.weight, std=0.01)
    neck = nn.Sequential(nn.Conv2d(body.channels[-1], reduced_channels, kernel_size=1), nn.ReLU(), maps)
    backbone = SingleMapBackbone(body, neck, maps.out_channels, separate_rpn, context)
    pooler, shape = build_pooler(box_pooler, backbone, "pooler")
    if shape[0] != outputs:
        raise ConfigError(
            f"pooler: R-FCN's {height} x {width} bins read {maps.out_channels} maps, each {outputs} of its own, but "
            f"the pooler gives {shape[0]} channels; it must be position-sensitive: pooler=ps_roi_pool, ps_roi_align, "
            f"ps_pr_roi_pool, or pooler=pool pooler.operator.channels=position_sensitive"
        )
    heads = build_heads(roi_heads, [pooler, Vote(), VotePredictor(num_classes + 1)])
    return assemble(backbone, heads, rpn, proposals)


def light_head_rcnn(
    num_classes: int,
    body: Body,
    box_pooler: PoolerFactory,
    head_channels: int = 2048,
    thin_channels: int = 10,
    mid_channels: int = 256,
    kernel_size: int = 15,
    class_agnostic: bool = False,
    separate_rpn: bool = True,
    context: LayerFactory | None = None,
    rpn: ProposalFactory = SINGLE_MAP_RPN,
    proposals: nn.Module | None = None,
    roi_heads: RoIHeadsFactory = HARD_EXAMPLES,
) -> TwoStageDetector:
    """Light-Head R-CNN (Li et al., arXiv:1711.07264).

    A large separable convolution computes a thin map, and one fully connected layer is applied to each RoI.

    Args:
        num_classes: number of classes without background.
        body: the convolutional network; the paper's has a dilated last stage, `output_stride=16`.
        box_pooler: builds the pooler; position-sensitive in the paper, except in ablations.
        head_channels: width of the fully connected layer.
        thin_channels: number of channels of the thin map per bin (the paper: 10, thus 490 for 7 x 7).
        mid_channels: number of channels within the separable convolution (the paper: 64 or 256).
        kernel_size: kernel size of the separable convolution, odd.
        class_agnostic: whether to predict one box per RoI instead of one per class.
        separate_rpn: whether proposals come from the map before the last, or from the last one.
        context: builds a shape-preserving layer on the body's last map; None: none.
        rpn, proposals: see `faster_rcnn_c5`.
        roi_heads: builds the second stage; by default with online hard example mining.

    Raises:
        ConfigError: If the parts do not fit each other.
    """
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ConfigError(f"model.kernel_size must be odd, got {kernel_size}")
    height, width = _output_size(box_pooler)
    thin = thin_channels * height * width
    neck = nn.Sequential(LargeSeparableConv(body.channels[-1], thin, mid_channels, kernel_size), nn.ReLU())
    backbone = SingleMapBackbone(body, neck, thin, separate_rpn, context)
    pooler, shape = build_pooler(box_pooler, backbone, "pooler")
    head = nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], head_channels), nn.ReLU())
    predictor = build_predictor(head_channels, num_classes, class_agnostic)
    return assemble(backbone, build_heads(roi_heads, [pooler, head, predictor]), rpn, proposals)


def _output_size(box_pooler: PoolerFactory) -> tuple[int, int]:
    """Output size (height, width) of a pooler, needed to build the maps before the pooler itself."""
    pooler: Any = box_pooler(featmap_names=["0"], strides=[1])
    height, width = pooler.output_size
    return height, width
