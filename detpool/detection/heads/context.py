"""Features of the whole image for the box head."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from detpool.detection.backbones.maps import IMAGE_MAP, IMAGE_PREFIX
from detpool.detection.slots import build_layer
from detpool.errors import ConfigError
from detpool.layers import AttentionTokenPool, ClsTokenPool, MeanTokenPool, to_tokens

POOLS = {"cls": ClsTokenPool, "mean": MeanTokenPool, "attention": AttentionTokenPool}


class ImageContext(nn.Module):
    """Computes one vector per image, which is added to the features of its RoIs before the predictors.

    The vector is pooled from the tokens of the backbone's last map, followed by layer normalization and a linear layer.
    Because predictors are linear, adding the vector is equivalent to concatenating it:
    `W (x + V g) = [W, W V] [x, g]`. Cells in the padding of a batch do not count.

    Args:
        pool: "cls": a transformer's class token; "mean": the average of the cells (global average pooling: Lin et al.,
            arXiv:1312.4400, 2013); "attention": attention of a learned seed to cells, class token and registers
            (`AttentionTokenPool`).
        channels: channels of the map.
        out_channels: number of features of a RoI.
        stride: stride of the map in pixels.

    Raises:
        ConfigError: If `pool` is another, or the number of attention heads does not divide `channels`.
    """

    def __init__(self, pool: str, channels: int, out_channels: int, stride: float) -> None:
        super().__init__()
        if pool not in POOLS:
            raise ConfigError(f"model.head_context must be one of {', '.join(POOLS)}, got {pool!r}")
        self.stride = stride
        self.reads_prefix = pool != "mean"
        self.pool = build_layer(POOLS[pool], channels, "model.head_context")
        self.project = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, out_channels))

    def forward(self, features: dict[str, Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """Computes the vectors (N, out_channels) from the maps by name and (height, width) in pixels of N images."""
        map = features[IMAGE_MAP]
        inside = torch.zeros((len(map), *map.shape[2:]), dtype=torch.bool, device=map.device)
        for image, (height, width) in zip(inside, image_shapes, strict=True):
            image[: math.ceil(height / self.stride), : math.ceil(width / self.stride)] = True
        tokens, mask = to_tokens(map), inside.flatten(1)
        if self.reads_prefix and IMAGE_PREFIX in features:
            prefix = features[IMAGE_PREFIX]
            tokens = torch.cat([prefix, tokens], 1)
            mask = torch.cat([mask.new_ones(prefix.shape[:2]), mask], 1)
        return self.project(self.pool(tokens, mask).flatten(1))
