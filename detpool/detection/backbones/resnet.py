"""torchvision's ResNets as bodies."""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import get_model_weights
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops import FrozenBatchNorm2d

from detpool.detection.backbones.body import Body
from detpool.detection.backbones.weights import download, load_state_dict, read_weights_file
from detpool.errors import ConfigError, WeightsError, did_you_mean

_STAGES = ("layer1", "layer2", "layer3", "layer4")


class _Stages(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.body = IntermediateLayerGetter(network, {name: name for name in _STAGES})

    def forward(self, images: Tensor) -> list[Tensor]:
        return list(self.body(images).values())


def resnet(
    name: str = "resnet50",
    weights: str | None = "DEFAULT",
    trainable_stages: int = 3,
    frozen_norm: bool = True,
    pretrained: bool = True,
) -> Body:
    """A torchvision ResNet, maps at strides 4, 8, 16 and 32.

    Args:
        name: `resnet18`, `resnet34`, `resnet50`, `resnet101`, `resnet152`, or a ResNeXt or wide ResNet of torchvision.
        weights: a name of torchvision's weights (`DEFAULT`, `IMAGENET1K_V1`, ...), which are downloaded once; the
            path of a `.pth` or `.safetensors` file with a state dict of the network; or None for random weights.
        trainable_stages: how many of the five stages (stem and four) are trained, counted from the last; with fewer
            than 5, the others are frozen. Without weights everything is trained.
        frozen_norm: batch normalisation with fixed statistics and affine (usual for detectors with few images per
            batch). Without weights batch normalisation is always trained.
        pretrained: whether to load `weights`; False builds the same network for a checkpoint to fill.

    Raises:
        ConfigError: for an unknown network or a `trainable_stages` outside 0..5.
        WeightsError: if the weights are unknown, cannot be downloaded or read, or do not fit.
    """
    known = [n for n in torchvision.models.list_models() if n.startswith(("resnet", "resnext", "wide_resnet"))]
    if name not in known:
        raise ConfigError(f"backbone.name={name!r} is not a ResNet of torchvision{did_you_mean(name, known)}")
    if not 0 <= trainable_stages <= 5:
        raise ConfigError(f"backbone.trainable_stages must be 0 to 5, got {trainable_stages}")

    norm_layer = FrozenBatchNorm2d if weights is not None and frozen_norm else nn.BatchNorm2d
    network = torchvision.models.get_model(name, weights=None, norm_layer=norm_layer)
    if weights is not None:
        if pretrained:
            load_state_dict(network, _state_dict(name, weights), source=weights, optional_prefixes=("fc.",))
        stages = ["layer4", "layer3", "layer2", "layer1", "conv1"][:trainable_stages]
        if trainable_stages == 5:
            stages.append("bn1")
        for parameter_name, parameter in network.named_parameters():
            parameter.requires_grad_(parameter_name.startswith(tuple(stages)) if stages else False)
    last = network.layer4[-1]
    width = (last.conv3 if hasattr(last, "conv3") else last.conv2).out_channels
    return Body(_Stages(network), [width // 8, width // 4, width // 2, width], [4, 8, 16, 32])


def _state_dict(name: str, weights: str) -> dict[str, Tensor]:
    if weights.endswith((".pth", ".pt", ".ckpt", ".safetensors")):
        return read_weights_file(weights)
    choices = [*get_model_weights(name).__members__, "DEFAULT"]
    if weights not in choices:
        raise WeightsError(
            f"backbone.weights={weights!r} is neither a file (.pth, .pt, .safetensors) nor the name of weights that "
            f"torchvision has for {name}{did_you_mean(weights, choices)}"
        )
    entry = get_model_weights(name)[weights]
    cache = f"{torch.hub.get_dir()}/checkpoints"
    return download(entry.url, lambda: entry.get_state_dict(progress=False, check_hash=True), cache)
