"""Evaluation of trained weights with another pooler or other proposals: metrics, and signed errors of the boxes."""

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
    """Records for each image id the scale of the model's input in x and y: input pixels per pixel of the file."""

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
        config: config of its run, with another pooler or other proposals; changed to one device.
        checkpoint: the checkpoint file.
        data: the data of `config`, with evaluation sets that have been read.

    Returns:
        The metrics of `DetectionEvaluator.compute`; `box_errors` of all objects in the evaluated images, with `cell_w`
        and `cell_h`, the size in pixels of the image file of a cell of the map that the object's box is pooled from
        (NaN if the pooler has no single map per box); and notes on classes that data and model do not share.

    Raises:
        ConfigError: If the pooler does not fit the feature maps, or the data does not fit the model.
        WeightsError: If the weights do not fit: the pooler's output has another shape, or it has untrained weights.
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
    """Return the stride of the map that each box is pooled from, in pixels of the model's input.

    Args:
        pooler: a detector's pooler.
        boxes: (K, 4) XYXY in pixels of the model's input.

    Returns:
        float64 (K,), NaN for a pooler that pools from several levels, is not a `RoIPooler` or infers its strides.
    """
    several = isinstance(pooler, AllLevelsPooler) and len(pooler.featmap_names) > 1
    if not isinstance(pooler, RoIPooler) or pooler.strides is None or several:
        return torch.full((len(boxes),), math.nan, dtype=torch.float64)
    levels = pooler.find_levels(boxes, [1 / stride for stride in pooler.strides])
    return torch.tensor(pooler.strides, dtype=torch.float64)[levels]


def summarize(metrics: Mapping[str, float], errors: pd.DataFrame) -> list[dict[str, Any]]:
    """Summarize metrics and errors by object size.

    Args:
        metrics, errors: results of `probe`.

    Returns:
        One row for all objects and one for each of `SIZES` that occurs: `size`; the numbers of `objects` and of `found`
        objects; the available `METRICS` (for a size only AP); and for each of `ERRORS`, over the found objects, the
        mean in pixels (`dx`), the standard deviation (`dx_std`, n - 1) and the mean in cells (`dx_cells`).
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
