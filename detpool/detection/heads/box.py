"""Box heads, which turn pooled RoIs (K, C, PH, PW) into feature vectors, and their predictors."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead

from detpool.detection.slots import LayerFactory, build_layer, tried
from detpool.errors import ConfigError, check_numbers
from detpool.layers import ScalarMix, to_tokens

Shape = tuple[int, int, int]
"""Channels, height and width of pooled RoIs."""


class FlattenHead(TwoMLPHead):
    """Flattens all bins and applies two fully connected layers (Fast R-CNN; Faster R-CNN with FPN).

    Args:
        shape: channels, height and width of the pooled RoIs.
        channels: width of both layers.
    """

    def __init__(self, shape: Shape, channels: int = 1024) -> None:
        super().__init__(shape[0] * shape[1] * shape[2], channels)
        self.out_channels = channels


class PooledHead(nn.Sequential):
    """Pools over the bins and applies the two fully connected layers of `FlattenHead`.

    Args:
        shape: channels, height and width of the pooled RoIs.
        pool: pooling layer for maps (K, C, PH, PW); its output is flattened.
        channels: width of both fully connected layers.

    Raises:
        ConfigError: If `pool` does not fit the bins.
    """

    def __init__(self, shape: Shape, pool: LayerFactory, channels: int = 1024) -> None:
        layer = build_layer(pool, shape[0], "head_pool.pool")
        values = tried(layer, torch.zeros(1, *shape), "head_pool.pool").numel()
        super().__init__(layer, TwoMLPHead(values, channels))
        self.out_channels = channels


class TokenHead(nn.Module):
    """Pools the bins as tokens of a transformer into one vector; applies the fully connected layers of `FlattenHead`.

    Encoder layers exchange information between tokens; without them, a single token such as the last one says little.
    Tokens get learned positions if there are encoder layers (Dosovitskiy et al., ViT, arXiv:2010.11929, 2020).

    Args:
        shape: channels, height and width of the pooled RoIs.
        pool: pooling layer for tokens (K, PH PW, C), ordered row by row.
        channels: width of both fully connected layers.
        encoder_layers: number of transformer layers (pre-norm) before pooling.
        heads: number of attention heads; must divide the channels of the RoIs.
        class_token: prepend a learned token, which `ClsTokenPool` selects. It needs encoder layers, in which it attends
            to all bins.
        causal: let tokens attend only to themselves and those before them. The last one, which `LastTokenPool` selects,
            attends to all.
        attention_weights: call `pool` (a `WeightedMeanTokenPool`) with the tokens of the bins and, as weights, the
            attention of the class token to each bin in the last encoder layer, averaged over heads.
        mix_layers: pool a learned mean of the tokens before the encoder and after each of its layers (`ScalarMix`)
            instead of the tokens after the last layer.

    Raises:
        ConfigError: If `pool` does not fit the tokens, `heads` does not divide the channels, `encoder_layers` is
            negative, `class_token` is set without encoder layers or with `causal`, or `attention_weights` is set
            without `class_token`.
    """

    def __init__(
        self,
        shape: Shape,
        pool: LayerFactory,
        channels: int = 1024,
        encoder_layers: int = 1,
        heads: int = 4,
        class_token: bool = False,
        causal: bool = False,
        attention_weights: bool = False,
        mix_layers: bool = False,
    ) -> None:
        super().__init__()
        check_numbers("head_pool", "at least 0", lambda n: n >= 0, encoder_layers=encoder_layers)
        if (class_token or attention_weights) and (not class_token or causal or encoder_layers < 1):
            raise ConfigError(
                f"head_pool.{'attention_weights' if attention_weights else 'class_token'}: a class token knows of bins "
                f"by attending to all of them: set head_pool.class_token=true, head_pool.causal=false and at least one "
                f"of head_pool.encoder_layers"
            )
        width, count = shape[0], shape[1] * shape[2] + class_token
        if heads < 1 or width % heads:
            raise ConfigError(f"head_pool.heads must divide the {width} channels of pooled RoIs, got {heads}")
        self.causal = causal
        self.class_token = nn.Parameter(torch.randn(width) * 0.02) if class_token else None
        self.positions = nn.Parameter(torch.randn(count, width) * 0.02) if encoder_layers else None
        self.encoder = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(encoder_layers)
        )
        self.mix = ScalarMix(encoder_layers + 1) if mix_layers else None
        self.attention_weights = attention_weights
        self.pool = build_layer(pool, width, "head_pool.pool")
        given = [torch.ones(1, count)] if attention_weights else []
        values = tried(self.pool, torch.zeros(1, count, width), "head_pool.pool", *given).numel()
        self.layers = TwoMLPHead(values, channels)
        self.out_channels = channels

    def forward(self, pooled: Tensor) -> Tensor:
        """Maps pooled RoIs (K, C, PH, PW) to features (K, channels)."""
        tokens = to_tokens(pooled)
        if self.class_token is not None:
            tokens = torch.cat([self.class_token.expand(tokens.shape[0], 1, -1), tokens], dim=1)
        if self.positions is not None:
            tokens = tokens + self.positions
        count = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(count, tokens.device) if self.causal else None
        outputs = [tokens]
        for layer in self.encoder:
            outputs.append(layer(outputs[-1], src_mask=mask, is_causal=self.causal))
        tokens = outputs[-1] if self.mix is None else self.mix(outputs)
        if not self.attention_weights:
            return self.layers(self.pool(tokens))
        last: Any = self.encoder[-1]
        before = last.norm1(outputs[-2])
        scores = last.self_attn(before[:, :1], before, before)[1][:, 0]
        return self.layers(self.pool(tokens[:, 1:], scores[:, 1:]))


class ConvHead(nn.Sequential):
    """Applies 3 x 3 convolutions to the bins, then global average pooling (Lin et al., ICLR 2014).

    Args:
        shape: channels, height and width of the pooled RoIs.
        channels: output channels of each convolution.
        convolutions: number of convolutions, each with batch normalization and ReLU.

    Raises:
        ConfigError: If `convolutions` is negative.
    """

    def __init__(self, shape: Shape, channels: int = 256, convolutions: int = 4) -> None:
        check_numbers("head_pool", "at least 0", lambda n: n >= 0, convolutions=convolutions)
        layers: list[nn.Module] = []
        for channels_in in [shape[0], *[channels] * convolutions][:convolutions]:
            layers += [
                nn.Conv2d(channels_in, channels, kernel_size=3, padding=1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(),
            ]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.out_channels = channels if convolutions else shape[0]


class ClassMapHead(nn.Sequential):
    """Applies convolutions to the bins and returns maps instead of a vector, for `ClassMapPredictor`.

    Together they are the global average pooling of Network in Network (Lin et al., ICLR 2014, section 3.2): there is no
    fully connected layer, and the map of a class shows which bins are evidence for it (class activation maps: Zhou et
    al., CVPR 2016).

    Args:
        shape: channels, height and width of the pooled RoIs.
        channels: output channels of each convolution.
        convolutions: number of convolutions, each with batch normalization and ReLU.
    """

    def __init__(self, shape: Shape, channels: int = 256, convolutions: int = 4) -> None:
        head = ConvHead(shape, channels, convolutions)
        super().__init__(*list(head)[:-2])
        self.out_channels = head.out_channels


class ClassMapPredictor(nn.Module):
    """Predicts one map per class and four maps for its box deltas by 1 x 1 convolutions, and averages each over bins.

    Args:
        in_channels: channels of the input maps.
        num_logits: number of classes with background.
        class_agnostic: predict one box for all classes.
    """

    def __init__(self, in_channels: int, num_logits: int, class_agnostic: bool = False) -> None:
        super().__init__()
        self.boxes = 1 if class_agnostic else num_logits
        self.class_maps = nn.Conv2d(in_channels, num_logits, kernel_size=1)
        self.delta_maps = nn.Conv2d(in_channels, 4 * self.boxes, kernel_size=1)

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (K, C, PH, PW) to logits (K, num_logits) and deltas (K, 4 num_logits)."""
        logits, deltas = self.class_maps(maps).mean((2, 3)), self.delta_maps(maps).mean((2, 3))
        return logits, deltas.repeat(1, logits.shape[1] // self.boxes)


class ConvFCHead(FastRCNNConvFCHead):
    """Applies 3 x 3 convolutions to the bins, then a fully connected layer: "4conv1fc" (Wu & He, ECCV 2018).

    Args:
        shape: channels, height and width of the pooled RoIs.
        channels: width of the fully connected layer.
        convolutions: number of convolutions, each with group normalization and ReLU.
        conv_channels: output channels of each convolution.
        groups: number of groups of the normalization.

    Raises:
        ConfigError: If `groups` does not divide `conv_channels`, or `convolutions` is negative.
    """

    def __init__(
        self,
        shape: Shape,
        channels: int = 1024,
        convolutions: int = 4,
        conv_channels: int = 256,
        groups: int = 32,
    ) -> None:
        check_numbers("head_pool", "at least 0", lambda n: n >= 0, convolutions=convolutions)
        if groups < 1 or conv_channels < 1 or conv_channels % groups:
            raise ConfigError(f"head_pool.groups must divide head_pool.conv_channels={conv_channels}, got {groups}")
        normalization = functools.partial(nn.GroupNorm, groups)
        super().__init__(shape, [conv_channels] * convolutions, [channels], normalization)
        self.out_channels = channels


class StageHead(nn.Module):
    """Applies the backbone's last stage to each RoI and averages over bins: "C4" detectors (He et al., CVPR 2016).

    Args:
        stage: the stage, applied to pooled RoIs (K, C, PH, PW).
        out_channels: its output channels.
    """

    def __init__(self, stage: nn.Module, out_channels: int) -> None:
        super().__init__()
        self.stage = stage
        self.out_channels = out_channels

    def forward(self, pooled: Tensor) -> Tensor:
        return self.stage(pooled).mean(dim=(2, 3))


class ClassAgnosticPredictor(FastRCNNPredictor):
    """`FastRCNNPredictor` with one box for all classes (R-FCN, Cascade R-CNN).

    Args:
        in_channels: number of features of each RoI.
        num_classes: number of classes with background.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__(in_channels, num_classes)
        self.bbox_pred = nn.Linear(in_channels, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns logits (K, num_classes) and deltas (K, 4 num_classes), the same four for every class."""
        logits, deltas = super().forward(x)
        return logits, deltas.repeat(1, logits.shape[1])


def build_predictor(in_channels: int, num_classes: int, class_agnostic: bool) -> FastRCNNPredictor:
    """Builds a predictor of class logits and box deltas from RoI features; `num_classes` excludes the background."""
    return (ClassAgnosticPredictor if class_agnostic else FastRCNNPredictor)(in_channels, num_classes + 1)


def build_box_predictor(head: Any, num_classes: int, class_agnostic: bool = False) -> nn.Module:
    """Builds the predictor that follows a box head with `out_channels`; `num_classes` excludes the background."""
    if isinstance(head, ClassMapHead):
        return ClassMapPredictor(head.out_channels, num_classes + 1, class_agnostic)
    return build_predictor(head.out_channels, num_classes, class_agnostic)
