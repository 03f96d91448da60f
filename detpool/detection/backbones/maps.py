"""Backbones that detectors use: a feature pyramid or a single map on top of a body."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from detpool.detection.backbones.body import Body
from detpool.detection.slots import LayerFactory, build_layer, tried
from detpool.errors import ConfigError

RPN_MAP = "rpn"
IMAGE_MAP, IMAGE_PREFIX = "image", "image_prefix"
"""Names under which the last map and a transformer's prefix tokens are returned if `image_tokens` is set."""


class FPNBackbone(nn.Module):
    """A pyramid over all maps of a body, with a coarsest level by max pooling.

    It is the feature pyramid network (Lin et al., CVPR 2017), or for a plain vision transformer the simple feature
    pyramid (Li et al., ViTDet, arXiv:2203.16527, 2022).

    Args:
        body: network that computes the feature maps.
        out_channels: channels of every pyramid level.
        context: layer that is applied to the body's last map before the pyramid, and keeps its shape (as in UPerNet:
            Xiao et al., arXiv:1807.10221, 2018); None for no such layer.

    The result is a dict: "0" (finest) to "L-1", then "pool" (twice the coarsest stride), which only the RPN reads.

    Raises:
        ConfigError: If the strides of the maps do not increase (a dilated body), or `context` does not fit.
    """

    def __init__(self, body: Body, out_channels: int, context: LayerFactory | None = None) -> None:
        super().__init__()
        if any(coarse <= fine for fine, coarse in zip(body.strides, body.strides[1:], strict=False)):
            raise ConfigError(
                f"model: the maps of a feature pyramid have increasing strides, got {body.strides}; "
                f"leave backbone.output_stride at 32"
            )
        self.body = body
        self.context = _build_context(context, body)
        self.fpn, strides = body.pyramid(out_channels)
        self.out_channels = self.rpn_channels = out_channels
        self.level_names = [str(i) for i in range(len(strides))]
        self.rpn_names = [*self.level_names, "pool"]
        self.strides, self.rpn_strides = list(strides), [*strides, 2 * strides[-1]]
        self.image_tokens = False

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps, image = _maps(self, images)
        return {**self.fpn(OrderedDict((str(i), map) for i, map in enumerate(maps))), **image}


class SingleMapBackbone(nn.Module):
    """The last map of a body, shared by proposals and RoIs, as in detectors before feature pyramids.

    Args:
        body: network that computes the feature maps; only the last is used, and with `separate_rpn` the one before it.
        neck: module that turns the last map into the map that RoIs are pooled from, of the same size.
        neck_channels: output channels of the neck.
        separate_rpn: make proposals from the map before the last, of the same stride, as in R-FCN.
        context: layer that is applied to the last map before neck and RPN, and keeps its shape; None for no such layer.

    The result is a dict with "0" and, with a neck or `separate_rpn`, "rpn".

    Raises:
        ConfigError: If `separate_rpn` is set and the body has no such map, or `context` does not fit.
    """

    def __init__(
        self,
        body: Body,
        neck: nn.Module | None = None,
        neck_channels: int = 0,
        separate_rpn: bool = False,
        context: LayerFactory | None = None,
    ) -> None:
        super().__init__()
        if separate_rpn and body.strides[-2:-1] != body.strides[-1:]:
            raise ConfigError(
                f"model: proposals come from the map before the last, whose stride must be that of the last, got "
                f"strides {body.strides}; a last stage that can be dilated, of resnet50, small or lite0, has it with "
                f"backbone.output_stride={body.strides[-2:][0]}; others take model.separate_rpn=false"
            )
        self.body = body
        self.context = _build_context(context, body)
        self.neck = neck
        self.separate_rpn = separate_rpn
        self.out_channels = body.channels[-1] if neck is None else neck_channels
        self.rpn_channels = body.channels[-2 if separate_rpn else -1]
        self.level_names = ["0"]
        self.rpn_names = ["0"] if neck is None and not separate_rpn else [RPN_MAP]
        self.strides = body.strides[-1:]
        self.rpn_strides = body.strides[-1:]
        self.image_tokens = False

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps, image = _maps(self, images)
        features = {"0": maps[-1] if self.neck is None else self.neck(maps[-1]), **image}
        if self.rpn_names == [RPN_MAP]:
            features[RPN_MAP] = maps[-2] if self.separate_rpn else maps[-1]
        return features


def _build_context(context: LayerFactory | None, body: Body) -> nn.Module | None:
    if context is None:
        return None
    before = torch.zeros(1, body.channels[-1], 8, 8)
    layer = build_layer(context, body.channels[-1], "context")
    after = tried(layer, before, "context")
    if after.shape != before.shape:
        raise ConfigError(f"context must keep the shape of a map: {tuple(before.shape)} became {tuple(after.shape)}")
    return layer


def _maps(backbone: FPNBackbone | SingleMapBackbone, images: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Returns the body's maps, with `context` applied to the last, and the entries for `image_tokens`, if it is set."""
    maps, prefix = backbone.body.maps_and_prefix(images)
    if backbone.context is not None:
        maps = [*maps[:-1], backbone.context(maps[-1])]
    image = {IMAGE_MAP: maps[-1]} if backbone.image_tokens else {}
    return maps, image | ({IMAGE_PREFIX: prefix} if image and prefix is not None else {})
