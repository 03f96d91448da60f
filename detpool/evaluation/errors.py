"""What kinds of errors a detector makes, counted.

The kinds are those of TIDE (Bolya et al., ECCV 2020). TIDE weighs each kind by the AP that fixing it would gain
(`detpool.evaluation.tide`). Here detections are counted, as by Hoiem et al. (Diagnosing error in object detectors, ECCV
2012): for each class, the best-scored detections, as many as the class has objects. At that point precision equals
recall, no score threshold has to be chosen, and a perfect detector makes no error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle

from detpool.evaluation.detections import Detections, Row
from detpool.masks import to_rles

Kind = Literal["bbox", "segm"]
ERRORS = ("classification", "localisation", "both", "duplicate", "background", "missed")
"""Kinds of errors: five of detections, then the objects that no detection accounts for."""


def error_decomposition(
    ground_truth: Mapping[str, Any],
    rows: Detections | Iterable[Row],
    *,
    image_ids: Collection[int] | None = None,
    iou_type: Kind = "bbox",
    iou_threshold: float = 0.5,
    background_threshold: float = 0.1,
) -> dict[str, int]:
    """Counts each considered detection as correct or as one kind of error, and the objects that were missed.

    For each class the n best-scored detections are considered, where n is the number of its objects. In order of
    decreasing score, each detection is assigned the first kind in this list whose condition holds, with
    t = `iou_threshold` and b = `background_threshold`:

    - *correct*: IoU >= t with objects of its class that no better-scored detection has taken; it takes the nearest,
    - *duplicate*: IoU >= t with an object of its class that another detection has taken,
    - *classification*: IoU >= t with an object of another class,
    - *localisation*: IoU >= b with an object of its class,
    - *both*: IoU >= b with an object of another class,
    - *background*: none of these.

    *Missed* are the objects that are neither taken nor the nearest object of a classification or localisation error.
    Crowds and objects flagged `ignore` do not count as objects. A detection that lies on one of its class (IoU >= t;
    for a crowd, intersection over the detection's own area) and is not correct is not considered.

    Args:
        ground_truth: COCO's annotation format, in pixels of the image files.
        rows: detections, as `Detections` or in COCO's result format. Among equal scores the earlier goes first.
        image_ids: the images to judge, by default all images of the ground truth.
        iou_type: what is compared: `"bbox"` for boxes, or `"segm"` for masks, which all objects and rows must have.
        iou_threshold: smallest IoU of a correct detection.
        background_threshold: smallest IoU with an object of a detection that is not background.

    Returns:
        The numbers of `objects`, of considered `detections`, of `correct` ones, and of each of `ERRORS`. `correct` and
        the errors other than `missed` add up to `detections`.

    Raises:
        ValueError: If 0 < background_threshold <= iou_threshold <= 1 does not hold, or a row names an image or a
            category that is not in the ground truth.
    """
    judge = Judge(ground_truth, Detections.of(rows), image_ids, iou_type, iou_threshold, background_threshold)
    counts = dict.fromkeys(("objects", "detections", "correct", *ERRORS), 0)
    for category, left in judge.objects().items():
        counts["objects"] += left
        judged = judge.judge_class(category)
        while left and (found := next(judged, None)) is not None:
            if (kind := found[1]) is not None:
                counts[kind] += 1
                counts["detections"] += 1
                left -= 1
    counts["missed"] = sum(judge.missed().values())
    return counts


class Judge:
    """Judges the detections of a data set, class by class; for arguments and errors see `error_decomposition`."""

    def __init__(
        self,
        ground_truth: Mapping[str, Any],
        found: Detections,
        image_ids: Collection[int] | None = None,
        iou_type: Kind = "bbox",
        iou_threshold: float = 0.5,
        background_threshold: float = 0.1,
    ) -> None:
        if not 0 < background_threshold <= iou_threshold <= 1:
            raise ValueError(
                f"0 < background_threshold <= iou_threshold <= 1 must hold, got {background_threshold} and "
                f"{iou_threshold}"
            )
        self._thresholds, self._masks, self._found = (iou_threshold, background_threshold), iou_type == "segm", found
        self._sizes = {row["id"]: (row.get("height", 0), row.get("width", 0)) for row in ground_truth["images"]}
        self.categories: list[int] = sorted(category["id"] for category in ground_truth["categories"])
        found.check(self._sizes, self.categories)
        annotations: dict[int, list[Mapping[str, Any]]] = {
            image: [] for image in (self._sizes if image_ids is None else image_ids)
        }
        for annotation in ground_truth["annotations"]:
            if annotation["image_id"] in annotations:
                annotations[annotation["image_id"]].append(annotation)
        self._images = {image: _Image.of(rows, self._shapes(image, rows)) for image, rows in annotations.items()}

    def judge_class(self, category: int) -> Iterator[tuple[int, str | None, tuple[int, int] | None]]:
        """Judges the detections of a class lazily, in order of decreasing score.

        Yields:
            For each detection: its index; its kind ("correct", one of `ERRORS`, or None if it lies on a crowd or an
            ignored object); and, if it is correct or a classification or localisation error, its object, as the id of
            the image and the index among the image's annotations, else None.
        """
        found = self._found
        of_class = np.isin(found.image_ids, np.array(list(self._images), np.int64)) & (found.category_ids == category)
        places = of_class.nonzero()[0]
        for place in places[np.argsort(-found.scores[places], kind="stable")].tolist():
            image = int(found.image_ids[place])
            shape: Any = found.boxes[place : place + 1]
            if self._masks:
                shape = to_rles([found.segmentations[place]], [self._sizes[image]])
            kind, of = self._images[image].judge(category, shape, *self._thresholds)
            yield place, kind, None if of is None else (image, of)

    def objects(self) -> dict[int, int]:
        """Counts the objects of each class, without crowds and ignored objects."""
        return self._count(lambda image: image.counted)

    def missed(self) -> dict[int, int]:
        """Counts the objects of each class that none of the detections judged so far accounts for."""
        return self._count(lambda image: image.counted & ~image.taken & ~image.explained)

    def category_of(self, of: tuple[int, int]) -> int:
        """Returns the category id of an object, given as by `judge_class`."""
        return int(self._images[of[0]].categories[of[1]])

    def is_taken(self, of: tuple[int, int]) -> bool:
        """Returns whether one of the detections judged so far is correct for an object."""
        return bool(self._images[of[0]].taken[of[1]])

    def _count(self, which: Callable[[_Image], NDArray[np.bool_]]) -> dict[int, int]:
        counts = Counter(label for image in self._images.values() for label in image.categories[which(image)].tolist())
        return {category: counts[category] for category in self.categories}

    def _shapes(self, image: int, annotations: Sequence[Mapping[str, Any]]) -> Any:
        if self._masks:
            return to_rles([a.get("segmentation") for a in annotations], [self._sizes[image]] * len(annotations))
        return _boxes(annotations)


@dataclass(frozen=True)
class Verdicts:
    """The verdicts on the detections and objects of one image."""

    kinds: list[str | None]
    """For each detection: "correct", one of `ERRORS`, or None if it lies on a crowd or an ignored object."""
    objects: list[int | None]
    """For each correct detection the index of its object; None for other detections."""
    missed: list[bool]
    """For each object, whether no detection accounts for it; False for crowds and ignored objects."""


def judge_image(
    annotations: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    iou_threshold: float = 0.5,
    background_threshold: float = 0.1,
) -> Verdicts:
    """Judges all detections of one image, in order of decreasing score, by the rules of `error_decomposition`.

    Args:
        annotations: the image's objects, in COCO's annotation format.
        rows: its detections, in COCO's result format.
        iou_threshold, background_threshold: as for `error_decomposition`.
    """
    image = _Image.of(annotations, _boxes(annotations))
    kinds: list[str | None] = [None] * len(rows)
    objects: list[int | None] = [None] * len(rows)
    for place in np.argsort([-row["score"] for row in rows], kind="stable").tolist():
        box = np.array([rows[place]["bbox"]], np.float64)
        kinds[place], of = image.judge(rows[place]["category_id"], box, iou_threshold, background_threshold)
        if kinds[place] == "correct":
            objects[place] = of
    return Verdicts(kinds, objects, (image.counted & ~image.taken & ~image.explained).tolist())


@dataclass
class _Image:
    """The objects of one image and their state after the detections judged so far; one array entry per object."""

    shapes: Any  # boxes (objects, 4) xywh, or run lengths of masks
    categories: NDArray[np.int64]
    crowd: NDArray[np.uint8]
    counted: NDArray[np.bool_]  # neither crowd nor ignored
    taken: NDArray[np.bool_]  # by a correct detection
    explained: NDArray[np.bool_]  # not found because its detection has the wrong class or place

    @classmethod
    def of(cls, annotations: Sequence[Mapping[str, Any]], shapes: Any) -> _Image:
        crowd = np.array([a.get("iscrowd", 0) for a in annotations], dtype=np.uint8)
        ignored = np.array([a.get("ignore", 0) for a in annotations], dtype=np.uint8)
        return cls(
            shapes=shapes,
            categories=np.array([a["category_id"] for a in annotations], dtype=np.int64),
            crowd=crowd,
            counted=(crowd == 0) & (ignored == 0),
            taken=np.zeros(len(annotations), dtype=np.bool_),
            explained=np.zeros(len(annotations), dtype=np.bool_),
        )

    def judge(
        self, category: int, shape: Any, iou_threshold: float, background_threshold: float
    ) -> tuple[str | None, int | None]:
        """Judges a detection and marks its object: returns its kind (None if not considered) and the object's index."""
        if not len(self.shapes):
            return "background", None
        iou = rle.iou(shape, self.shapes, self.crowd)[0]
        own = self.categories == category
        on, near = iou >= iou_threshold, iou >= background_threshold

        free = own & on & self.counted & ~self.taken
        if free.any():
            self.taken[nearest := _nearest(iou, free)] = True
            return "correct", nearest
        if (own & on & ~self.counted).any():
            return None, None
        for kind, which in (
            ("duplicate", own & on),
            ("classification", ~own & on & self.counted),
            ("localisation", own & near & self.counted),
            ("both", near & self.counted),
        ):
            if which.any():
                if kind in ("classification", "localisation"):
                    self.explained[nearest := _nearest(iou, which)] = True
                    return kind, nearest
                return kind, None
        return "background", None


def _boxes(annotations: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
    return np.array([a["bbox"] for a in annotations], np.float64).reshape(-1, 4)


def _nearest(iou: NDArray[np.float64], among: NDArray[np.bool_]) -> int:
    return int(np.where(among, iou, -1.0).argmax())
