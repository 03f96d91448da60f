"""Calibration of scores and of predicted IoUs."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detpool.evaluation.detections import Detections, Row
from detpool.evaluation.errors import Judge
from detpool.evaluation.overlaps import own_class_ious

BINS = 15


def calibration_error(said: NDArray[np.float64], true: NDArray[np.float64], bins: int = BINS) -> float:
    """Compute the expected calibration error of predictions, binned by predicted value.

    It is the sum over bins of the bin's share of all entries times |mean of `true` - mean of `said`| (Guo et al.,
    ICML 2017, equation 3, with its 15 bins). The bins have equal width over 0 .. 1 and include their upper ends.

    Args:
        said: (n,), predicted values in 0 .. 1.
        true: (n,), outcomes in 0 .. 1.
        bins: number of bins.

    Returns:
        A number in 0 .. 1; NaN if there are no entries.
    """
    if len(said) == 0:
        return math.nan
    of = np.ceil(said * bins).astype(np.int64).clip(1, bins) - 1
    return float(np.abs(np.bincount(of, true - said, bins)).sum() / len(said))


def calibration(
    ground_truth: Mapping[str, Any],
    rows: Detections | Iterable[Row],
    *,
    image_ids: Collection[int] | None = None,
    iou_threshold: float = 0.5,
) -> dict[str, float]:
    """Compute the calibration error of scores, and of predicted IoUs if there are any, over all classes and by class.

    A score should be the probability that the detection is correct: that its box has IoU >= `iou_threshold` with an
    object of its class that no detection with a higher score has taken. A predicted IoU should be the IoU with the
    nearest object of the class, or 0 if the image has none. Detections on crowds and ignored objects do not count.

    Args:
        ground_truth, rows, image_ids: see `detpool.evaluation.errors.error_decomposition`.
        iou_threshold: smallest IoU of a correct box.

    Returns:
        `ECE` and `ECE/<class>`, the `calibration_error` of scores; and, if any detection has a predicted IoU, `iou_ECE`
        and `iou_ECE/<class>`, that of predicted IoUs. NaN where there is no detection.

    Raises:
        ValueError: See `error_decomposition`.
    """
    found = Detections.of(rows)
    judge = Judge(ground_truth, found, image_ids, iou_threshold=iou_threshold, background_threshold=iou_threshold)
    names = {category["id"]: category["name"] for category in ground_truth["categories"]}
    nearest, scores, ious = own_class_ious(ground_truth, found).clip(min=0), {}, {}
    for category in judge.categories:
        judged = [(place, kind) for place, kind, _ in judge.judge_class(category) if kind is not None]
        places = np.array([place for place, _ in judged], np.int64)
        correct = np.array([kind == "correct" for _, kind in judged], np.float64)
        scores[names[category]] = found.scores[places], correct
        places = places[~np.isnan(found.ious[places])]
        ious[names[category]] = found.ious[places], nearest[places]
    result = _errors("ECE", scores)
    return result if np.isnan(found.ious).all() else result | _errors("iou_ECE", ious)


def _errors(name: str, by_class: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]) -> dict[str, float]:
    said, true = (np.concatenate([np.zeros(0), *column]) for column in zip(*by_class.values(), strict=True))
    by_name = {f"{name}/{label}": calibration_error(*columns) for label, columns in by_class.items()}
    return {name: calibration_error(said, true), **by_name}
