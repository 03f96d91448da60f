"""Batch normalization of batches with a single value per channel, from which no statistics can be computed."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm

from detpool.distributed import say
from detpool.errors import ConfigError

SINGLE_VALUE_CURE = (
    "data.batch_size must be at least 2, images larger than the stride of the map (data.size, min_size), or the layer "
    "another (context, backbone)"
)


def normalize_single_values(model: nn.Module) -> None:
    """Makes batch normalization layers use their running statistics for training batches of one value per channel.

    PyTorch raises an error for such batches. They occur when the last batch of an epoch holds a single image and the
    layer's input is a global average, or a feature map of one cell because the image is no larger than the stride. Such
    a batch does not change the running statistics. The first one prints a note. Layers of type `SyncBatchNorm` are left
    as they are.

    Args:
        model: the model, to whose layers forward hooks are added.

    Raises:
        ConfigError: During training, if a layer gets a single value per channel before any other batch.
    """
    said: list[str] = []
    for name, layer in model.named_modules():
        # SyncBatchNorm counts the values of all processes.
        if isinstance(layer, _BatchNorm) and not isinstance(layer, SyncBatchNorm):
            layer.register_forward_pre_hook(lambda layer, inputs, name=name: _before(layer, inputs[0], name, said))
            layer.register_forward_hook(_after, always_call=True)


def _before(layer: Any, values: Tensor, name: str, said: list[str]) -> None:
    if not layer.training or values.numel() != values.shape[1]:
        return
    if layer.running_mean is None or not layer.num_batches_tracked:
        raise ConfigError(
            f"{name} cannot normalize a batch of shape {tuple(values.shape)}, one value per channel, in training, and "
            f"has no statistics of batches before: {SINGLE_VALUE_CURE}"
        )
    if not said:
        say(
            f"note: {name} gets one value per channel of a batch of shape {tuple(values.shape)}: such batches are "
            f"normalized with its running statistics"
        )
        said.append(name)
    layer.training = False
    layer._normalizes_single_values = True


def _after(layer: Any, inputs: Any, output: Any) -> None:
    if layer.__dict__.pop("_normalizes_single_values", False):
        layer.training = True
