"""The confusion matrix of a detector: which classes it takes for which."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle

from detpool.evaluation.detections import Detections, Row, by_image
from detpool.files import write_bytes_atomically, write_csv_atomically


def confusion_matrix(
    ground_truth: Mapping[str, Any],
    rows: Detections | Iterable[Row],
    *,
    image_ids: Collection[int] | None = None,
    score_threshold: float = 0.5,
    iou_threshold: float = 0.5,
) -> NDArray[np.int64]:
    """Counts objects by their class and by the class of the detection matched with them.

    In order of decreasing score, each detection takes the unmatched object of any class with the highest IoU, if that
    IoU is at least `iou_threshold`. A detection that takes no object counts as one of background, unless it lies on a
    crowd or an ignored object (IoU >= `iou_threshold`; for a crowd, intersection over the detection's own area): then
    it does not count.

    Args:
        ground_truth: COCO's annotation format.
        rows: detections, as `Detections` or in COCO's result format; boxes are compared.
        image_ids: the images to count, by default all images of the ground truth.
        score_threshold: smallest score of a detection that counts.
        iou_threshold: smallest IoU of a detection with its object.

    Returns:
        A matrix (classes + 1, classes + 1). Rows are the classes of objects and columns the classes of detections, both
        in the order of category ids and followed by background: objects without a detection are in the last column,
        detections without an object in the last row.

    Raises:
        ValueError: If a row names an image or a category that is not in the ground truth.
    """
    found = Detections.of(rows)
    categories = sorted(category["id"] for category in ground_truth["categories"])
    known = [image["id"] for image in ground_truth["images"]]
    found.check(known, categories)
    wanted = set(known if image_ids is None else image_ids)
    annotations = by_image(ground_truth["annotations"])
    label = {category: number for number, category in enumerate(categories)}
    background = len(categories)
    matrix = np.zeros((background + 1, background + 1), np.int64)
    counts = np.isin(found.image_ids, np.array(sorted(wanted), np.int64)) & (found.scores >= score_threshold)
    for image in wanted:
        objects = annotations[image]
        crowd = np.array([a.get("iscrowd", 0) for a in objects], np.uint8)
        free = np.array([not a.get("iscrowd") and not a.get("ignore") for a in objects], np.bool_)
        ignored, boxes = ~free, np.array([a["bbox"] for a in objects], np.float64).reshape(-1, 4)
        places = (counts & (found.image_ids == image)).nonzero()[0]
        for place in places[np.argsort(-found.scores[places], kind="stable")].tolist():
            column = label[int(found.category_ids[place])]
            iou = rle.iou(found.boxes[place : place + 1], boxes, crowd)[0] if objects else np.zeros(0)
            on = iou >= iou_threshold
            if (on & free).any():
                taken = int(np.where(on & free, iou, -1).argmax())
                free[taken] = False
                matrix[label[objects[taken]["category_id"]], column] += 1
            elif not (on & ignored).any():
                matrix[background, column] += 1
        for left in free.nonzero()[0].tolist():
            matrix[label[objects[left]["category_id"]], background] += 1
    return matrix


def write_confusion(folder: Path, matrix: NDArray[np.int64], class_names: Iterable[str]) -> None:
    """Writes `confusion.csv`, one line per class of objects, and `confusion.png`, a plot of the shares in each line.

    Args:
        folder: the folder to write to.
        matrix: see `confusion_matrix`.
        class_names: class names in the order of category ids, without background.
    """
    from matplotlib.figure import Figure  # the import takes a second

    names = [*class_names, "background"]
    lines = [
        {"object": name, **dict(zip(names, line, strict=True))}
        for name, line in zip(names, matrix.tolist(), strict=True)
    ]
    write_csv_atomically(folder / "confusion.csv", lines)
    shares = matrix / matrix.sum(1, keepdims=True).clip(min=1)
    few = len(names) <= 25  # few enough for the numbers to be readable
    side = 2.5 + (0.45 if few else 0.15) * len(names)
    size = 10 if few else 6
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.add_subplot()
    drawn = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(
        range(len(names)),
        names,
        rotation=45 if few else 90,
        ha="right",
        va="center",
        rotation_mode="anchor",
        fontsize=size,
    )
    axes.set_yticks(range(len(names)), names, fontsize=size)
    axes.set(xlabel="detected as", ylabel="object")
    if few:
        for (row, column), number in np.ndenumerate(matrix):
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(number), ha="center", va="center", fontsize=8, color=color)
    figure.colorbar(drawn, label="share of the line", shrink=0.7, aspect=30)
    content = io.BytesIO()
    figure.savefig(content, dpi=120, format="png", bbox_inches="tight")
    write_bytes_atomically(folder / "confusion.png", content.getbuffer())
