"""Batch normalisation of a batch that leaves a layer one value per channel, of which there are no statistics."""

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
    """Has layers of a model normalise single values in training with their running statistics, where they have some.

    PyTorch refuses them: the last batch of an epoch may hold one image, whose global average, or whose map if the image
    is as small as the stride, has one cell. The statistics are those of the batches before, and such a batch
    does not change them. It is said once.

    Raises:
        ConfigError: in training, if a layer that gets a single value has seen no other batch.
    """
    said: list[str] = []
    for name, layer in model.named_modules():
        # Those that are shared by processes count the values of all.
        if isinstance(layer, _BatchNorm) and not isinstance(layer, SyncBatchNorm):
            layer.register_forward_pre_hook(lambda layer, inputs, name=name: _before(layer, inputs[0], name, said))
            layer.register_forward_hook(_after, always_call=True)


def _before(layer: Any, values: Tensor, name: str, said: list[str]) -> None:
    if not layer.training or values.numel() != values.shape[1]:
        return
    if layer.running_mean is None or not layer.num_batches_tracked:
        raise ConfigError(
            f"{name} cannot normalise a batch of shape {tuple(values.shape)}, one value per channel, in training, and "
            f"has no statistics of batches before: {SINGLE_VALUE_CURE}"
        )
    if not said:
        say(
            f"note: {name} gets one value per channel of a batch of shape {tuple(values.shape)}: such batches are "
            f"normalised with its running statistics"
        )
        said.append(name)
    layer.training = False
    layer._normalizes_single_values = True


def _after(layer: Any, inputs: Any, output: Any) -> None:
    if layer.__dict__.pop("_normalizes_single_values", False):
        layer.training = True
