"""Box heads: pooled RoIs (K, C, PH, PW) to one feature vector each."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import TwoMLPHead

Shape = tuple[int, int, int]
"""Channels, height and width of pooled RoIs."""


class FlattenHead(TwoMLPHead):
    """All bins flattened, then two fully connected layers (Fast R-CNN; Faster R-CNN with FPN).

    Args:
        shape: channels, height and width of the pooled RoIs.
        channels: width of both layers.
    """

    def __init__(self, shape: Shape, channels: int = 1024) -> None:
        super().__init__(shape[0] * shape[1] * shape[2], channels)
        self.out_channels = channels


class ConvHead(nn.Sequential):
    """3 x 3 convolutions on the bins, then their average (global average pooling: Lin et al., ICLR 2014).

    Args:
        shape: channels, height and width of the pooled RoIs.
        channels: of every convolution.
        convolutions: how many, each with batch normalisation and ReLU.
    """

    def __init__(self, shape: Shape, channels: int = 256, convolutions: int = 4) -> None:
        layers: list[nn.Module] = []
        for channels_in in [shape[0], *[channels] * (convolutions - 1)][:convolutions]:
            layers += [
                nn.Conv2d(channels_in, channels, kernel_size=3, padding=1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(),
            ]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.out_channels = channels if convolutions else shape[0]


class StageHead(nn.Module):
    """The backbone's own last stage on each RoI, then the average: "C4" detectors (He et al., CVPR 2016).

    Args:
        stage: on pooled RoIs (K, C, PH, PW).
        out_channels: channels it gives.
    """

    def __init__(self, stage: nn.Module, out_channels: int) -> None:
        super().__init__()
        self.stage = stage
        self.out_channels = out_channels

    def forward(self, pooled: Tensor) -> Tensor:
        return self.stage(pooled).mean(dim=(2, 3))
