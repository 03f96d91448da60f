"""The cost of each kind of error: the AP that would be gained by fixing it (TIDE: Bolya et al., ECCV 2020)."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detpool.evaluation.detections import Detections, Row
from detpool.evaluation.errors import ERRORS, Judge, Kind

MENDED = (*ERRORS, "false_positive", "false_negative")
"""What is fixed, one at a time: each kind of error, all wrong detections, and all objects that are not found."""
_RECALLS = np.linspace(0, 1, 101)  # COCO's


def error_costs(
    ground_truth: Mapping[str, Any],
    rows: Detections | Iterable[Row],
    *,
    image_ids: Collection[int] | None = None,
    iou_type: Kind = "bbox",
    max_dets: int = 100,
) -> dict[str, float]:
    """Compute how much AP at IoU 0.5 is gained by fixing all errors of one kind and no others (TIDE, section 2.3).

    The kinds are those of `error_decomposition`, but every detection is judged. (TIDE tests for the kinds in another
    order, which matters only for detections that are of several kinds at once.) To fix an error means:

    - *classification*, *localisation*: the detection gets the class or the box of its object. Of several detections
      with the same object, only the one with the highest score does; the others are removed. If a detection is already
      correct for the object, all of them are removed,
    - *both*, *duplicate*, *background*: the detection is removed,
    - *missed*: the object is no longer counted,
    - *false_positive*: every detection that is not correct is removed,
    - *false_negative*: every object for which no detection is correct is no longer counted.

    Gains do not add up to 1 - AP: errors hide each other.

    Args:
        ground_truth, rows, image_ids, iou_type: see `error_decomposition`.
        max_dets: how many detections count per image and class: those with the highest scores.

    Returns:
        `AP50`, as COCO defines it, and `dAP50/<kind>` for each of `MENDED`; all are NaN if no class has an object. A
        class of which no object is counted any more has AP 0 if it has detections, and is left out of the mean if not.

    Raises:
        ValueError: See `error_decomposition`.
    """
    found = Detections.of(rows)
    found = found.take(_best(found, max_dets))
    judge = Judge(ground_truth, found, image_ids, iou_type)
    judged = [one for category in judge.categories for one in judge.judge_class(category)]
    objects, missed = {category: count for category, count in judge.objects().items() if count}, judge.missed()
    if not objects:
        return dict.fromkeys(["AP50", *(f"dAP50/{kind}" for kind in MENDED)], math.nan)
    points = [
        _Point(int(found.category_ids[place]), float(found.scores[place]), kind, of)
        for place, kind, of in judged
        if kind is not None
    ]
    correct = Counter(point.category for point in points if point.kind == "correct")
    base = _mean_ap(points, objects)
    costs = {"AP50": base}
    for kind in MENDED:
        left, asked = points, objects
        if kind in ("classification", "localisation"):
            left = _moved(points, kind, judge)
        elif kind == "missed":
            asked = {category: count - missed[category] for category, count in objects.items()}
        elif kind == "false_negative":
            asked = {category: correct[category] for category in objects}
        else:
            gone = set(ERRORS) if kind == "false_positive" else {kind}
            left = [point for point in points if point.kind not in gone]
        costs[f"dAP50/{kind}"] = _mean_ap(left, asked) - base
    return costs


@dataclass(frozen=True)
class _Point:
    """A detection that counts."""

    category: int
    score: float
    kind: str
    of: tuple[int, int] | None


def _moved(points: list[_Point], kind: str, judge: Judge) -> list[_Point]:
    """Return the points with the errors of a kind fixed; of those with the same object, the best one gets it."""
    taken: set[Any] = set()
    moved = []
    for point in sorted(points, key=lambda point: -point.score):
        if point.kind != kind:
            moved.append(point)
        elif point.of is not None and not judge.is_taken(point.of) and point.of not in taken:
            taken.add(point.of)
            moved.append(_Point(judge.category_of(point.of), point.score, "correct", point.of))
    return moved


def _mean_ap(points: list[_Point], objects: Mapping[int, int]) -> float:
    found: dict[int, list[bool]] = defaultdict(list)
    for point in sorted(points, key=lambda point: -point.score):
        found[point.category].append(point.kind == "correct")
    # A class without counted objects has no AP, except that its detections are all wrong if it has some.
    asked = {category: count for category, count in objects.items() if count or found[category]}
    values = [_ap(np.array(found[category], bool), count) if count else 0.0 for category, count in asked.items()]
    return float(np.mean(values)) if values else math.nan


def _ap(correct: NDArray[np.bool_], objects: int) -> float:
    """Return COCO's mean precision at 101 recalls, of detections in order of decreasing score."""
    true = correct.cumsum()
    precision = np.maximum.accumulate((true / np.arange(1, len(true) + 1))[::-1])[::-1]
    places = np.searchsorted(true / objects, _RECALLS)
    return float(np.append(precision, 0.0)[places].mean())


def _best(found: Detections, limit: int) -> NDArray[np.int64]:
    """Return the indices, ascending, of the `limit` best detections of each image and class."""
    order = np.lexsort((-found.scores, found.category_ids, found.image_ids))
    keys = np.stack([found.image_ids[order], found.category_ids[order]])
    starts = np.append(True, (keys[:, 1:] != keys[:, :-1]).any(0))[: len(order)].nonzero()[0]
    ranks = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    return np.sort(order[ranks < limit])
