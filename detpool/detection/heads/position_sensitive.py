"""Heads of R-FCN and Light-Head R-CNN: the layers before and after position-sensitive pooling."""

from __future__ import annotations

from torch import Tensor, nn


class Vote(nn.Module):
    """Averages over the bins of each RoI: R-FCN's vote (Dai et al., NIPS 2016, equation 2)."""

    def forward(self, pooled: Tensor) -> Tensor:
        return pooled.mean(dim=(2, 3))


class VotePredictor(nn.Module):
    """Splits R-FCN's votes (K, classes + 1 + 4) into class logits and class-agnostic box deltas.

    Args:
        num_logits: number of classes with background.
    """

    def __init__(self, num_logits: int) -> None:
        super().__init__()
        self.num_logits = num_logits

    def forward(self, votes: Tensor) -> tuple[Tensor, Tensor]:
        """Returns logits (K, num_logits) and deltas (K, 4 num_logits), the same four for every class."""
        return votes[:, : self.num_logits], votes[:, self.num_logits :].repeat(1, self.num_logits)


class LargeSeparableConv(nn.Module):
    """Thin map of Light-Head R-CNN (Li et al., arXiv:1711.07264, figure 3): two paths of k x 1 and 1 x k convolutions.

    The paths apply the two convolutions in opposite order, and their outputs are summed.

    Args:
        in_channels: channels of the map.
        out_channels: channels of the thin map (the paper: 490 = 10 x 7 x 7).
        mid_channels: channels between the two convolutions of a path (the paper: 64 small, 256 large).
        kernel_size: k (the paper: 15), odd.
    """

    def __init__(self, in_channels: int, out_channels: int, mid_channels: int = 256, kernel_size: int = 15) -> None:
        super().__init__()
        tall, wide = (kernel_size, 1), (1, kernel_size)
        self.paths = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(in_channels, mid_channels, first, padding="same"),
                nn.Conv2d(mid_channels, out_channels, second, padding="same"),
            )
            for first, second in ((tall, wide), (wide, tall))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.paths[0](x) + self.paths[1](x)
