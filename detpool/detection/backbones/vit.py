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
    """Levels 4 and 2 times finer than a map, as fine, and 2 and 4 times coarser: strides 4, 8, 16, 32, 64 from 16.

    Two transposed convolutions of stride 2 with normalisation and GELU between them, and one; the map as it is; and
    its maxima over 2 x 2 cells. A 1 x 1 and a 3 x 3 convolution with normalisation follow on each. There are no
    connections between levels. Source: Li et al., ViTDet, arXiv:2203.16527, 2022, section 3.

    Args:
        channels: of the map.
        out_channels: of each level.
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
        """One map by any name to `"0"` (the finest) to `"3"` and `"pool"`, every second cell of the coarsest."""
        (map,) = maps.values()
        levels = OrderedDict((str(i), level(map)) for i, level in enumerate(self.levels))
        levels["pool"] = max_pool2d(levels["3"], kernel_size=1, stride=2)
        return levels


def _up(channels: int, out_channels: int) -> nn.Module:
    return nn.ConvTranspose2d(channels, out_channels, kernel_size=2, stride=2)


class ViTBody(Body):
    """A plain vision transformer: one map, the output of its last block before any final normalisation.

    Args:
        network: of timm, for images of any size.
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
        """The map, and the class token and registers, if the network has such."""
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
    """A plain vision transformer of timm, of whose last map detectors with a pyramid make a simple one.

    Detectors on a single map (`faster_rcnn_c5`) have that map, at the stride of its patches.

    Args:
        name: model name, with timm's pretrained tag if wanted: ViT, DeiT, EVA, DINO, ...
        weights: `DEFAULT` for timm's own (downloaded once), the path of a `.pth` or `.safetensors` file, or None.
            Embeddings of positions are interpolated to the size of each batch.
        pretrained: whether to load the weights; False builds the same network for a checkpoint to fill.
        image_mean, image_std: normalisation the weights expect. Default: what timm records for the model.

    Raises:
        ConfigError: without timm, for an unknown model, or one that is no plain transformer or takes one image size.
        WeightsError: if the weights cannot be had or do not fit.
    """
    refusal = f"backbone: {name} is no plain vision transformer that takes images of any size"
    network = create_network(name, weights, pretrained, refusal, num_classes=0, dynamic_img_size=True)
    if not hasattr(network, "blocks") or not hasattr(network, "prune_intermediate_layers"):
        raise ConfigError(f"{refusal}; backbone=timm backbone.name={name} takes networks with maps of several strides")
    mean, std = (given or network.pretrained_cfg[key] for key, given in (("mean", image_mean), ("std", image_std)))
    return ViTBody(network, mean, std)
