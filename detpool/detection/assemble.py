"""Putting detectors together: what the builders of all detectors have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import Parameter
from typing import Any

import torch
from torch import nn

from detpool.detection.backbones import FPNBackbone, SingleMapBackbone
from detpool.detection.detector import TwoStageDetector
from detpool.detection.proposals import GivenProposals, JitteredProposals, ProposalNetwork
from detpool.detection.roi_heads import TwoStageHeads
from detpool.detection.transform import NormalizeAndBatch
from detpool.errors import ConfigError, did_you_mean
from detpool.signatures import hands_on, parameters_of

Backbone = FPNBackbone | SingleMapBackbone
PoolerFactory = Callable[..., nn.Module]
"""Called with `featmap_names` and `strides`, returns a pooler."""
HeadFactory = Callable[[tuple[int, int, int]], nn.Module]
"""Called with channels, height and width of pooled RoIs, returns a head with `out_channels`."""

PYRAMID_ANCHORS = ((32,), (64,), (128,), (256,), (512,))
SINGLE_MAP_ANCHORS = ((32, 64, 128, 256, 512),)
ASPECT_RATIOS = (0.5, 1.0, 2.0)

_PROPOSALS: dict[str, Callable[..., nn.Module]] = {
    "rpn": ProposalNetwork,
    "given": GivenProposals,
    "jittered": JitteredProposals,
}


def _keywords(function: Callable[..., Any]) -> dict[str, Parameter]:
    """The settings a class takes: keyword-only, or all of them where it has no others."""
    parameters = parameters_of(function)
    return {name: p for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY} or parameters


RPN_SETTINGS = {f"rpn_{name}": p for kind in _PROPOSALS.values() for name, p in _keywords(kind).items()}
"""Arguments of `assemble` that are those of some kind of proposals, by their names there."""
BOX_SETTINGS = {
    name if name == "bbox_reg_weights" else f"box_{name}": p for name, p in _keywords(TwoStageHeads).items()
}
"""Arguments of `assemble` that are those of the second stage."""


def assemble(
    backbone: Backbone,
    heads: Sequence[nn.Module | None],
    make_heads: Callable[..., TwoStageHeads] = TwoStageHeads,
    anchor_sizes: Sequence[Sequence[int]] = SINGLE_MAP_ANCHORS,
    anchor_aspect_ratios: Sequence[float] = ASPECT_RATIOS,
    proposals: str = "rpn",
    **arguments: Any,
) -> TwoStageDetector:
    """A detector from its parts.

    Args:
        backbone: images to feature maps.
        heads: the modules that `make_heads` begins with: box pooler, head and predictor, and those of masks.
        make_heads: builds the second stage.
        anchor_sizes: anchor sides in pixels, one list per map that proposals come from.
        anchor_aspect_ratios: height / width of the anchors, the same on all maps.
        proposals: "rpn"; "given": with the batch, from files (`GivenProposals`); or "jittered": the objects themselves,
            moved (`JitteredProposals`).
        arguments: `rpn_*` are arguments of `ProposalNetwork` (`GivenProposals`, `JitteredProposals`), `box_*` of
            `make_heads`; `bbox_reg_weights` too. Those of another kind of proposals have no effect, so that a config
            can change the kind alone.

    Raises:
        ConfigError: for an unknown argument or kind of proposals, a value out of range, or if `anchor_sizes` does not
            have one entry per map.
    """
    if proposals not in _PROPOSALS:
        raise ConfigError(f"model.proposals must be one of {', '.join(_PROPOSALS)}, got {proposals!r}")
    if proposals == "rpn" and len(anchor_sizes) != len(backbone.rpn_names):
        raise ConfigError(
            f"model.anchor_sizes must have {len(backbone.rpn_names)} entries, one per map that proposals come from "
            f"(strides {backbone.strides}{', and the last pooled' if len(backbone.rpn_names) > 1 else ''}), got "
            f"{len(anchor_sizes)}: {[list(sizes) for sizes in anchor_sizes]}"
        )
    for name in arguments:
        if name not in RPN_SETTINGS and name not in BOX_SETTINGS:
            known = RPN_SETTINGS | BOX_SETTINGS
            raise ConfigError(f"model.{name} is not an argument of this model{did_you_mean(name, known)}")
    for name in ("rpn_batch_size_per_image", "box_batch_size_per_image"):
        if arguments.get(name, 1) < 1:
            raise ConfigError(f"model.{name} must be at least 1, got {arguments[name]}")
    own = _keywords(_PROPOSALS[proposals])
    rpn_arguments = {n.removeprefix("rpn_"): v for n, v in arguments.items() if n.removeprefix("rpn_") in own}
    box_arguments = {n.removeprefix("box_"): v for n, v in arguments.items() if n in BOX_SETTINGS}
    rpn: nn.Module
    if proposals == "rpn":
        rpn = ProposalNetwork(
            backbone.rpn_names, backbone.rpn_channels, anchor_sizes, anchor_aspect_ratios, **rpn_arguments
        )
    else:
        try:
            rpn = _PROPOSALS[proposals](**rpn_arguments)
        except ValueError as error:
            raise ConfigError(f"model.rpn_{error}") from error
    body = backbone.body
    transform = NormalizeAndBatch(body.image_mean, body.image_std, max(body.strides))
    return TwoStageDetector(backbone, rpn, make_heads(*heads, **box_arguments), transform)


with_settings = hands_on(
    parameters_of(assemble) | RPN_SETTINGS | BOX_SETTINGS, without=("backbone", "heads", "make_heads", "arguments")
)
"""Decorates a builder that hands its `**arguments` on to `assemble`, so that its signature names them."""


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
