"""The inputs that all models share: the same batches, the same boxes, and the same weights where shapes agree."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import islice
from typing import Any

from lightning import seed_everything
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from detpool.data.datamodule import Batch
from detpool.errors import ConfigError
from detpool.training.runs import build_data

STAGES = ("fit", "val")


class Shared:
    """The inputs that models share, each computed when the first model requests it.

    Args:
        batches: number of batches of training images, and of validation images.
    """

    def __init__(self, batches: int) -> None:
        self.batches = batches
        self._known: dict[str, Any] = {}
        self._weights: dict[str, Tensor] = {}

    def once(self, what: str, settings: Any, make: Callable[[], Any]) -> Any:
        """Returns the result of `make`, which is called only for the first request with the same settings (`plain`)."""
        key = json.dumps([what, settings], sort_keys=True, default=str)
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]

    def share_weights(self, model: nn.Module) -> None:
        """Copies weights of the models before into a model, where name and shape agree."""
        for name, value in model.state_dict().items():
            known = self._weights.setdefault(name, value.clone())
            if known.shape == value.shape and known.dtype == value.dtype:
                value.copy_(known)

    def read(self, config: DictConfig) -> tuple[list[str], dict[str, list[Batch]]]:
        """Returns the class names, and batches of the (augmented) training set and of the validation set."""

        def make() -> tuple[list[str], dict[str, list[Batch]]]:
            seed_everything(config.seed, verbose=False)
            data = build_data(config, ["fit"])
            loaders = {"fit": data.train_dataloader(), "val": data.val_dataloader()}
            found = {stage: list(islice(loaders[stage], self.batches)) for stage in STAGES}
            if missing := [stage for stage in STAGES if not found[stage]]:
                raise ConfigError(f"data: there is no image to measure with ({' and '.join(missing)})")
            return list(data.class_names), found

        found: tuple[list[str], dict[str, list[Batch]]] = self.once("data", plain(config.data), make)
        return found


def plain(node: Any) -> Any:
    """Returns a part of a config as plain containers, with interpolations resolved."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
