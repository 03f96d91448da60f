"""Context modules on top of a backbone: layers of `detpool.layers` that keep the shape of the map."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from detpool.layers import ASPP, SpatialPyramidContext2d


def spp_context(channels: int, kernel_sizes: Sequence[int] = (5, 9, 13)) -> nn.Sequential:
    """Concatenates a map and its maxima over windows of several sizes, and projects them to its channels (1 x 1).

    (N, C, H, W) to the same shape. Source: Redmon and Farhadi, arXiv:1804.02767, 2018 (YOLOv3-SPP), after He et al.,
    SPP-Net, arXiv:1406.4729, 2014.

    Args:
        channels: C.
        kernel_sizes: sizes of the windows in cells: odd, at least 3, increasing.

    Raises:
        ValueError: If the sizes are invalid.
    """
    pyramid = SpatialPyramidContext2d(kernel_sizes)
    return nn.Sequential(pyramid, *_projection(channels * (1 + len(pyramid.kernel_sizes)), channels))


def aspp_context(channels: int, width: int = 256, rates: Sequence[int] = (6, 12, 18)) -> nn.Sequential:
    """Atrous spatial pyramid pooling, and a 1 x 1 convolution from its channels to those of the map.

    (N, C, H, W) to the same shape. The image-level branch has no batch normalization, since its map has one cell per
    image, too few for statistics in a detector's batches (Detectron2 omits it too). Source: Chen, Papandreou, Schroff
    and Adam, DeepLabv3, arXiv:1706.05587, 2017, section 3.3.

    Args:
        channels: C.
        width: number of channels of every branch.
        rates: dilations of the 3 x 3 convolutions; DeepLabv3's are for maps of stride 16 with at least 33 x 33 cells.

    Raises:
        ValueError: If the width or a rate is not a positive integer.
    """
    aspp = ASPP(channels, width, rates)
    image_level = aspp.convs[-1]
    image_level[1], image_level[2] = nn.Conv2d(channels, width, kernel_size=1), nn.Identity()
    return nn.Sequential(aspp, *_projection(width, channels))


def _projection(channels_in: int, channels_out: int) -> list[nn.Module]:
    return [nn.Conv2d(channels_in, channels_out, kernel_size=1, bias=False), nn.BatchNorm2d(channels_out), nn.ReLU()]
