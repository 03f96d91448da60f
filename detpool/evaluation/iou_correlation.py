"""Whether a model knows how well its boxes fit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from detpool.evaluation.detections import Detections, Row
from detpool.evaluation.overlaps import own_class_ious


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
    found = Detections.of(rows)
    ious = own_class_ious(ground_truth, found)
    counted = (ious >= min_iou) & ~np.isnan(found.ious)
    x, y = found.ious[counted], ious[counted]
    if len(x) < 2 or np.std(x) == 0 or np.std(y) == 0:
        return math.nan
    return float(np.corrcoef(x, y)[0, 1])
