"""Whether a model knows how well its boxes fit."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from detpool.evaluation.detections import Detections, Row
from detpool.evaluation.overlaps import nearest_objects


def iou_correlation(ground_truth: Mapping[str, Any], rows: Detections | Iterable[Row], min_iou: float = 0.5) -> float:
    """Pearson's correlation of the predicted IoU of detections with their IoU with the nearest object of their class.

    As IoU-Net (Jiang et al., ECCV 2018, figure 2) measures it: over all detections that have an object.

    Args:
        ground_truth: COCO's annotation format; crowds and ignored objects are no objects.
        rows: detections, as `Detections` or in COCO's result format; those with a predicted `iou` count.
        min_iou: IoU with its object from which a detection has one.

    Returns:
        the correlation, in -1 .. 1; NaN with fewer than two such detections, or if all are alike.
    """
    objects: dict[int, list[Mapping[str, Any]]] = defaultdict(list)  # by class
    for annotation in ground_truth["annotations"]:
        if not annotation.get("iscrowd") and not annotation.get("ignore"):
            objects[annotation["category_id"]].append(annotation)
    found = Detections.of(rows)
    predicted, true = [np.zeros(0)], [np.zeros(0)]
    for category_id, of_class in objects.items():
        places = ((found.category_ids == category_id) & ~np.isnan(found.ious)).nonzero()[0]
        _, ious = nearest_objects(
            found.image_ids[places],
            found.boxes[places],
            np.array([each["image_id"] for each in of_class], np.int64),
            np.array([each["bbox"] for each in of_class], np.float64),
        )
        predicted.append(found.ious[places[ious >= min_iou]])
        true.append(ious[ious >= min_iou])
    x, y = np.concatenate(predicted), np.concatenate(true)
    if len(x) < 2 or np.std(x) == 0 or np.std(y) == 0:
        return math.nan
    return float(np.corrcoef(x, y)[0, 1])
