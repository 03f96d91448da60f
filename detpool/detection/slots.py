"""Layers as parts of a network: built for the channels of the map they are put on."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn

from detpool.errors import ConfigError

LayerFactory = Callable[..., nn.Module]
"""Returns a layer, usually of `detpool.layers`; called with `channels`, those of its input, if it takes them."""


def build_layer(factory: LayerFactory, channels: int, slot: str) -> nn.Module:
    """The layer of a slot, on maps or tokens of so many channels.

    Args:
        slot: the config key to name in errors.

    Raises:
        ConfigError: if the layer refuses the channels or its own settings.
    """
    try:
        return factory(channels=channels) if "channels" in inspect.signature(factory).parameters else factory()
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{slot}, on a map of {channels} channels: {error}") from error


def build_downsampling(factory: LayerFactory, channels: int, slot: str) -> nn.Module:
    """A layer in place of a stride of 2. It halves maps, unless it has a `factor` of its own.

    Raises:
        ConfigError: if it refuses the channels or its own settings, or does not make maps smaller by its factor.
    """
    layer = build_layer(factory, channels, slot)
    factor = float(getattr(layer, "factor", 2))
    pooled = tried(layer, torch.zeros(1, channels, 8, 8), slot)
    if pooled.shape[:2] != (1, channels) or any(abs(side - 8 / factor) >= 1 for side in pooled.shape[2:]):
        made = "halve maps" if factor == 2 else f"make maps {factor:g} times smaller (its factor)"
        raise ConfigError(
            f"{slot} must {made} and keep their channels: {channels} channels of 8 x 8 cells became "
            f"{tuple(pooled.shape[1:])}; a window of 3 has stride 2 and padding 1, one of 2 stride 2 and padding 0"
        )
    return layer


def find_factor(factory: LayerFactory | None, slot: str) -> float:
    """How many times smaller, along each axis, a slot makes maps: its layer's `factor`, and 2 where it has none."""
    if factory is None:
        return 2.0
    with torch.random.fork_rng(devices=[]):  # the draws of a layer that is thrown away change no other's
        return float(getattr(build_layer(factory, 8, slot), "factor", 2))


def tried(layer: nn.Module, input: Tensor, slot: str) -> Tensor:
    """What a new layer makes of an input, in evaluation mode, for its shape.

    Raises:
        ConfigError: if the layer refuses it.
    """
    try:
        with torch.no_grad():
            return layer.eval()(input)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{slot}, on an input of shape {tuple(input.shape)}: {error}") from error
    finally:
        layer.train()
