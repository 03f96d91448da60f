"""Pascal VOC's average precision, by area (VOC 2010 and later) and at 11 recalls (VOC 2007).

Definitions: the VOC development kit, http://host.robots.ox.ac.uk/pascal/VOC/ (VOCevaldet.m, VOCap.m).

The kit's boxes are inclusive pixel indices from 1, so it measures a width as x2 - x1 + 1. Boxes here are
continuous: the object (x1, y1, x2, y2) of an XML file is the box with corners (x1 - 1, y1 - 1) and (x2, y2).
Widths, areas and intersections are then those of the kit, without a + 1.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detpool.evaluation.detections import Detections, Row
from detpool.evaluation.overlaps import nearest_objects


def voc_metrics(
    ground_truth: Mapping[str, Any],
    rows: Detections | Iterable[Row],
    *,
    image_ids: Collection[int] | None = None,
    iou_threshold: float = 0.5,
) -> dict[str, float]:
    """Compute VOC's AP per class and its mean.

    As in the kit, the detections of a class are taken in order of decreasing score. Each is compared only with the
    object of its class and image that it overlaps most. If that IoU is at least `iou_threshold`, the detection does not
    count if the object is difficult, and is a true positive if no earlier detection has taken the object. All other
    detections are false positives. There is no limit on the number of detections.

    Args:
        ground_truth: COCO's annotation format; boxes xywh, continuous, in pixels of the image files. Objects
            flagged `ignore` (VOC's difficult) or `iscrowd` are difficult: they need not be found.
        rows: detections, as `Detections` or in COCO's result format, in the same pixels. Between equal scores of one
            class the earlier goes first.
        image_ids: the images to evaluate, by default all images of the ground truth.
        iou_threshold: smallest IoU of a match, in (0, 1].

    Returns:
        A flat dict, values in 0 .. 1: `voc_AP` and `voc_AP/<class name>` (area under the precision-recall
        curve with precision made monotone), `voc_AP11` and `voc_AP11/<class name>` (mean of the best
        precision at recall >= 0, 0.1, ... 1). A class without an object that must be found is NaN and does
        not enter the mean.

    Raises:
        ValueError: If `iou_threshold` is not in (0, 1], or a row names an image or a category that is not in the
            ground truth.
    """
    check_iou_threshold(iou_threshold)
    all_images = {image["id"] for image in ground_truth["images"]}
    wanted = all_images if image_ids is None else set(image_ids)
    categories = {category["id"]: category["name"] for category in ground_truth["categories"]}
    found = Detections.of(rows)
    found.check(all_images, categories)

    objects: dict[int, list[Mapping[str, Any]]] = defaultdict(list)  # by class
    for annotation in ground_truth["annotations"]:
        if annotation["image_id"] in wanted:
            objects[annotation["category_id"]].append(annotation)
    in_wanted = np.isin(found.image_ids, np.array(list(wanted), np.int64))

    area, eleven = {}, {}
    for category_id, name in sorted(categories.items()):
        of_class = (in_wanted & (found.category_ids == category_id)).nonzero()[0]
        places = of_class[np.argsort(-found.scores[of_class], kind="stable")]
        positives, outcome = _match(objects[category_id], found.image_ids[places], found.boxes[places], iou_threshold)
        true, false = np.cumsum(outcome == 1), np.cumsum(outcome == 0)
        area[name] = _area_ap(true, false, positives)
        eleven[name] = _eleven_point_ap(true, false, positives)

    return {
        "voc_AP": _mean(area),
        "voc_AP11": _mean(eleven),
        **{f"voc_AP/{name}": value for name, value in area.items()},
        **{f"voc_AP11/{name}": value for name, value in eleven.items()},
    }


def check_iou_threshold(iou_threshold: float) -> None:
    """Raise ValueError unless `iou_threshold` lies in (0, 1]."""
    if not 0 < iou_threshold <= 1:
        raise ValueError(f"iou_threshold must lie in (0, 1], got {iou_threshold}")


def _match(
    objects: list[Mapping[str, Any]],
    image_ids: NDArray[np.int64],
    boxes: NDArray[np.float64],
    iou_threshold: float,
) -> tuple[int, NDArray[np.int64]]:
    """Return how many objects must be found, and 1 for each true and 0 for each false positive, in their order.

    Args:
        objects: the objects of a class.
        image_ids, boxes: those of its detections, in order of decreasing score.
        iou_threshold: smallest IoU of a match.
    """
    object_image_ids = np.array([each["image_id"] for each in objects], np.int64)
    object_boxes = np.array([each["bbox"] for each in objects], np.float64).reshape(-1, 4)
    difficult = np.array([_is_difficult(each) for each in objects], np.bool_)
    nearest, overlap = nearest_objects(image_ids, boxes, object_image_ids, object_boxes)
    hits = (overlap >= iou_threshold).nonzero()[0]
    on_difficult = difficult[nearest[hits]]
    plain = hits[~on_difficult]
    outcome = np.zeros(len(boxes), np.int64)
    outcome[plain[np.unique(nearest[plain], return_index=True)[1]]] = 1  # the first on its object
    return int((~difficult).sum()), np.delete(outcome, hits[on_difficult])


def _is_difficult(annotation: Mapping[str, Any]) -> bool:
    return bool(annotation.get("ignore", 0) or annotation.get("iscrowd", 0))


def _area_ap(true: NDArray[np.int64], false: NDArray[np.int64], positives: int) -> float:
    """Return the area under the monotone precision-recall curve, from cumulative counts by decreasing score."""
    if not positives:
        return math.nan
    if not len(true):
        return 0.0
    precision = true / (true + false)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((envelope * np.diff(true, prepend=0)).sum() / positives)


def _eleven_point_ap(true: NDArray[np.int64], false: NDArray[np.int64], positives: int) -> float:
    """Return the mean over recalls 0, 0.1, ... 1 of the best precision at that recall or more."""
    if not positives:
        return math.nan
    precision = true / (true + false)
    # Recall >= k / 10 in integers: in floating point, 3 / 10 < 3 * 0.1 would lose a recall that was reached.
    return float(sum(precision[10 * true >= k * positives].max(initial=0.0) for k in range(11)) / 11)


def _mean(values: Mapping[str, float]) -> float:
    """Return the mean of the defined values; NaN if there are none."""
    defined = [value for value in values.values() if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan
