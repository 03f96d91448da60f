"""Overlaps of detections with the objects of their images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detpool.evaluation.detections import Detections


def own_class_ious(ground_truth: Mapping[str, Any], found: Detections) -> NDArray[np.float64]:
    """Compute the IoU of each detection's box with the nearest object of its class in its image.

    Args:
        ground_truth: COCO's annotation format; crowds and objects flagged `ignore` are skipped.
        found: n detections.

    Returns:
        The IoUs, (n,); -1 where the image has no object of the class.
    """
    objects = [row for row in ground_truth["annotations"] if not row.get("iscrowd") and not row.get("ignore")]
    images, categories = (np.array([row[key] for row in objects], np.int64) for key in ("image_id", "category_id"))
    boxes, ious = np.array([row["bbox"] for row in objects], np.float64).reshape(-1, 4), np.full(len(found), -1.0)
    for category in np.unique(found.category_ids):
        own, of_class = found.category_ids == category, categories == category
        ious[own] = nearest_objects(found.image_ids[own], found.boxes[own], images[of_class], boxes[of_class])[1]
    return ious


def nearest_objects(
    image_ids: NDArray[np.int64],
    boxes: NDArray[np.float64],
    object_image_ids: NDArray[np.int64],
    object_boxes: NDArray[np.float64],
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Find the object in its image with which each detection has the highest IoU.

    Args:
        image_ids: (n,), the image ids of the detections.
        boxes: (n, 4), their boxes, xywh in continuous coordinates.
        object_image_ids: (m,), the image ids of the objects.
        object_boxes: (m, 4), their boxes.

    Returns:
        The index of the object of each detection (n,), the first among equal IoUs, and the IoU with it (n,). They are 0
        and -1 where the image has no object.
    """
    order = object_image_ids.argsort(kind="stable")
    begins, ends = (object_image_ids[order].searchsorted(image_ids, side) for side in ("left", "right"))
    counts = ends - begins
    # All pairs of a detection and an object of its image, in the order of detections.
    detection = np.repeat(np.arange(len(image_ids)), counts)
    object_ = order[np.arange(counts.sum()) + np.repeat(begins - counts.cumsum() + counts, counts)]
    overlaps = _paired_iou(boxes[detection], object_boxes[object_])
    best = np.lexsort((-overlaps, detection))[(counts.cumsum() - counts)[counts > 0]]
    nearest, overlap = np.zeros(len(image_ids), np.int64), np.full(len(image_ids), -1.0)
    nearest[counts > 0], overlap[counts > 0] = object_[best], overlaps[best]
    return nearest, overlap


def _paired_iou(boxes: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute the IoU of xywh boxes (n, 4) with one other box each, (n,); 0 where the union is empty."""
    low = np.maximum(boxes[:, :2], others[:, :2])
    high = np.minimum(boxes[:, :2] + boxes[:, 2:], others[:, :2] + others[:, 2:])
    intersection = (high - low).clip(min=0).prod(axis=1)
    union = boxes[:, 2:].prod(axis=1) + others[:, 2:].prod(axis=1) - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)
