"""Which way boxes are wrong: signed errors of detections that match an object."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from detpool.evaluation.detections import Detections, Row, by_image
from detpool.evaluation.errors import judge_image

SIZES = ("s", "m", "l")
"""COCO's classes of objects by area, as in APs, APm and APl: below 32^2 pixels of the image file, up to 96^2, above."""
ERRORS = ("dx", "dy", "dw", "dh")


def box_errors(
    ground_truth: Mapping[str, Any], rows: Detections | Iterable[Row], iou_threshold: float = 0.5
) -> pd.DataFrame:
    """Signed errors of each object's detection.

    An object's detection is the best-scored one of its class at IoU >= `iou_threshold` (`errors.judge_image`); crowds
    and ignored objects are none.

    Args:
        ground_truth: COCO's annotation format, in pixels of the image files.
        rows: detections, as `Detections` or in COCO's result format.
        iou_threshold: smallest IoU with the object. Errors that would bring a box below it are not among them.

    Returns:
        a row each object: its `image_id`, `x`, `y`, `w`, `h` and `area`; its `size`, s, m or l as COCO has them; `dx`
        and `dy`, how far the detection's centre lies to the right of the object's and below it; and `dw` and `dh`, by
        how much it is wider and higher. All in pixels of the image file; NaN where nothing was found.
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
