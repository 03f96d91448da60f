"""Detections of many images as columns.

As one dict a detection, those of COCO's 5,000 validation images take a gigabyte, and half the time of an evaluation
goes by in looking for what of them is garbage.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray

Row = dict[str, Any]
"""One detection in COCO's result format."""


@dataclass(frozen=True, eq=False)
class Detections:
    """Detections, an entry each in every column; iterating gives rows of COCO's result format.

    Args:
        image_ids: int64 (n,).
        category_ids: int64 (n,).
        boxes: float64 (n, 4): x, y, width and height in pixels of the image file.
        scores: float64 (n,).
        ious: float64 (n,), the IoU with its object that a model predicts of each box; NaN for none.
        segmentations: n masks as in COCO's result format, None for none.
    """

    image_ids: NDArray[np.int64]
    category_ids: NDArray[np.int64]
    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    ious: NDArray[np.float64]
    segmentations: Sequence[Any]

    @classmethod
    def of(cls, rows: Detections | Iterable[Mapping[str, Any]]) -> Detections:
        """Rows of COCO's result format as columns; columns as they are.

        Raises:
            ValueError: an id of an image or a category is no integer.
        """
        if isinstance(rows, Detections):
            return rows
        rows = list(rows)
        return cls(
            image_ids=read_integers(rows, "image_id"),
            category_ids=read_integers(rows, "category_id"),
            boxes=np.array([row["bbox"] for row in rows], np.float64).reshape(-1, 4),
            scores=np.array([row["score"] for row in rows], np.float64),
            ious=np.array([row.get("iou", np.nan) for row in rows], np.float64),
            segmentations=[row.get("segmentation") for row in rows],
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Detections]) -> Detections:
        """Those of all parts, one part after the other."""
        parts = [cls.of([]), *parts]
        arrays: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _ARRAYS}
        return cls(**arrays, segmentations=[each for part in parts for each in part.segmentations])

    def take(self, places: NDArray[np.int64] | NDArray[np.bool_]) -> Detections:
        """Those at some places, or those where a mask (n,) is true."""
        if places.dtype == np.bool_:
            places = places.nonzero()[0]
        arrays: dict[str, Any] = {name: getattr(self, name)[places] for name in _ARRAYS}
        return Detections(**arrays, segmentations=[self.segmentations[i] for i in places.tolist()])

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Row]:
        for start in range(0, len(self), _ROWS):
            part = slice(start, start + _ROWS)
            columns = [getattr(self, name)[part].tolist() for name in _ARRAYS]
            for image_id, category_id, box, score, iou, mask in zip(*columns, self.segmentations[part], strict=True):
                row: Row = {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}
                if iou == iou:  # not NaN
                    row["iou"] = iou
                if mask is not None:
                    row["segmentation"] = mask
                yield row

    def check(self, image_ids: Collection[int], category_ids: Collection[int]) -> None:
        """Check that they belong to a ground truth with these images and categories.

        Raises:
            ValueError: one is of another image or category; the message has its place.
        """
        check_known("image_id", self.image_ids, image_ids)
        check_known("category_id", self.category_ids, category_ids)


def by_image(rows: Iterable[Mapping[str, Any]]) -> dict[int, list[Any]]:
    """Annotations or detections by their `image_id`, in their order; of other images none."""
    found: dict[int, list[Any]] = defaultdict(list)
    for row in rows:
        found[row["image_id"]].append(row)
    return found


_ROWS = 4096  # objects of Python at a time
_ARRAYS = ("image_ids", "category_ids", "boxes", "scores", "ious")


def read_integers(rows: Sequence[Mapping[str, Any]], key: str) -> NDArray[np.int64]:
    """The values of a key of all rows.

    Raises:
        ValueError: one is no integer.
    """
    values = [row[key] for row in rows]
    for place, value in enumerate(values):
        if not isinstance(value, Integral):
            raise ValueError(f"row {place}: {key} is {value!r}, expected an integer")
    return np.array(values, np.int64)


def check_known(key: str, ids: NDArray[np.int64], known: Collection[int]) -> None:
    """Check that ids are those of images or of categories of a ground truth.

    Args:
        key: what they are.
        ids: (n,), of rows.
        known: those of the ground truth.

    Raises:
        ValueError: one is not known; the message has its place.
    """
    foreign = ~np.isin(ids, np.array(list(known), np.int64))
    if foreign.any():
        place = int(foreign.argmax())
        raise ValueError(f"row {place}: {key} {ids[place]} is not in the ground truth, which has {shorten(known)}")


def shorten(ids: Collection[int], limit: int = 5) -> str:
    """The smallest `limit` of `ids` and how many more there are, for a message."""
    shown = ", ".join(str(i) for i in sorted(ids)[:limit])
    return shown if len(ids) <= limit else f"{shown} and {len(ids) - limit} more"
