"""What a body is, and the feature pyramid that goes on top of it."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Body(nn.Module):
    """A convolutional network that returns feature maps at increasing strides.

    Args:
        stages: module returning a list of feature maps (N, C_l, H_l, W_l), finest first.
        channels: C_l of each map.
        strides: stride of each map in pixels of the network's input.
        image_mean, image_std: per-channel normalisation the weights expect, for RGB images in [0, 1].
    """

    def __init__(
        self,
        stages: nn.Module,
        channels: list[int],
        strides: list[int],
        image_mean: tuple[float, ...] = IMAGENET_MEAN,
        image_std: tuple[float, ...] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.stages = stages
        self.channels = channels
        self.strides = strides
        self.image_mean = image_mean
        self.image_std = image_std

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.stages(images)


class FPNBackbone(nn.Module):
    """Feature pyramid network (Lin et al., CVPR 2017) over all maps of a body, and a coarsest level by max pooling.

    Args:
        body: the feature maps to build on.
        out_channels: channels of every pyramid level.

    The result is a dict: "0" (finest) to "L-1", then "pool" (twice the coarsest stride), which only the RPN reads.
    """

    def __init__(self, body: Body, out_channels: int) -> None:
        super().__init__()
        self.body = body
        self.fpn = FeaturePyramidNetwork(body.channels, out_channels, extra_blocks=LastLevelMaxPool())
        self.out_channels = out_channels
        self.level_names = [str(i) for i in range(len(body.channels))]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.fpn(OrderedDict(zip(self.level_names, self.body(images), strict=True)))
