"""Detections of many images, stored as columns.

Stored as one dict per detection, those of COCO's 5,000 validation images would take a gigabyte, and an evaluation would
spend half of its time in garbage collection.
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
    """Detections as columns with one entry per detection; iterating yields rows in COCO's result format.

    Args:
        image_ids: int64 (n,).
        category_ids: int64 (n,).
        boxes: float64 (n, 4): x, y, width and height in pixels of the image file.
        scores: float64 (n,).
        ious: float64 (n,), the IoU with its object that the model predicts for each box; NaN if it predicts none.
        segmentations: n masks as in COCO's result format; None for a detection without a mask.
    """

    image_ids: NDArray[np.int64]
    category_ids: NDArray[np.int64]
    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    ious: NDArray[np.float64]
    segmentations: Sequence[Any]

    @classmethod
    def of(cls, rows: Detections | Iterable[Mapping[str, Any]]) -> Detections:
        """Convert rows in COCO's result format to columns; `Detections` are returned as they are.

        Raises:
            ValueError: If the id of an image or a category is not an integer.
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
        """Concatenate the detections of all parts, in order."""
        parts = [cls.of([]), *parts]
        arrays: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _ARRAYS}
        return cls(**arrays, segmentations=[each for part in parts for each in part.segmentations])

    def take(self, places: NDArray[np.int64] | NDArray[np.bool_]) -> Detections:
        """Return the detections at the given indices, or those where a boolean mask (n,) is true."""
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
        """Check that all detections belong to the images and categories of a ground truth.

        Raises:
            ValueError: If a detection has another image or category; the message has its index.
        """
        check_known("image_id", self.image_ids, image_ids)
        check_known("category_id", self.category_ids, category_ids)


def by_image(rows: Iterable[Mapping[str, Any]]) -> dict[int, list[Any]]:
    """Group annotations or detections by `image_id`, in their order; images without any have an empty list."""
    found: dict[int, list[Any]] = defaultdict(list)
    for row in rows:
        found[row["image_id"]].append(row)
    return found


_ROWS = 4096  # how many rows are converted to Python objects at a time
_ARRAYS = ("image_ids", "category_ids", "boxes", "scores", "ious")


def read_integers(rows: Sequence[Mapping[str, Any]], key: str) -> NDArray[np.int64]:
    """Read the values of a key from all rows, as int64 (n,).

    Raises:
        ValueError: If a value is not an integer.
    """
    values = [row[key] for row in rows]
    for place, value in enumerate(values):
        if not isinstance(value, Integral):
            raise ValueError(f"row {place}: {key} is {value!r}, expected an integer")
    return np.array(values, np.int64)


def check_known(key: str, ids: NDArray[np.int64], known: Collection[int]) -> None:
    """Check that all ids of images or of categories are those of a ground truth.

    Args:
        key: name of the ids for the message, such as `image_id`.
        ids: (n,), the ids of the rows.
        known: the ids in the ground truth.

    Raises:
        ValueError: If an id is not known; the message has its index.
    """
    foreign = ~np.isin(ids, np.array(list(known), np.int64))
    if foreign.any():
        place = int(foreign.argmax())
        raise ValueError(f"row {place}: {key} {ids[place]} is not in the ground truth, which has {shorten(known)}")


def shorten(ids: Collection[int], limit: int = 5) -> str:
    """Format the smallest `limit` of `ids`, and how many more there are, for a message."""
    shown = ", ".join(str(i) for i in sorted(ids)[:limit])
    return shown if len(ids) <= limit else f"{shown} and {len(ids) - limit} more"
