"""Builds layers as parts of a network, for the number of channels of their input."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn

from detpool.errors import ConfigError

LayerFactory = Callable[..., nn.Module]
"""Returns a layer, usually of `detpool.layers`; called with `channels`, those of its input, if it takes them."""


def build_layer(factory: LayerFactory, channels: int, slot: str) -> nn.Module:
    """Builds the layer of a slot, for maps or tokens with `channels` channels.

    Args:
        factory: builds the layer.
        channels: number of channels of its input.
        slot: the config key for error messages.

    Raises:
        ConfigError: If the layer rejects the channels or its own settings.
    """
    try:
        return factory(channels=channels) if "channels" in inspect.signature(factory).parameters else factory()
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{slot}, on a map of {channels} channels: {error}") from error


def build_downsampling(factory: LayerFactory, channels: int, slot: str) -> nn.Module:
    """Builds a layer in place of a stride of 2, which must halve maps, or reduce them by its attribute `factor`.

    Raises:
        ConfigError: If it rejects the channels or its own settings, or does not reduce maps by its factor.
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
    """Factor by which the layer of a slot reduces maps along each axis: its attribute `factor`, or 2 without one."""
    if factory is None:
        return 2.0
    with torch.random.fork_rng(devices=[]):  # a discarded layer must not change the random state
        return float(getattr(build_layer(factory, 8, slot), "factor", 2))


def tried(layer: nn.Module, input: Tensor, slot: str, *further: Tensor) -> Tensor:
    """Returns the output of a new layer in evaluation mode for trial inputs, to determine its shape.

    Raises:
        ConfigError: If the layer rejects the input.
    """
    try:
        with torch.no_grad():
            return layer.eval()(input, *further)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{slot}, on an input of shape {tuple(input.shape)}: {error}") from error
    finally:
        layer.train()
