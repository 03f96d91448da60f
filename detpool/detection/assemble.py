"""Common functions of the builders of all detectors."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from detpool.detection.backbones import FPNBackbone, SingleMapBackbone
from detpool.detection.detector import TwoStageDetector
from detpool.detection.proposals import ProposalNetwork
from detpool.detection.roi_heads import TwoStageHeads
from detpool.detection.transform import NormalizeAndBatch
from detpool.errors import ConfigError

Backbone = FPNBackbone | SingleMapBackbone
PoolerFactory = Callable[..., nn.Module]
"""Function of `featmap_names` and `strides` that returns a pooler."""
HeadFactory = Callable[[tuple[int, int, int]], nn.Module]
"""Function of one tuple (channels, height, width), the shape of pooled RoIs; returns a head with `out_channels`."""
ProposalFactory = Callable[..., nn.Module]
"""Function of `map_names`, `channels` and `strides` of feature maps that returns a region proposal network."""
RoIHeadsFactory = Callable[..., TwoStageHeads]
"""Function of the modules of the second stage (see `TwoStageHeads`) that returns the second stage."""

PYRAMID_ANCHORS = ((32,), (64,), (128,), (256,), (512,))
SINGLE_MAP_ANCHORS = ((32, 64, 128, 256, 512),)
PYRAMID_RPN = functools.partial(ProposalNetwork, anchor_sizes=PYRAMID_ANCHORS)
SINGLE_MAP_RPN = functools.partial(ProposalNetwork, anchor_sizes=SINGLE_MAP_ANCHORS)


def assemble(
    backbone: Backbone, roi_heads: TwoStageHeads, rpn: ProposalFactory, proposals: nn.Module | None
) -> TwoStageDetector:
    """Assembles a detector from its parts.

    Args:
        backbone: network from images to feature maps.
        roi_heads: the second stage.
        rpn: function that builds the region proposal network; not called if `proposals` is given.
        proposals: module that provides proposals in place of an RPN, such as `GivenProposals`; None: the RPN.

    Raises:
        ConfigError: If the RPN does not have one list of anchor sizes for each map.
    """
    if proposals is None:
        proposals = rpn(map_names=backbone.rpn_names, channels=backbone.rpn_channels, strides=backbone.rpn_strides)
    body = backbone.body
    coarsest = max(*body.strides, *backbone.strides)
    # Sizes cannot be multiples of a fractional stride, so take the next power of two, which finer maps divide too.
    divisor = coarsest if isinstance(coarsest, int) else 2 ** math.ceil(math.log2(coarsest))
    transform = NormalizeAndBatch(body.image_mean, body.image_std, divisor)
    return TwoStageDetector(backbone, proposals, roi_heads, transform)


def build_heads(factory: RoIHeadsFactory, parts: Sequence[nn.Module], **further: Any) -> Any:
    """Builds the second stage from its parts.

    Args:
        factory: function that builds the second stage.
        parts: the modules of `TwoStageHeads`.
        further: further arguments for the heads of this detector, by name.

    Raises:
        ConfigError: If the heads require other arguments, or do not accept these.
    """
    arguments = inspect.signature(factory).parameters.values()
    missing = {a.name for a in arguments if a.kind is a.KEYWORD_ONLY and a.default is a.empty} - further.keys()
    takes_all = any(a.kind is a.VAR_KEYWORD for a in arguments)
    unknown = set() if takes_all else further.keys() - {a.name for a in arguments}
    if missing or unknown:
        kind = getattr(factory, "func", factory)
        raise ConfigError(
            f"model.roi_heads: {getattr(kind, '__name__', kind)} {'needs' if missing else 'has no'} "
            f"{', '.join(sorted(missing or unknown))}; of detpool.detection, CascadeHeads goes with "
            f"model=cascade_rcnn, IoUHeads with an iou_pooler (iou_pooler=pr_roi_pool), TwoStageHeads with neither"
        )
    return factory(*parts, **further)


def build_pooler(factory: PoolerFactory, backbone: Backbone, name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    """Builds a pooler on the maps of a backbone; returns it with (channels, height, width) of its output.

    Args:
        factory: function that builds the pooler.
        backbone: the backbone.
        name: the config key for error messages.

    Raises:
        ConfigError: If the pooler rejects the maps' channels or its own settings.
    """
    try:
        pooler = factory(featmap_names=backbone.level_names, strides=backbone.strides)
        maps = {level: torch.zeros(1, backbone.out_channels, 8, 8) for level in backbone.level_names}
        with torch.no_grad():
            pooled = pooler(maps, [torch.tensor([[0.0, 0.0, 16.0, 16.0]])], [(32, 32)])
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{name}, on maps of {backbone.out_channels} channels: {error}") from error
    channels, height, width = pooled.shape[1:]
    return pooler, (channels, height, width)
