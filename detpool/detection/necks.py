"""Context on top of a backbone: poolings of `detpool.layers` that look around, on maps whose shape they keep."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from detpool.layers import ASPP, SpatialPyramidContext2d


def spp_context(channels: int, kernel_sizes: Sequence[int] = (5, 9, 13)) -> nn.Sequential:
    """Maxima over windows of several sizes beside the map, and a 1 x 1 convolution back to its channels.

    (N, C, H, W) to the same shape. Source: Redmon and Farhadi, arXiv:1804.02767, 2018 (YOLOv3-SPP), after He et al.,
    SPP-Net, arXiv:1406.4729, 2014.

    Args:
        channels: C.
        kernel_sizes: cells of the windows, odd, 3 or more, increasing.

    Raises:
        ValueError: other sizes.
    """
    pyramid = SpatialPyramidContext2d(kernel_sizes)
    return nn.Sequential(pyramid, *_projection(channels * (1 + len(pyramid.kernel_sizes)), channels))


def aspp_context(channels: int, width: int = 256, rates: Sequence[int] = (6, 12, 18)) -> nn.Sequential:
    """Atrous spatial pyramid pooling, and a 1 x 1 convolution from its channels back to those of the map.

    (N, C, H, W) to the same shape. The image-level branch has no batch normalisation: its map is one cell an image, too
    few to take statistics of in a detector's batches (Detectron2 leaves it out too). Source: Chen, Papandreou, Schroff
    and Adam, DeepLabv3, arXiv:1706.05587, 2017, section 3.3.

    Args:
        channels: C.
        width: channels of every branch.
        rates: dilations of the 3 x 3 convolutions; DeepLabv3's are for maps of stride 16, of 33 x 33 cells or more.

    Raises:
        ValueError: widths or rates that are not positive integers.
    """
    aspp = ASPP(channels, width, rates)
    image_level = aspp.convs[-1]
    image_level[1], image_level[2] = nn.Conv2d(channels, width, kernel_size=1), nn.Identity()
    return nn.Sequential(aspp, *_projection(width, channels))


def _projection(channels_in: int, channels_out: int) -> list[nn.Module]:
    return [nn.Conv2d(channels_in, channels_out, kernel_size=1, bias=False), nn.BatchNorm2d(channels_out), nn.ReLU()]
