"""Whether a model knows how well its boxes fit."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from pycocotools import mask as coco

from detpool.evaluation.results import Row


def iou_correlation(ground_truth: Mapping[str, Any], rows: Iterable[Row], min_iou: float = 0.5) -> float:
    """Pearson's correlation of the predicted IoU of detections with their IoU with the nearest object of their class.

    As IoU-Net (Jiang et al., ECCV 2018, figure 2) measures it: over all detections that have an object.

    Args:
        ground_truth: COCO's annotation format; crowds and ignored objects are no objects.
        rows: detections in COCO's result format; those with a predicted `iou` count.
        min_iou: IoU with its object from which a detection has one.

    Returns:
        the correlation, in -1 .. 1; NaN with fewer than two such detections, or if all are alike.
    """
    objects: dict[tuple[int, int], list[list[float]]] = defaultdict(list)
    for annotation in ground_truth["annotations"]:
        if not annotation.get("iscrowd") and not annotation.get("ignore"):
            objects[annotation["image_id"], annotation["category_id"]].append(annotation["bbox"])
    found: dict[tuple[int, int], list[Row]] = defaultdict(list)
    for row in rows:
        if "iou" in row and (row["image_id"], row["category_id"]) in objects:
            found[row["image_id"], row["category_id"]].append(row)
    predicted, true = [], []
    for key, detections in found.items():
        ious = coco.iou([row["bbox"] for row in detections], objects[key], [0] * len(objects[key])).max(axis=1)
        predicted += [row["iou"] for row, iou in zip(detections, ious, strict=True) if iou >= min_iou]
        true += [iou for iou in ious if iou >= min_iou]
    if len(true) < 2 or np.std(predicted) == 0 or np.std(true) == 0:
        return math.nan
    return float(np.corrcoef(predicted, true)[0, 1])
