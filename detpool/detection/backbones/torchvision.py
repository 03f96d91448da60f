"""Networks of torchvision that are a sequence of layers, in which one layer halves the maps before each stage."""

from __future__ import annotations

import itertools
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torchvision
from torch import nn
from torchvision.models import get_model_weights

from detpool.detection.backbones.body import IMAGENET_MEAN, IMAGENET_STD, StagedBody
from detpool.detection.backbones.weights import freeze_batch_norm, load_state_dict, torchvision_weights
from detpool.detection.slots import LayerFactory, build_downsampling, find_factor
from detpool.errors import ConfigError, did_you_mean

_FAMILIES = ("vgg", "densenet", "googlenet", "convnext")


def torchvision_body(
    name: str = "vgg16",
    weights: str | None = "DEFAULT",
    frozen_norm: bool = True,
    output_stride: int = 32,
    pretrained: bool = True,
    stem_pool: LayerFactory | None = None,
    downsample: LayerFactory | None = None,
) -> StagedBody:
    """A VGG, DenseNet, GoogLeNet or ConvNeXt, with maps at strides 4, 8, 16 and 32 unless a slot has another factor.

    Each map is the last one before the next pooling in the classification network. For VGG-16 these are conv3_3,
    conv4_3, conv5_3 and, at stride 32, the output of the last pooling; with `output_stride=16` the latter is left out,
    as in Fast R-CNN. Sources: Simonyan and Zisserman, arXiv:1409.1556; Huang et al., arXiv:1608.06993; Szegedy et al.,
    arXiv:1409.4842, without auxiliary classifiers; Liu et al., arXiv:2201.03545.

    Args:
        name: a network of torchvision: `vgg16`, `vgg16_bn`, `densenet121`, `googlenet`, `convnext_tiny`, ...
        weights: a name of torchvision's weights, the path of a file with a state dict of the network, or None.
        frozen_norm: keep statistics and affine parameters of batch normalization fixed. Without weights it is always
            trained.
        output_stride: stages of larger strides are left out (and not dilated, as in ResNets).
        pretrained: whether to load `weights`; False builds the same network for a checkpoint to fill.
        stem_pool: layer that replaces the max pooling before the map of stride 4; in VGG it replaces two of them.
        downsample: layer that replaces the pooling between stages: max pooling in VGG and GoogLeNet, average pooling in
            DenseNet's transitions; in ConvNeXt it follows the 2 x 2 convolution, which then has stride 1.

    Raises:
        ConfigError: If the network is unknown, `output_stride` leaves no stage, the stem has no pooling that
            `stem_pool` could replace, or the maps of a layer do not have the size that it declares.
        WeightsError: If the weights are unknown, cannot be downloaded or read, or do not fit.
    """
    known = [n for n in torchvision.models.list_models(torchvision.models) if n.startswith(_FAMILIES)]
    if name not in known:
        hint = did_you_mean(name, known) or f"; choose from {', '.join(known)}"
        raise ConfigError(f"backbone.name={name!r} is not a network of torchvision that is built so{hint}")
    layers = _layers(_load(name, weights, frozen_norm, pretrained))
    names, starts = list(layers), [n for n, layer in layers.items() if _place(layer) is not None]
    # The last three halving layers each begin a stage; the one before them, if there is one, ends the stem.
    ends = [names.index(starts[-4]) + 1 if len(starts) > 3 else 1, *map(names.index, starts[-3:]), len(names)]
    stem, *stages = (names[a:b] for a, b in itertools.pairwise([0, *ends]))
    slots = dict.fromkeys((n for n in starts if n in stem), ("stem_pool", stem_pool))
    if stem_pool is not None and not slots:
        raise ConfigError(f"stem_pool: the stem of {name} is one convolution of stride 4, without a pooling to replace")
    finest, factor = 4 * (find_factor(stem_pool, "stem_pool") / 2) ** len(slots), find_factor(downsample, "downsample")
    strides = [finest * factor**i for i in range(4)]
    if output_stride < finest:
        raise ConfigError(
            f"backbone.output_stride must be {finest:.4g} or more, that of the finest map, got {output_stride}"
        )
    stages = [stage for stage, stride in zip(stages, strides, strict=True) if stride < output_stride + 1e-6]

    slots |= dict.fromkeys(starts[-3:], ("downsample", downsample))
    channels, x = {}, torch.zeros(1, 3, 64, 64)
    for n in itertools.chain(stem, *stages):
        with torch.no_grad():
            channels[n] = (x := layers[n].eval()(x)).shape[1]
        layers[n].train()
        slot, pool = slots.get(n, ("", None))
        if pool is not None:
            layers[n] = _with_pool(layers[n], build_downsampling(pool, channels[n], slot))
    mean, std = _normalisation(name, weights)
    return StagedBody(
        {"stem": _sequence(layers, stem)},
        {f"stage{i}": _sequence(layers, stage) for i, stage in enumerate(stages, 1)},
        [channels[stage[-1]] for stage in stages],
        strides[: len(stages)],
        image_mean=mean,
        image_std=std,
    )


def _load(name: str, weights: str | None, frozen_norm: bool, pretrained: bool) -> nn.Module:
    extra = {"aux_logits": False, "init_weights": True} if name == "googlenet" else {}
    network = torchvision.models.get_model(name, weights=None, **extra)
    if weights is None:
        return network
    if pretrained:
        # The files of DenseNets date from a time when names of modules could contain dots.
        state = {
            re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.(\d)", r"\1\2", key): value
            for key, value in torchvision_weights(name, weights).items()
        }
        load_state_dict(network, state, source=weights, optional_prefixes=("classifier.", "fc.", "aux1.", "aux2."))
    if frozen_norm:
        freeze_batch_norm(network)
    return network


def _normalisation(name: str, weights: str | None) -> tuple[Sequence[float], Sequence[float]]:
    """Returns the mean and standard deviation of images that the weights expect."""
    if name == "googlenet":
        return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)  # torchvision's network converts its input to these
    if weights in get_model_weights(name).__members__:
        preset = get_model_weights(name)[weights].transforms()
        return preset.mean, preset.std
    return IMAGENET_MEAN, IMAGENET_STD


def _layers(network: nn.Module) -> dict[str, nn.Module]:
    """Returns the layers of a network before its classifier, by name in order of computation."""
    after = ("avgpool", "dropout", "fc")
    layers = {n: layer for n, layer in getattr(network, "features", network).named_children() if n not in after}
    if isinstance(network, torchvision.models.DenseNet):
        layers["relu5"] = nn.ReLU()  # torchvision applies it before the classifier
    return layers


def _sequence(layers: Mapping[str, nn.Module], names: Sequence[str]) -> nn.Sequential:
    return nn.Sequential(OrderedDict((name, layers[name]) for name in names))


def _place(layer: nn.Module) -> nn.Module | None:
    """Returns the module that halves maps in a layer: the layer itself or its last child; None if it halves none."""
    last = layer[-1] if isinstance(layer, nn.Sequential) else layer
    kinds = (nn.MaxPool2d,) if last is layer else (nn.AvgPool2d, nn.Conv2d)
    return last if isinstance(last, kinds) else None


def _with_pool(layer: nn.Module, pool: nn.Module) -> nn.Module:
    """Returns a layer between stages, with `pool` in place of its pooling or stride."""
    place = _place(layer)
    if place is layer:
        return pool
    sequence: Any = layer
    if isinstance(place, nn.Conv2d):
        place.stride = (1, 1)
        pool = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), place, pool)
    sequence[-1] = pool
    return sequence
