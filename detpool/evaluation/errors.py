"""What kinds of errors a detector makes, counted.

The kinds are those of TIDE (Bolya et al., ECCV 2020). TIDE weighs each kind by the AP that mending it would give;
here detections are counted, as Hoiem et al. (Diagnosing error in object detectors, ECCV 2012) do: of each class as many
of the best-scored detections as it has objects. There precision equals recall, no score threshold needs choosing, and
a perfect detector makes no error.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle

from detpool.evaluation.detections import Detections, Row

ERRORS = ("classification", "localisation", "both", "duplicate", "background", "missed")
"""Kinds of errors: those of detections, then the objects that no detection accounts for."""


def error_decomposition(
    ground_truth: Mapping[str, Any],
    rows: Detections | Iterable[Row],
    *,
    image_ids: Collection[int] | None = None,
    iou_threshold: float = 0.5,
    background_threshold: float = 0.1,
) -> dict[str, int]:
    """Counts each considered detection as correct or as one kind of error, and the objects that were missed.

    Of each class the n best-scored detections are considered, n being its number of objects. By descending score each
    is, with t = `iou_threshold` and b = `background_threshold`, the first of these that holds:

    - *correct*: IoU >= t with objects of its class that no better-scored detection has; it takes the nearest,
    - *duplicate*: IoU >= t with an object of its class, which another has,
    - *classification*: IoU >= t with an object of another class,
    - *localisation*: IoU >= b with an object of its class,
    - *both*: IoU >= b with an object of another class,
    - *background*.

    *Missed* are the objects that are neither taken nor the nearest of a classification or localisation error. Crowds
    and objects flagged `ignore` are no objects; a detection of their class that lies on one (IoU >= t, with a crowd
    intersection over its own area) and is not correct is not considered.

    Args:
        ground_truth: COCO's annotation format, in pixels of the image files.
        rows: detections, as `Detections` or in COCO's result format; boxes are compared. Between equal scores the
            earlier goes first.
        image_ids: the images to look at; default all of the ground truth's.
        iou_threshold: smallest IoU of a correct box.
        background_threshold: smallest IoU of a box that means an object at all.

    Returns:
        numbers of `objects`, considered `detections`, `correct` and each of `ERRORS`; all but `missed` and `objects`
        add up to `detections`.

    Raises:
        ValueError: not 0 < background_threshold <= iou_threshold <= 1, or a row names an image or a category that is
            not in the ground truth.
    """
    if not 0 < background_threshold <= iou_threshold <= 1:
        raise ValueError(
            f"0 < background_threshold <= iou_threshold <= 1 must hold, got {background_threshold} and {iou_threshold}"
        )
    all_images = {image["id"] for image in ground_truth["images"]}
    wanted = all_images if image_ids is None else set(image_ids)
    categories = sorted(category["id"] for category in ground_truth["categories"])
    found = Detections.of(rows)
    found.check(all_images, categories)

    annotations: dict[int, list[Mapping[str, Any]]] = defaultdict(list)  # by image
    for annotation in ground_truth["annotations"]:
        annotations[annotation["image_id"]].append(annotation)
    images = {image: _Image.of(annotations[image]) for image in wanted}
    objects = Counter(category for image in images.values() for category in image.categories[image.counted].tolist())
    in_wanted = np.isin(found.image_ids, np.array(list(wanted), np.int64))

    counts = dict.fromkeys(("objects", "detections", "correct", *ERRORS), 0)
    for category in categories:
        left = objects[category]
        counts["objects"] += left
        of_class = (in_wanted & (found.category_ids == category)).nonzero()[0]
        for place in of_class[np.argsort(-found.scores[of_class], kind="stable")].tolist():
            if left == 0:
                break
            image = images[int(found.image_ids[place])]
            kind = image.judge(category, found.boxes[place], iou_threshold, background_threshold)
            if kind is not None:
                counts[kind] += 1
                counts["detections"] += 1
                left -= 1
    counts["missed"] = sum(int((image.counted & ~image.taken & ~image.explained).sum()) for image in images.values())
    return counts


@dataclass(frozen=True)
class Verdicts:
    """What the detections of one image are worth."""

    kinds: list[str | None]
    """of each detection: "correct", one of `ERRORS`, or None if it lies on a crowd or an ignored object"""
    objects: list[int | None]
    """of each correct detection its object; None for others"""
    missed: list[bool]
    """whether no detection accounts for an object; False for crowds and ignored ones"""


def judge_image(
    annotations: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    iou_threshold: float = 0.5,
    background_threshold: float = 0.1,
) -> Verdicts:
    """Judges all detections of one image, best scores first, by the rules of `error_decomposition`.

    Args:
        annotations: the image's objects, in COCO's annotation format.
        rows: its detections, in COCO's result format.
        iou_threshold, background_threshold: as for `error_decomposition`.
    """
    image = _Image.of(list(annotations))
    kinds: list[str | None] = [None] * len(rows)
    objects: list[int | None] = [None] * len(rows)
    for place in np.argsort([-row["score"] for row in rows], kind="stable").tolist():
        row, before = rows[place], image.taken.copy()
        box = np.array(row["bbox"], np.float64)
        kinds[place] = image.judge(row["category_id"], box, iou_threshold, background_threshold)
        if kinds[place] == "correct":
            objects[place] = int((image.taken & ~before).argmax())
    return Verdicts(kinds, objects, (image.counted & ~image.taken & ~image.explained).tolist())


@dataclass
class _Image:
    """The objects of one image, and what detections have made of them so far; arrays of one entry an object."""

    boxes: NDArray[np.float64]  # (objects, 4) xywh
    categories: NDArray[np.int64]
    crowd: NDArray[np.uint8]
    counted: NDArray[np.bool_]  # neither crowd nor ignored
    taken: NDArray[np.bool_]  # by a correct detection
    explained: NDArray[np.bool_]  # not found because its detection has the wrong class or place

    @classmethod
    def of(cls, annotations: list[Mapping[str, Any]]) -> _Image:
        crowd = np.array([a.get("iscrowd", 0) for a in annotations], dtype=np.uint8)
        ignored = np.array([a.get("ignore", 0) for a in annotations], dtype=np.uint8)
        return cls(
            boxes=np.array([a["bbox"] for a in annotations], dtype=np.float64).reshape(-1, 4),
            categories=np.array([a["category_id"] for a in annotations], dtype=np.int64),
            crowd=crowd,
            counted=(crowd == 0) & (ignored == 0),
            taken=np.zeros(len(annotations), dtype=np.bool_),
            explained=np.zeros(len(annotations), dtype=np.bool_),
        )

    def judge(
        self, category: int, box: NDArray[np.float64], iou_threshold: float, background_threshold: float
    ) -> str | None:
        """The kind of a detection, noted in the objects it concerns; None if it is not considered."""
        if not len(self.boxes):
            return "background"
        iou = rle.iou(box[None], self.boxes, self.crowd)[0]
        own = self.categories == category
        on, near = iou >= iou_threshold, iou >= background_threshold

        free = own & on & self.counted & ~self.taken
        if free.any():
            self.taken[_nearest(iou, free)] = True
            return "correct"
        if (own & on & ~self.counted).any():
            return None
        for kind, which in (
            ("duplicate", own & on),
            ("classification", ~own & on & self.counted),
            ("localisation", own & near & self.counted),
            ("both", near & self.counted),
        ):
            if which.any():
                if kind in ("classification", "localisation"):
                    self.explained[_nearest(iou, which)] = True
                return kind
        return "background"


def _nearest(iou: NDArray[np.float64], among: NDArray[np.bool_]) -> int:
    return int(np.where(among, iou, -1.0).argmax())
