"""Overlaps of detections with the objects of their images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def nearest_objects(
    image_ids: NDArray[np.int64],
    boxes: NDArray[np.float64],
    object_image_ids: NDArray[np.int64],
    object_boxes: NDArray[np.float64],
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The object that each detection overlaps most.

    Args:
        image_ids: (n,), of the detections.
        boxes: (n, 4) xywh, continuous.
        object_image_ids: (m,), of the objects.
        object_boxes: (m, 4).

    Returns:
        (n,), which object, the first of several that overlap equally; and (n,), the IoU with it. 0 and -1 where there
        is no object in the image.
    """
    order = object_image_ids.argsort(kind="stable")
    begins, ends = (object_image_ids[order].searchsorted(image_ids, side) for side in ("left", "right"))
    counts = ends - begins
    # All pairs of a detection with an object of its image, detection after detection.
    detection = np.repeat(np.arange(len(image_ids)), counts)
    object_ = order[np.arange(counts.sum()) + np.repeat(begins - counts.cumsum() + counts, counts)]
    overlaps = _paired_iou(boxes[detection], object_boxes[object_])
    best = np.lexsort((-overlaps, detection))[(counts.cumsum() - counts)[counts > 0]]
    nearest, overlap = np.zeros(len(image_ids), np.int64), np.full(len(image_ids), -1.0)
    nearest[counts > 0], overlap[counts > 0] = object_[best], overlaps[best]
    return nearest, overlap


def _paired_iou(boxes: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """IoU of xywh boxes (n, 4) with one other each: (n,); 0 where the union is empty."""
    low = np.maximum(boxes[:, :2], others[:, :2])
    high = np.minimum(boxes[:, :2] + boxes[:, 2:], others[:, :2] + others[:, 2:])
    intersection = (high - low).clip(min=0).prod(axis=1)
    union = boxes[:, 2:].prod(axis=1) + others[:, 2:].prod(axis=1) - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)
