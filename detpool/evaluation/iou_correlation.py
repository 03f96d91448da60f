"""Correlation of predicted IoUs with true ones: whether a model knows how well its boxes fit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from detpool.evaluation.detections import Detections, Row
from detpool.evaluation.overlaps import own_class_ious


def iou_correlation(ground_truth: Mapping[str, Any], rows: Detections | Iterable[Row], min_iou: float = 0.5) -> float:
    """Compute Pearson's correlation of the predicted and true IoUs of detections.

    The true IoU of a detection is that with the nearest object of its class. As in IoU-Net (Jiang et al., ECCV 2018,
    figure 2), all detections with a true IoU of at least `min_iou` count.

    Args:
        ground_truth: COCO's annotation format; crowds and ignored objects are skipped.
        rows: detections, as `Detections` or in COCO's result format; those without a predicted `iou` are skipped.
        min_iou: smallest true IoU of a detection that counts.

    Returns:
        The correlation, in -1 .. 1; NaN if fewer than two detections count, or if all their predicted IoUs, or all
        their true ones, are equal.
    """
    found = Detections.of(rows)
    ious = own_class_ious(ground_truth, found)
    counted = (ious >= min_iou) & ~np.isnan(found.ious)
    x, y = found.ious[counted], ious[counted]
    if len(x) < 2 or np.std(x) == 0 or np.std(y) == 0:
        return math.nan
    return float(np.corrcoef(x, y)[0, 1])
