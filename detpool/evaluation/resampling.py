"""AP of resampled images: each image counts as often as it was drawn."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detpool.evaluation.matches import THRESHOLDS, Matches
from detpool.ops.backends.cpu.compiling import exact_kernel

_RECALLS = np.linspace(0, 1, 101)  # bitwise equal to those of pycocotools
_VALUES = 2**21  # how many precisions are computed at a time


@functools.lru_cache(maxsize=4)
def bootstrap_weights(images: int, resamples: int, seed: int = 0) -> NDArray[np.int32]:
    """Draw bootstrap samples: as many images as there are, with replacement.

    Args:
        images: number of images.
        resamples: number of bootstrap samples.
        seed: seed of the generator; the same arguments give the same samples.

    Returns:
        How often each image was drawn, (1 + resamples, images); in the first row each image counts once.
    """
    drawn = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / max(images, 1)), resamples)
    weights = np.concatenate([np.ones((1, images)), drawn]).astype(np.int32)
    weights.flags.writeable = False  # it is shared
    return weights


def weighted_ap(matches: Matches, weights: NDArray[np.integer[Any]]) -> dict[str, NDArray[np.float64]]:
    """Compute COCO's AP of several weightings of the images.

    Entry b is the AP of a data set in which image i occurs `weights[b, i]` times, at 101 recalls and over all areas.
    With weights of 1 it is bitwise equal to that of `CocoEvaluator.evaluate`. Among detections of the same image, class
    and score, all copies of the one ranked higher go first.

    Args:
        matches: matches on I images.
        weights: (B, I), integers that are not negative.

    Returns:
        `AP`, `AP50`, `AP75` and `AP@0.50` ... `AP@0.95`, each (B,); NaN where no object is left. A class without an
        object is left out of the means.

    Raises:
        ValueError: If the shape of `weights` does not fit, or a weight is negative.
    """
    images, classes = len(matches.image_ids), len(matches.class_names)
    if weights.ndim != 2 or weights.shape[1] != images or (weights.size and weights.min() < 0):
        raise ValueError(f"weights must be (resamples, {images}) and not negative, got shape {weights.shape}")
    weights, tables = np.ascontiguousarray(weights, np.int32), _tables(matches)
    step = max(1, _VALUES // max(1, len(THRESHOLDS) * len(_RECALLS) * classes))
    parts = []
    for start in range(0, max(1, len(weights)), step):
        part = weights[start : start + step]
        precision = np.empty((len(part), len(THRESHOLDS), len(_RECALLS), classes))
        _precision(part, *tables, matches.spacing, _RECALLS, precision)
        by_threshold = {f"AP@{t:.2f}": _means(precision[:, i]) for i, t in enumerate(THRESHOLDS)}
        parts.append({"AP": _means(precision)} | by_threshold)
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return {"AP": found["AP"], "AP50": found["AP@0.50"], "AP75": found["AP@0.75"], **found}


def resampled_ap(matches: Mapping[str, Matches], resamples: int, seed: int = 0) -> dict[str, NDArray[np.float64]]:
    """Compute `weighted_ap` with `bootstrap_weights` for each IoU type; the names for masks begin with `mask_`."""
    found: dict[str, NDArray[np.float64]] = {}
    for kind, each in matches.items():
        prefix = "mask_" if kind == "segm" else ""
        values = weighted_ap(each, bootstrap_weights(len(each.image_ids), resamples, seed))
        found |= {prefix + name: value for name, value in values.items()}
    return found


def _means(precision: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each resample's mean of the defined precisions, summed in the same order as by `CocoEvaluator`."""
    rows = precision.reshape(len(precision), -1)
    defined = rows > -1
    if defined.all():
        return rows.mean(1) if rows.shape[1] else np.full(len(rows), np.nan)
    # Whether a class is defined depends only on the resample: rows that lack the same classes are handled together.
    means = np.full(len(rows), np.nan)
    kinds, which = np.unique(defined[:, : precision.shape[-1]], axis=0, return_inverse=True)
    for number, kind in enumerate(kinds):
        places = (which.reshape(-1) == number).nonzero()[0]
        if kind.any():
            means[places] = precision[places][..., kind].reshape(len(places), -1).mean(1)
    return means


