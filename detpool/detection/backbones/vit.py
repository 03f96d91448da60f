"""Plain vision transformers of timm, and the simple feature pyramid on their one map."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import max_pool2d
from torchvision.models.convnext import LayerNorm2d

from detpool.detection.backbones.body import Body
from detpool.detection.backbones.timm import create_network
from detpool.errors import ConfigError


class SimplePyramid(nn.Module):
    """Simple feature pyramid on a single map: strides 4, 8, 16, 32 and 64 from a map of stride 16.

    The levels are made by two transposed convolutions of stride 2 with normalization and GELU between them; by one
    transposed convolution; from the map itself; and by 2 x 2 max pooling. On each follow a 1 x 1 and a 3 x 3
    convolution, both with normalization. The last level is a subsampling of the fourth. There are no connections
    between the other levels. Source: Li et al., ViTDet, arXiv:2203.16527, 2022, section 3.

    Args:
        channels: channels of the map.
        out_channels: channels of each level.
    """

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        half, quarter = channels // 2, channels // 4
        self.levels = nn.ModuleList(
            nn.Sequential(
                *resize,
                nn.Conv2d(width, out_channels, kernel_size=1, bias=False),
                LayerNorm2d(out_channels, eps=1e-6),
                nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False),
                LayerNorm2d(out_channels, eps=1e-6),
            )
            for width, resize in (
                (quarter, [_up(channels, half), LayerNorm2d(half, eps=1e-6), nn.GELU(), _up(half, quarter)]),
                (half, [_up(channels, half)]),
                (channels, []),
                (channels, [nn.MaxPool2d(2)]),
            )
        )

    def forward(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """Maps a dict of one map to levels `"0"` (finest) to `"3"`, and `"pool"`, every second cell of `"3"`."""
        (map,) = maps.values()
        levels = OrderedDict((str(i), level(map)) for i, level in enumerate(self.levels))
        levels["pool"] = max_pool2d(levels["3"], kernel_size=1, stride=2)
        return levels


def _up(channels: int, out_channels: int) -> nn.Module:
    return nn.ConvTranspose2d(channels, out_channels, kernel_size=2, stride=2)


class ViTBody(Body):
    """A plain vision transformer with one map, the output of its last block before any final normalization.

    Args:
        network: network of timm that accepts images of any size.
        image_mean, image_std: see `Body`.
    """

    def __init__(self, network: Any, image_mean: Sequence[float], image_std: Sequence[float]) -> None:
        super().__init__([network.embed_dim], [network.patch_embed.patch_size[0]], image_mean, image_std)
        network.prune_intermediate_layers(1, prune_norm=True, prune_head=True)
        self.network = network
        self.has_class_token = bool(getattr(network, "has_class_token", network.cls_token is not None))

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.pass_once(images)[0]

    def pass_once(self, images: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """Returns the map, and the class token and registers, None if the network has neither."""
        (last,) = self.network.forward_intermediates(images, 1, return_prefix_tokens=True, intermediates_only=True)
        map, prefix = (last, None) if isinstance(last, Tensor) else last
        return [map], prefix

    def pyramid(self, out_channels: int) -> tuple[nn.Module, list[float]]:
        strides = [self.strides[0] * scale for scale in (0.25, 0.5, 1, 2)]
        return SimplePyramid(self.channels[0], out_channels), Body([], strides).strides


def vit(
    name: str = "vit_small_patch16_224",
    weights: str | None = "DEFAULT",
    pretrained: bool = True,
    image_mean: tuple[float, ...] | None = None,
    image_std: tuple[float, ...] | None = None,
) -> Body:
    """A plain vision transformer of timm.

    Detectors with a pyramid build a simple feature pyramid (`SimplePyramid`) on its last map. Detectors on a single map
    (`faster_rcnn_c5`) use this map, which has the stride of the patches.

    Args:
        name: model name, optionally with timm's pretrained tag: ViT, DeiT, EVA, DINO, ...
        weights: `DEFAULT` for timm's weights (downloaded once), the path of a `.pth` or `.safetensors` file, or None.
            Position embeddings are interpolated to the image size of each batch.
        pretrained: whether to load the weights; False builds the same network for a checkpoint to fill.
        image_mean, image_std: normalization that the weights expect. Default: the values that timm records.

    Raises:
        ConfigError: If timm is not installed, or the model is unknown, is not a plain vision transformer or accepts
            only one image size.
        WeightsError: If the weights cannot be downloaded or read, or do not fit.
    """
    refusal = f"backbone: {name} is no plain vision transformer that takes images of any size"
    network = create_network(name, weights, pretrained, refusal, num_classes=0, dynamic_img_size=True)
    if not hasattr(network, "blocks") or not hasattr(network, "prune_intermediate_layers"):
        raise ConfigError(f"{refusal}; backbone=timm backbone.name={name} takes networks with maps of several strides")
    mean, std = (given or network.pretrained_cfg[key] for key, given in (("mean", image_mean), ("std", image_std)))
    return ViTBody(network, mean, std)
