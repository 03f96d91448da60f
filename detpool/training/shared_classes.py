"""Evaluation of a detector on data with other classes than those it was trained for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from detpool.errors import ConfigError


class SharedClasses:
    """Converts between the labels of a detector and those of data whose classes are a subset of the detector's.

    Args:
        of_model: class names of the detector's labels 1, 2, ...
        of_data: class names of the data's labels 1, 2, ...

    Raises:
        ConfigError: If the data has a class that the detector does not have.
    """

    def __init__(self, of_model: Sequence[str], of_data: Sequence[str]) -> None:
        if missing := [name for name in of_data if name not in of_model]:
            raise ConfigError(f"the data has the classes {missing}, the checkpoint was trained for {list(of_model)}")
        self._to_model = torch.tensor([0, *(list(of_model).index(name) + 1 for name in of_data)])
        self._to_data = torch.zeros(len(of_model) + 1, dtype=torch.int64)
        self._to_data[self._to_model[1:]] = torch.arange(1, len(of_data) + 1)

    def label_targets(self, targets: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Returns targets of the data with the detector's labels."""
        return [t | {"labels": self._to_model.to(t["labels"].device)[t["labels"]]} for t in targets]

    def label_predictions(self, predictions: Sequence[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        """Returns predictions with the data's labels, without those of classes that the data does not have."""
        found = []
        for prediction in predictions:
            labels = self._to_data.to(prediction["labels"].device)[prediction["labels"]]
            kept = {name: value[labels > 0] for name, value in prediction.items()}
            found.append(kept | {"labels": labels[labels > 0]})
        return found
