"""Loading of pretrained weights, with errors that say what to do if they cannot be downloaded or read."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights
from torchvision.ops import FrozenBatchNorm2d

from detpool.errors import WeightsError, did_you_mean


def read_weights_file(path: str) -> dict[str, Tensor]:
    """Reads a state dict from a `.safetensors` file or one written by `torch.save`; no code in the file is executed.

    A checkpoint that holds the state dict under `state_dict` or `model` is accepted too.

    Raises:
        WeightsError: If the file is missing, damaged or holds something else, or the package safetensors is missing.
    """
    if not Path(path).is_file():
        raise WeightsError(f"weights file {path!r} does not exist (looked from {Path.cwd()})")
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError as error:
        raise WeightsError(f"reading {path!r} needs the package safetensors: pip install safetensors") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise WeightsError(f"weights file {path!r} cannot be read as a state dict: {error}") from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(
            f"weights file {path!r} holds no state dict (names to tensors), but a {type(content).__name__}"
        )
    return dict(content)


def load_state_dict(
    module: nn.Module,
    state_dict: Mapping[str, Tensor],
    *,
    source: str,
    optional_prefixes: tuple[str, ...] = (),
) -> None:
    """Loads `state_dict` strictly, except for names with `optional_prefixes`, which are ignored in both.

    Args:
        module: module to load into.
        state_dict: tensors by name.
        source: name of the weights, for error messages.
        optional_prefixes: beginnings of names that are not loaded.

    Raises:
        WeightsError: If other entries are missing, unexpected or of another shape. The message names some of them.
    """
    own = module.state_dict()
    needed = {name: value for name, value in own.items() if not name.startswith(optional_prefixes)}
    given = {name: value for name, value in state_dict.items() if not name.startswith(optional_prefixes)}
    # FrozenBatchNorm2d has no step counter, but files written with BatchNorm2d have one.
    counter = "num_batches_tracked"
    missing = [name for name in needed if name not in given and not name.endswith(counter)]
    extra = [name for name in given if name not in needed and not name.endswith(counter)]
    wrong = [
        f"{name} {tuple(given[name].shape)} instead of {tuple(needed[name].shape)}"
        for name in needed
        if name in given and given[name].shape != needed[name].shape
    ]
    if missing or extra or wrong:
        parts = [("missing", missing), ("unexpected", extra), ("of another shape", wrong)]
        detail = "; ".join(f"{len(names)} {what}: {', '.join(names[:3])}" for what, names in parts if names)
        raise WeightsError(f"weights {source!r} do not fit {type(module).__name__}: {detail}")
    module.load_state_dict({name: value for name, value in given.items() if name in needed}, strict=False)


def freeze_batch_norm(module: nn.Module) -> None:
    """Replaces each `BatchNorm2d` with running statistics inside a module by a `FrozenBatchNorm2d`, in place."""
    for name, child in module.named_children():
        freeze_batch_norm(child)
        if isinstance(child, nn.BatchNorm2d) and child.running_mean is not None:
            frozen = FrozenBatchNorm2d(child.num_features, child.eps).to(child.running_mean)
            frozen.load_state_dict(child.state_dict(), strict=False)
            setattr(module, name, frozen)


def download(name: str, fetch: Callable[[], Any], cache: str) -> Any:
    """Calls `fetch`, which downloads the weights `name` to `cache` unless they are there, and returns its result.

    Raises:
        WeightsError: If the download fails. The message says what to do.
    """
    try:
        return fetch()
    except (URLError, OSError, RuntimeError) as error:
        raise WeightsError(
            f"could not download {name} ({error}). Without a network, copy them from a machine that has them in "
            f"{cache}, or pass backbone.weights=<path of a file>, or start from random weights: backbone.weights=null"
        ) from error


def torchvision_weights(name: str, weights: str) -> dict[str, Tensor]:
    """Returns the state dict of a network of torchvision.

    Args:
        name: name of the network.
        weights: path of a `.pth`, `.pt`, `.ckpt` or `.safetensors` file, or a name of torchvision's weights, which are
            downloaded once.

    Raises:
        WeightsError: If the file cannot be read, torchvision has no such weights, or they cannot be downloaded.
    """
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
