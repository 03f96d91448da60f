"""Base classes of bodies: networks that return feature maps at several strides."""

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
    """A network that returns feature maps (N, C_l, H_l, W_l), finest first.

    Args:
        channels: C_l of each map.
        strides: stride of each map in pixels of the network's input; may be fractional (see `FractionalRegionPool2d`).
        image_mean, image_std: per-channel normalization that the weights expect, for RGB images in [0, 1].
    """

    has_class_token = False
    """Whether the first of the prefix tokens (see `maps_and_prefix`) is a class token."""

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[float],
        image_mean: Sequence[float] = IMAGENET_MEAN,
        image_std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.channels = list(channels)
        # Rounding errors are removed: two factors of sqrt(2) make exactly 2.
        self.strides = [round(s) if math.isclose(s, round(s), rel_tol=1e-9) else s for s in strides]
        self.image_mean = tuple(image_mean)
        self.image_std = tuple(image_std)

    def forward(self, images: Tensor) -> list[Tensor]:
        raise NotImplementedError

    def maps_and_prefix(self, images: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """Returns the maps, and the prefix tokens (N, P, C) of a transformer (class token and registers) or None.

        In evaluation, maps are averaged over several passes if layers request it (`FractionalRegionPool2d`). Graham
        averages classifications instead, but detections of different passes do not correspond to each other.
        """
        passes = 1 if self.training else max(getattr(layer, "test_passes", 1) for layer in self.modules())
        maps, prefix = self.pass_once(images)
        for number in range(2, passes + 1):
            more, _ = self.pass_once(images)
            maps = [torch.lerp(mean, one, 1 / number) for mean, one in zip(maps, more, strict=True)]
        return maps, prefix

    def pass_once(self, images: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """Returns the maps and prefix tokens of a single pass; a convolutional network has no prefix tokens (None)."""
        return self(images), None

    def pyramid(self, out_channels: int) -> tuple[nn.Module, list[float]]:
        """Builds a feature pyramid on the maps by name, and returns it with the strides of its levels.

        The pyramid has one more level, by max pooling of the last, which is not among the strides.
        """
        return FeaturePyramidNetwork(self.channels, out_channels, extra_blocks=LastLevelMaxPool()), self.strides

    def take_last_stage(self) -> tuple[nn.Module, int]:
        """Removes the last stage and returns it, to be applied to each RoI ("C4" detectors).

        Returns:
            The stage, a module for maps of the stage before it, and its output channels.

        Raises:
            ConfigError: If the last stage of the network cannot be removed.
        """
        raise ConfigError(
            f"model: this detector takes the last stage of its backbone for a head, and {type(self).__name__} has none "
            f"that works alone; backbone=small, backbone=resnet50 (and the other ResNets) and backbone=vgg16 have"
        )


class StagedBody(Body):
    """A body of a stem followed by stages, each applied to the output of the previous one.

    Args:
        stem, stages: modules by name. They become children with these names, so that state dicts keep the names of the
            library that the network comes from.
        channels, strides: output channels and stride of each stage.
        first: index of the first stage to return the map of.
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
