"""Putting detectors together: what the builders of all detectors have in common."""

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
"""Called with `featmap_names` and `strides`, returns a pooler."""
HeadFactory = Callable[[tuple[int, int, int]], nn.Module]
"""Called with one tuple, (channels, height, width) of pooled RoIs, returns a head with `out_channels`."""
ProposalFactory = Callable[..., nn.Module]
"""Called with `map_names`, `channels` and `strides` of the maps that proposals come from, returns what makes them."""
RoIHeadsFactory = Callable[..., TwoStageHeads]
"""Called with the modules of the second stage (see `TwoStageHeads`), returns the second stage."""

PYRAMID_ANCHORS = ((32,), (64,), (128,), (256,), (512,))
SINGLE_MAP_ANCHORS = ((32, 64, 128, 256, 512),)
PYRAMID_RPN = functools.partial(ProposalNetwork, anchor_sizes=PYRAMID_ANCHORS)
SINGLE_MAP_RPN = functools.partial(ProposalNetwork, anchor_sizes=SINGLE_MAP_ANCHORS)


def assemble(
    backbone: Backbone, roi_heads: TwoStageHeads, rpn: ProposalFactory, proposals: nn.Module | None
) -> TwoStageDetector:
    """A detector from its parts.

    Args:
        backbone: images to feature maps.
        roi_heads: the second stage.
        rpn: builds the network that proposals come from; not called if there are `proposals`.
        proposals: where proposals come from in place of an RPN, such as `GivenProposals`; None: the RPN.

    Raises:
        ConfigError: if the RPN has not one list of anchors for each map.
    """
    if proposals is None:
        proposals = rpn(map_names=backbone.rpn_names, channels=backbone.rpn_channels, strides=backbone.rpn_strides)
    body = backbone.body
    coarsest = max(*body.strides, *backbone.strides)
    # No size is a multiple of a stride that is not whole; the next power of two is one of those of finer maps.
    divisor = coarsest if isinstance(coarsest, int) else 2 ** math.ceil(math.log2(coarsest))
    transform = NormalizeAndBatch(body.image_mean, body.image_std, divisor)
    return TwoStageDetector(backbone, proposals, roi_heads, transform)


def build_heads(factory: RoIHeadsFactory, parts: Sequence[nn.Module], **further: Any) -> Any:
    """The second stage of its parts.

    Args:
        further: what heads of this detector have beyond the parts of `TwoStageHeads`, by name.

    Raises:
        ConfigError: if the heads need something else, or do not take that.
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
    """A pooler on the maps of a backbone, and channels, height and width of what it gives, found by calling it.

    Args:
        name: the config key to name in errors.

    Raises:
        ConfigError: if the pooler refuses the maps' channels or its own settings.
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
