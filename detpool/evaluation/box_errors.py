"""Which way boxes are wrong: signed errors of detections that match an object."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from detpool.evaluation.detections import Detections, Row, by_image
from detpool.evaluation.errors import judge_image

SIZES = ("s", "m", "l")
"""COCO's size classes, as in APs, APm and APl, by area in pixels of the image file: < 32^2, < 96^2, and the rest."""
ERRORS = ("dx", "dy", "dw", "dh")


def box_errors(
    ground_truth: Mapping[str, Any], rows: Detections | Iterable[Row], iou_threshold: float = 0.5
) -> pd.DataFrame:
    """Compute the signed box errors of the detection of each object.

    An object's detection is the one with the highest score of its class at IoU >= `iou_threshold`
    (`errors.judge_image`). Crowds and ignored objects are skipped.

    Args:
        ground_truth: COCO's annotation format, in pixels of the image files.
        rows: detections, as `Detections` or in COCO's result format.
        iou_threshold: smallest IoU of a detection with its object. Boxes with larger errors count as not found.

    Returns:
        A table with one row per object: its `image_id`, `x`, `y`, `w`, `h` and `area`; its `size` (one of `SIZES`);
        `dx` and `dy`, how far the center of the detection lies to the right of and below the center of the object; and
        `dw` and `dh`, how much wider and higher the detection is. All lengths are in pixels of the image file. The
        errors are NaN for objects without a detection.
    """
    found, records = by_image(Detections.of(rows)), []
    for image_id, here in by_image(ground_truth["annotations"]).items():
        verdicts = judge_image(here, found[image_id], iou_threshold, min(iou_threshold, 0.1))
        detected = {place: n for n, place in enumerate(verdicts.objects) if place is not None}
        for place, annotation in enumerate(here):
            if not annotation.get("iscrowd") and not annotation.get("ignore"):
                box = found[image_id][detected[place]]["bbox"] if place in detected else [np.nan] * 4
                records.append([image_id, annotation["area"], *annotation["bbox"], *box])
    names = ["image_id", "area", "x", "y", "w", "h", "left", "top", "width", "height"]
    table = pd.DataFrame(records, columns=names).astype({"image_id": int})
    table["dw"], table["dh"] = table["width"] - table["w"], table["height"] - table["h"]
    table["dx"] = table["left"] - table["x"] + table["dw"] / 2
    table["dy"] = table["top"] - table["y"] + table["dh"] / 2
    table["size"] = np.array(SIZES)[np.digitize(table["area"], [32**2, 96**2])]
    return table[["image_id", "x", "y", "w", "h", "area", "size", *ERRORS]]
