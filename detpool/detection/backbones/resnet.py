"""torchvision's ResNets as bodies."""

from __future__ import annotations

from typing import Any

import torchvision
from torch import nn
from torchvision.models.resnet import Bottleneck
from torchvision.ops import FrozenBatchNorm2d

from detpool.detection.backbones.body import StagedBody
from detpool.detection.backbones.weights import load_state_dict, torchvision_weights
from detpool.detection.slots import LayerFactory, build_downsampling, find_factor
from detpool.errors import ConfigError, did_you_mean

_STEM = ("conv1", "bn1", "relu", "maxpool")
_STAGES = ("layer1", "layer2", "layer3", "layer4")


def resnet(
    name: str = "resnet50",
    weights: str | None = "DEFAULT",
    trainable_stages: int = 3,
    frozen_norm: bool = True,
    output_stride: int = 32,
    pretrained: bool = True,
    stem_pool: LayerFactory | None = None,
    downsample: LayerFactory | None = None,
) -> StagedBody:
    """A ResNet of torchvision, with maps at strides 4, 8, 16 and 32 unless a pooling slot has another factor than 2.

    Args:
        name: `resnet18`, `resnet34`, `resnet50`, `resnet101`, `resnet152`, or a ResNeXt or wide ResNet of torchvision.
        weights: a name of torchvision's weights (`DEFAULT`, `IMAGENET1K_V1`, ...), which are downloaded once; the
            path of a `.pth` or `.safetensors` file with a state dict of the network; or None for random weights.
        trainable_stages: number of trained stages of the five (stem and four), counted from the last; the others are
            frozen. Without weights all stages are trained.
        frozen_norm: keep statistics and affine parameters of batch normalization fixed (usual for detectors with few
            images per batch). Without weights batch normalization is always trained.
        output_stride: 32, 16 or 8. Stages beyond this stride keep the resolution and use dilated convolutions (the
            "hole algorithm" of DeepLab; R-FCN and DC5 use 16).
        pretrained: whether to load `weights`; False builds the same network for a checkpoint to fill.
        stem_pool: layer that replaces the stem's 3 x 3 max pooling of stride 2.
        downsample: layer that replaces the stride of 2 of each stage that has one: after the activation that follows
            this convolution, and before the convolution of the shortcut (Zhang, arXiv:1904.11486, 2019, section 3.2,
            and its published ResNets). None keeps strided convolutions. Parameters of `stem_pool` and `downsample` are
            trained even in frozen stages.

    Raises:
        ConfigError: If the network is unknown, `trainable_stages` is outside 0..5, the network does not support
            `output_stride` (resnet18 and resnet34, with basic blocks, and networks with another factor than 2 in a slot
            support only 32), or the maps of `stem_pool` or `downsample` do not have the size that it declares.
        WeightsError: If the weights are unknown, cannot be downloaded or read, or do not fit.
    """
    known = [n for n in torchvision.models.list_models() if n.startswith(("resnet", "resnext", "wide_resnet"))]
    if name not in known:
        raise ConfigError(f"backbone.name={name!r} is not a ResNet of torchvision{did_you_mean(name, known)}")
    if not 0 <= trainable_stages <= 5:
        raise ConfigError(f"backbone.trainable_stages must be 0 to 5, got {trainable_stages}")

    if output_stride not in (8, 16, 32):
        raise ConfigError(f"backbone.output_stride must be 32, 16 or 8, got {output_stride}")
    stem, factor = find_factor(stem_pool, "stem_pool"), find_factor(downsample, "downsample")
    if output_stride != 32 and (stem, factor) != (2, 2):
        raise ConfigError(
            f"backbone.output_stride must be 32 where stem_pool or downsample do not halve maps, got {output_stride}"
        )
    dilated = [False, output_stride <= 8, output_stride <= 16]

    norm_layer = FrozenBatchNorm2d if weights is not None and frozen_norm else nn.BatchNorm2d
    try:
        network = torchvision.models.get_model(
            name, weights=None, norm_layer=norm_layer, replace_stride_with_dilation=dilated
        )
    except NotImplementedError as error:
        raise ConfigError(
            f"backbone.output_stride={output_stride}: {name} is made of basic blocks, which torchvision does not "
            f"dilate; resnet50 and deeper ones can have it"
        ) from error
    if weights is not None:
        if pretrained:
            load_state_dict(network, torchvision_weights(name, weights), source=weights, optional_prefixes=("fc.",))
        stages = ["layer4", "layer3", "layer2", "layer1", "conv1"][:trainable_stages]
        if trainable_stages == 5:
            stages.append("bn1")
        for parameter_name, parameter in network.named_parameters():
            parameter.requires_grad_(parameter_name.startswith(tuple(stages)) if stages else False)
    # After loading, which needs torchvision's names, and after freezing.
    if stem_pool is not None:
        network.maxpool = build_downsampling(stem_pool, network.bn1.weight.numel(), "stem_pool")
    if downsample is not None:
        for stage in _STAGES:
            _replace_stride(network.get_submodule(stage)[0], downsample)
    width = network.layer4[-1].conv3.out_channels if isinstance(network.layer4[-1], Bottleneck) else 512
    return StagedBody(
        {name: network.get_submodule(name) for name in _STEM},
        {name: network.get_submodule(name) for name in _STAGES},
        [width // 8, width // 4, width // 2, width],
        [min(2 * stem * factor**level, output_stride) for level in range(4)],
    )


def _replace_stride(block: Any, downsample: LayerFactory) -> None:
    if block.stride == 1:  # in the first stage or a dilated one
        return
    strided, following = ("conv2", "conv3") if isinstance(block, Bottleneck) else ("conv1", "conv2")
    getattr(block, strided).stride = block.downsample[0].stride = (1, 1)
    for name, layers in ((following, [getattr(block, following)]), ("downsample", block.downsample)):
        pool = build_downsampling(downsample, layers[0].in_channels, "downsample")
        setattr(block, name, nn.Sequential(pool, *layers))
