"""The inputs on which operators are timed: one function per workload, which returns the same numbers on every call."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

IMAGE_SIZE = (800, 1216)
"""Height and width in pixels of an image of COCO after resizing and padding."""
IMAGES = 2
CLASSES = 21
"""Output channels of a position-sensitive head: VOC's 20 classes and background."""


@dataclass(frozen=True)
class Workload:
    """Features and boxes of one pooling call."""

    name: str
    features: tuple[Tensor, ...]
    """(N, C, H_l, W_l) float32 contiguous, finest level first"""
    strides: tuple[int, ...]
    """image pixels per feature cell of each level"""
    boxes: tuple[Tensor, ...]
    """for each image (L, 4) float32, x1, y1, x2, y2 in image pixels"""
    image_size: tuple[int, int]
    """height and width in pixels"""
    output_size: tuple[int, int]
    """bins"""
    position_sensitive: bool = False
    """whether C is the number of output channels times the number of bins"""

    @property
    def rois(self) -> Tensor:
        """(K, 5): image index, x1, y1, x2, y2."""
        index = [boxes.new_full((len(boxes), 1), i) for i, boxes in enumerate(self.boxes)]
        return torch.cat([torch.cat(index), torch.cat(self.boxes)], dim=1)

    @property
    def output_channels(self) -> int:
        bins = self.output_size[0] * self.output_size[1]
        return self.features[0].shape[1] // (bins if self.position_sensitive else 1)

    @property
    def is_pyramid(self) -> bool:
        return len(self.features) > 1

    def input_channels(self, output_channels: Tensor) -> Tensor:
        """The channels of the features that these output channels read."""
        if not self.position_sensitive:
            return output_channels
        bins = self.output_size[0] * self.output_size[1]
        return (output_channels[:, None] * bins + torch.arange(bins)).flatten()


def build(
    name: str,
    *,
    channels: int,
    rois: int,
    sides: tuple[float, float],
    strides: tuple[int, ...] = (16,),
    image_size: tuple[int, int] = IMAGE_SIZE,
    output_size: tuple[int, int] = (7, 7),
    position_sensitive: bool = False,
    margin: int = 0,
) -> Workload:
    """Normally distributed features, and boxes inside the images.

    Args:
        name: name of the workload.
        channels: number of output channels.
        rois: number of boxes, spread evenly over the images.
        sides: least and greatest width and height of a box in pixels; their logarithms are uniform and independent.
        strides: image pixels per cell of each level, finest first.
        image_size: height and width in pixels, divisible by the strides.
        output_size: bins.
        position_sensitive: whether every bin has its own input channels.
        margin: pixels between boxes and the border of the image.
    """
    generator = torch.Generator().manual_seed(0)
    height, width = image_size
    channels *= output_size[0] * output_size[1] if position_sensitive else 1
    features = tuple(
        torch.randn(IMAGES, channels, height // stride, width // stride, generator=generator) for stride in strides
    )
    room = torch.tensor([width, height], dtype=torch.float32) - 2 * margin
    low, high = (math.log(side) for side in sides)
    boxes = []
    for image in range(IMAGES):
        count = rois // IMAGES + (image < rois % IMAGES)
        size = (low + (high - low) * torch.rand(count, 2, generator=generator)).exp().minimum(room)
        corner = margin + torch.rand(count, 2, generator=generator) * (room - size)
        boxes.append(torch.cat([corner, corner + size], dim=1))
    return Workload(name, features, strides, tuple(boxes), image_size, output_size, position_sensitive)


_QUICK = {"channels": 8, "rois": 16, "sides": (32, 150), "image_size": (160, 256)}
_SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # A C4 detector's map: 2 x 256 x 50 x 76.
    "c4": ({"channels": 256, "rois": 512, "sides": (32, 500)}, {}),
    # A feature pyramid.
    "fpn": (
        {"channels": 256, "rois": 1024, "sides": (16, 700), "strides": (4, 8, 16, 32)},
        {"rois": 32, "sides": (16, 160)},
    ),
    # R-FCN's score maps, 2 x (21 * 49) x 50 x 76. Boxes keep two cells away from the border: beyond it the backward of
    # torchvision's `ps_roi_pool` is not the derivative of its forward, and could not be compared.
    "rfcn": (
        {"channels": CLASSES, "rois": 512, "sides": (32, 500), "position_sensitive": True, "margin": 32},
        {"channels": 3, "sides": (32, 100)},
    ),
    # A mask head's RoIs on the map of `c4`.
    "mask": ({"channels": 256, "rois": 256, "sides": (32, 500), "output_size": (14, 14)}, {"rois": 8}),
}
"""Arguments of `build`, and further ones for the quick workload, which override `_QUICK`."""


def _build(name: str, quick: bool = False) -> Workload:
    usual, small = _SHAPES[name]
    return build(name, **(usual | _QUICK | small if quick else usual))


WORKLOADS: dict[str, Callable[[bool], Workload]] = {name: partial(_build, name) for name in _SHAPES}

ROIS, FEW, CHANNELS, BINS, BIN_AREA = "RoIs", "RoIs of 64 channels", "channels", "bins", "cells per bin"


def points(quick: bool = False) -> Iterator[tuple[float, Workload]]:
    """Yields variations of `c4`, with 512 RoIs, 256 channels and 7 x 7 bins, in one quantity at a time.

    Each is a pair of the value of the varied quantity and a workload with the name of that quantity.

    RoIs have sides of 32 to 500 pixels, except where the area of a bin is varied: there all have the same side. Few
    RoIs show the constant cost of a call, and thus from how many RoIs on an implementation is faster than another.
    """
    stride, size = 16, (160, 256) if quick else (800, 1216)
    usual: dict[str, Any] = {"image_size": size, **_SHAPES["c4"][0], **(_QUICK | {"rois": 8} if quick else {})}
    for count in (4, 8, 16) if quick else (1, 2, 4, 8, 32, 128, 512, 1024):
        yield count, build(ROIS, **usual | {"rois": count})
    for count in (1, 2) if quick else (1, 2, 4, 8, 16, 64):
        yield count, build(FEW, **usual | {"rois": count, "channels": min(64, usual["channels"])})
    for count in (4, 8, 16) if quick else (16, 64, 256, 1024):
        yield count, build(CHANNELS, **usual | {"channels": count})
    for edge in (2, 7) if quick else (1, 3, 7, 14):
        yield edge * edge, build(BINS, **usual, output_size=(edge, edge))
    for cells in (0.5, 1) if quick else (0.25, 0.5, 1, 2, 4, 6):
        width = cells * 7 * stride
        yield cells * cells, build(BIN_AREA, **usual | {"sides": (width, width)})