def _tables(matches: Matches) -> tuple[NDArray[Any], ...]:
    """Prepare the arguments of `_precision`, which need not list false positives: only their number matters."""
    classes = len(matches.class_names)
    starts = matches.classes.searchsorted(np.arange(classes + 1)).astype(np.int64)
    places, is_match, ends = [], [], [0]
    for k in range(classes):
        part = slice(starts[k], starts[k + 1])
        for t in range(len(THRESHOLDS)):
            matched, ignored = ((bits[part] >> t & 1).astype(np.bool_) for bits in (matches.matched, matches.ignored))
            events = (matched | ignored).nonzero()[0]
            places.append(events)
            is_match.append(~ignored[events])
            ends.append(ends[-1] + len(events))
    order = matches.objects[:, 1].argsort(kind="stable")
    objects = np.ascontiguousarray(matches.objects[order])
    object_starts = objects[:, 1].searchsorted(np.arange(classes + 1)).astype(np.int64)
    joined = np.concatenate([np.zeros(0, np.int64), *places]), np.concatenate([np.zeros(0, np.bool_), *is_match])
    return matches.images, starts, *joined, np.array(ends, np.int64), objects, object_starts


@exact_kernel
def _precision(
    weights: NDArray[np.int32],
    images: NDArray[np.int32],
    starts: NDArray[np.int64],
    places: NDArray[np.int64],
    is_match: NDArray[np.bool_],
    ends: NDArray[np.int64],
    objects: NDArray[np.int32],
    object_starts: NDArray[np.int64],
    spacing: float,
    recalls: NDArray[np.float64],
    out: NDArray[np.float64],
) -> None:
    """Write the precision to `out` (B, thresholds, recalls, classes); -1 for a class without an object.

    Args:
        weights: (B, I).
        images, starts: the image of each detection, ranked; and where each class begins in it.
        places, is_match, ends: the detections that match or are ignored, as indices within their class; which of them
            count; and where those of each class and threshold end.
        objects, object_starts: the `objects` of `Matches`, by class; and where each class begins in them.
        spacing: see `Matches`.
        recalls: ascending.
        out: receives the result.
    """
    resamples, thresholds, _, classes = out.shape
    size = 1
    for k in range(classes):
        size = max(size, starts[k + 1] - starts[k])
    drawn, precision, recall = np.empty(size, np.int64), np.empty(size), np.empty(size)
    for b in range(resamples):
        for k in range(classes):
            positives = 0
            for i in range(object_starts[k], object_starts[k + 1]):
                positives += weights[b, objects[i, 0]] * objects[i, 2]
            last = -1
            for t in range(thresholds):
                if ends[k * thresholds + t + 1] > ends[k * thresholds + t]:
                    last = max(last, places[ends[k * thresholds + t + 1] - 1])
            count = 0
            for d in range(last + 1):
                count += weights[b, images[starts[k] + d]]
                drawn[d] = count
            for t in range(thresholds):
                if positives == 0:
                    for r in range(len(recalls)):
                        out[b, t, r, k] = -1
                    continue
                true, ignored, points = 0, 0, 0
                for e in range(ends[k * thresholds + t], ends[k * thresholds + t + 1]):
                    weight = weights[b, images[starts[k] + places[e]]]
                    if weight == 0:
                        continue
                    if not is_match[e]:
                        ignored += weight
                        continue
                    true += weight
                    precision[points] = true / (drawn[places[e]] - ignored + spacing)
                    recall[points] = true / positives
                    points += 1
                for p in range(points - 2, -1, -1):
                    precision[p] = max(precision[p], precision[p + 1])
                point = 0
                for r in range(len(recalls)):
                    while point < points and recall[point] < recalls[r]:
                        point += 1
                    out[b, t, r, k] = precision[point] if point < points else 0.0
