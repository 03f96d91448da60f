"""What a body is: a convolutional network that gives feature maps at several strides."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from detpool.errors import ConfigError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Body(nn.Module):
    """A convolutional network that returns feature maps (N, C_l, H_l, W_l), finest first.

    Args:
        channels: C_l of each map.
        strides: stride of each map in pixels of the network's input, whole or not (see `FractionalRegionPool2d`).
        image_mean, image_std: per-channel normalisation the weights expect, for RGB images in [0, 1].
    """

    has_class_token = False
    """Whether the first of the tokens beside the last map is one of class."""

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[float],
        image_mean: Sequence[float] = IMAGENET_MEAN,
        image_std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.channels = list(channels)
        # Two factors of the square root of 2 are one of 2.
        self.strides = [round(s) if math.isclose(s, round(s), rel_tol=1e-9) else s for s in strides]
        self.image_mean = tuple(image_mean)
        self.image_std = tuple(image_std)

    def forward(self, images: Tensor) -> list[Tensor]:
        raise NotImplementedError

    def maps_and_prefix(self, images: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """The maps, and tokens (N, P, C) of the whole image beside the cells of the last one: a transformer's, or None.

        In evaluation the mean over passes where layers ask for several (`FractionalRegionPool2d`): detections of passes
        do not correspond, as the classifications do that Graham averages, and cells do.
        """
        passes = 1 if self.training else max(getattr(layer, "test_passes", 1) for layer in self.modules())
        maps, prefix = self.pass_once(images)
        for number in range(2, passes + 1):
            more, _ = self.pass_once(images)
            maps = [torch.lerp(mean, one, 1 / number) for mean, one in zip(maps, more, strict=True)]
        return maps, prefix

    def pass_once(self, images: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """What `maps_and_prefix` averages: of a convolutional network the maps alone."""
        return self(images), None

    def pyramid(self, out_channels: int) -> tuple[nn.Module, list[float]]:
        """A pyramid on maps by name, with a level by max pooling beyond the last, and strides of the others."""
        return FeaturePyramidNetwork(self.channels, out_channels, extra_blocks=LastLevelMaxPool()), self.strides

    def take_last_stage(self) -> tuple[nn.Module, int]:
        """Removes the last stage, which then works on each RoI (the "C4" detectors), and gives it away.

        Returns:
            the stage, a module on the maps of the stage before it, and the channels of its output.

        Raises:
            ConfigError: if the network has no stage that can be taken off.
        """
        raise ConfigError(
            f"model: this detector takes the last stage of its backbone for a head, and {type(self).__name__} has none "
            f"that works alone; backbone=small, backbone=resnet50 (and the other ResNets) and backbone=vgg16 have"
        )


class StagedBody(Body):
    """A body that is a stem and then stages, each on the output of the one before it.

    Args:
        stem, stages: modules by name. They become children of those names, so that state dicts are those of the
            library the network comes from.
        channels, strides: of every stage.
        first: the first stage whose map is returned.
        image_mean, image_std: see `Body`.
    """

    def __init__(
        self,
        stem: Mapping[str, nn.Module],
        stages: Mapping[str, nn.Module],
        channels: Sequence[int],
        strides: Sequence[float],
        first: int = 0,
        image_mean: Sequence[float] = IMAGENET_MEAN,
        image_std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__(channels[first:], strides[first:], image_mean, image_std)
        for name, module in {**stem, **stages}.items():
            self.add_module(name, module)
        self.stem_names, self.stage_names, self.first = list(stem), list(stages), first

    def forward(self, images: Tensor) -> list[Tensor]:
        x = images
        for name in self.stem_names:
            x = self.get_submodule(name)(x)
        maps = []
        for name in self.stage_names:
            x = self.get_submodule(name)(x)
            maps.append(x)
        return maps[self.first :]

    def take_last_stage(self) -> tuple[nn.Module, int]:
        if len(self.channels) < 2:
            raise ConfigError(
                "model: this detector takes the last stage of its backbone for a head, and then no map is left; let "
                "the backbone return at least two (a smaller backbone.min_stride, more backbone.widths)"
            )
        stage = self.get_submodule(name := self.stage_names.pop())
        delattr(self, name)
        self.strides.pop()
        return stage, self.channels.pop()
