"""A small residual network that trains from scratch on two CPU cores."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from detpool.detection.backbones.body import Body
from detpool.errors import ConfigError


def _conv_bn(channels_in: int, channels_out: int, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(channels_out),
    )


class _Residual(nn.Module):
    """Basic block of ResNet (He et al., CVPR 2016): two 3 x 3 convolutions and a shortcut."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv_bn(channels_in, channels_out, stride)
        self.conv2 = _conv_bn(channels_out, channels_out)
        same = stride == 1 and channels_in == channels_out
        self.shortcut = nn.Identity() if same else _conv_bn(channels_in, channels_out, stride, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.shortcut(x))


class _Stages(nn.Module):
    def __init__(self, widths: Sequence[int], depth: int, first: int) -> None:
        super().__init__()
        self.first = first
        self.stem = nn.Sequential(_conv_bn(3, widths[0], 2), nn.ReLU(), _conv_bn(widths[0], widths[0], 2), nn.ReLU())
        stages = []
        for level, width in enumerate(widths):
            blocks = [_Residual(widths[max(level - 1, 0)], width, 1 if level == 0 else 2)]
            blocks += [_Residual(width, width, 1) for _ in range(depth - 1)]
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps[self.first :]


class SmallCNN(Body):
    """A ResNet with a thin two-convolution stem; its stages have strides 4, 8, 16, ...

    Args:
        widths: channels of each stage (default four stages, strides 4 to 32).
        depth: residual blocks per stage.
        min_stride: stride in pixels of the finest map returned; 8 leaves out the first stage's, and with it most of
            the cost of a pyramid on top.

    Raises:
        ConfigError: if no stage has the stride `min_stride`.
    """

    def __init__(self, widths: Sequence[int] = (32, 64, 96, 128), depth: int = 1, min_stride: int = 4) -> None:
        strides = [4 * 2**level for level in range(len(widths))]
        if min_stride not in strides:
            raise ConfigError(
                f"backbone.min_stride must be one of {strides}, the strides of the stages, got {min_stride}"
            )
        first = strides.index(min_stride)
        super().__init__(_Stages(widths, depth, first), list(widths[first:]), strides[first:])
