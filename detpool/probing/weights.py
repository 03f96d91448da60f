"""Finished weights under another pooler or other proposals: metrics, and which way boxes are wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning import Callback
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from detpool.data.datamodule import DetectionDataModule
from detpool.errors import WeightsError
from detpool.evaluation.box_errors import ERRORS, SIZES, box_errors
from detpool.poolers import AllLevelsPooler, RoIPooler
from detpool.training import runs

METRICS = ("AP", "AP50", "AP75", "mask_AP", "mask_AP50", "mask_AP75")


class _InputScales(Callback):
    """Of each image, by its id, pixels of the model's input a pixel of the file: x and y."""

    def __init__(self) -> None:
        self.scales: dict[int, tuple[float, float]] = {}

    def _note(self, batch: Any) -> None:
        for image, target in zip(*batch, strict=True):
            height, width = target["orig_size"]
            self.scales[int(target["image_id"])] = (image.shape[-1] / width, image.shape[-2] / height)

    def on_validation_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, *rest: Any) -> None:
        self._note(batch)

    def on_test_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, *rest: Any) -> None:
        self._note(batch)


def probe(
    config: DictConfig, checkpoint: Path, data: DetectionDataModule
) -> tuple[dict[str, float], pd.DataFrame, list[str]]:
    """Evaluate a checkpoint as `eval.py` does, on one device.

    Args:
        config: that of its run, with another pooler or other proposals.
        checkpoint: a file.
        data: the data of `config`, whose evaluation sets are read.

    Returns:
        the metrics of `DetectionEvaluator.compute`; `box_errors` of all objects of the images that were evaluated, with
        `cell_w` and `cell_h`, the sides in pixels of the image file of a cell of the map that the object's box is
        pooled from (NaN where a pooler has no such map); and what to say of classes that are not shared.

    Raises:
        ConfigError: the pooler does not fit the feature maps, or the data does not fit the model.
        WeightsError: the weights do not fit: the pooler gives another shape, or has weights that were not trained.
    """
    split = config.evaluation.split
    try:
        module, data, notes = runs.restore_on(config, checkpoint, data)
    except WeightsError as error:
        raise WeightsError(
            f"{error} (the heads take pooled features of the shape that they were trained with, and weights of a "
            "pooler itself must be in the checkpoint)"
        ) from error
    for key, value in {"devices": 1, "num_nodes": 1, "strategy": "auto"}.items():
        OmegaConf.update(config, f"trainer.{key}", value, force_add=True)
    sizes = _InputScales()
    trainer = runs.build_trainer(config, [sizes], [])
    run, dataset = (trainer.validate, data.val_dataset) if split == "val" else (trainer.test, data.test_dataset)
    run(module, datamodule=data, verbose=False)
    assert module.evaluator is not None
    errors = box_errors(dataset.ground_truth(), module.evaluator.results())
    errors = errors[errors["image_id"].isin(sizes.scales)].reset_index(drop=True)  # limit_test_batches leaves some out
    scales = np.array([sizes.scales[image] for image in errors["image_id"]], np.float64).reshape(-1, 2)
    corners = np.concatenate([errors[["x", "y"]], errors[["x", "y"]].to_numpy() + errors[["w", "h"]].to_numpy()], 1)
    cells = cell_sides(module.model.roi_heads.box_roi_pool, torch.from_numpy(corners * np.tile(scales, 2)))
    errors[["cell_w", "cell_h"]] = cells.numpy()[:, None] / scales
    return module.metrics, errors, notes


def cell_sides(pooler: nn.Module, boxes: Tensor) -> Tensor:
    """Side in pixels of the model's input of a cell of the map that each box is pooled from.

    Args:
        pooler: a detector's.
        boxes: (K, 4) XYXY in pixels of the model's input.

    Returns:
        float64 (K,), NaN for a pooler that pools from all levels or is none of detpool's.
    """
    several = isinstance(pooler, AllLevelsPooler) and len(pooler.featmap_names) > 1
    if not isinstance(pooler, RoIPooler) or pooler.strides is None or several:
        return torch.full((len(boxes),), math.nan, dtype=torch.float64)
    levels = pooler.find_levels(boxes, [1 / stride for stride in pooler.strides])
    return torch.tensor(pooler.strides, dtype=torch.float64)[levels]


def summarize(metrics: Mapping[str, float], errors: pd.DataFrame) -> list[dict[str, Any]]:
    """Metrics and mean errors by size of objects.

    Args:
        metrics, errors: of `probe`.

    Returns:
        a row for all objects and one for each of `SIZES` that occurs: `size`; `objects` and `found`, their numbers;
        those of `METRICS` that are known, of a size AP alone; and of each of `ERRORS` over the objects that were found
        the mean in pixels (`dx`), their standard deviation (`dx_std`, n - 1) and the mean in cells (`dx_cells`).
    """
    rows = []
    for size in ("all", *SIZES):
        part = errors if size == "all" else errors[errors["size"] == size]
        if part.empty and size != "all":
            continue
        if size == "all":
            known = {name: metrics[name] for name in METRICS if name in metrics}
        else:
            known = {f"{kind}AP": metrics[f"{kind}AP{size}"] for kind in ("", "mask_") if f"{kind}AP{size}" in metrics}
        row = {"size": size, "objects": len(part), "found": int(part["dx"].notna().sum()), **known}
        for error in ERRORS:
            cell = part["cell_w" if error in ("dx", "dw") else "cell_h"]
            row[error], row[f"{error}_std"] = part[error].mean(), part[error].std()
            row[f"{error}_cells"] = (part[error] / cell).mean()
        rows.append(row)
    return rows
