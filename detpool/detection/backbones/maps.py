"""What detectors see of a body: a feature pyramid, or a single map."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from detpool.detection.backbones.body import Body
from detpool.errors import ConfigError

RPN_MAP = "rpn"


class FPNBackbone(nn.Module):
    """Feature pyramid network (Lin et al., CVPR 2017) over all maps of a body, and a coarsest level by max pooling.

    Args:
        body: the feature maps to build on.
        out_channels: channels of every pyramid level.

    The result is a dict: "0" (finest) to "L-1", then "pool" (twice the coarsest stride), which only the RPN reads.

    Raises:
        ConfigError: if two maps have the same stride (a dilated body): no pyramid.
    """

    def __init__(self, body: Body, out_channels: int) -> None:
        super().__init__()
        if any(coarse <= fine for fine, coarse in zip(body.strides, body.strides[1:], strict=False)):
            raise ConfigError(
                f"model: the maps of a feature pyramid have increasing strides, got {body.strides}; "
                f"leave backbone.output_stride at 32"
            )
        self.body = body
        self.fpn = FeaturePyramidNetwork(body.channels, out_channels, extra_blocks=LastLevelMaxPool())
        self.out_channels = self.rpn_channels = out_channels
        self.level_names = [str(i) for i in range(len(body.channels))]
        self.rpn_names = [*self.level_names, "pool"]
        self.strides = list(body.strides)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.fpn(OrderedDict(zip(self.level_names, self.body(images), strict=True)))


class SingleMapBackbone(nn.Module):
    """The last map of a body, which proposals and RoIs share: the detectors before pyramids.

    Args:
        body: the feature maps; all but the last are inner ones of the network.
        neck: module that makes the map that RoIs are pooled from out of the last one, of the same size.
        neck_channels: channels the neck gives.
        separate_rpn: proposals come from the map before the last, of the same stride, as in R-FCN.

    The result is a dict: "0", and with a neck or `separate_rpn` "rpn".

    Raises:
        ConfigError: for `separate_rpn`, if the body has no such map.
    """

    def __init__(
        self, body: Body, neck: nn.Module | None = None, neck_channels: int = 0, separate_rpn: bool = False
    ) -> None:
        super().__init__()
        if separate_rpn and body.strides[-2:-1] != body.strides[-1:]:
            raise ConfigError(
                f"model: proposals come from the map before the last, whose stride must be that of the last, got "
                f"strides {body.strides}; a dilated last stage has it: backbone.output_stride={body.strides[-2:][0]}"
            )
        self.body = body
        self.neck = neck
        self.separate_rpn = separate_rpn
        self.out_channels = body.channels[-1] if neck is None else neck_channels
        self.rpn_channels = body.channels[-2 if separate_rpn else -1]
        self.level_names = ["0"]
        self.rpn_names = ["0"] if neck is None and not separate_rpn else [RPN_MAP]
        self.strides = body.strides[-1:]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.body(images)
        features = {"0": maps[-1] if self.neck is None else self.neck(maps[-1])}
        if self.rpn_names == [RPN_MAP]:
            features[RPN_MAP] = maps[-2] if self.separate_rpn else maps[-1]
        return features
