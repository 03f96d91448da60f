"""Synthetic annotations of the size of Objects365's training set: boxes of 365 classes in COCO's format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from .synthetic import SIZES, make_boxes

IMAGES, BOXES = 1_742_289, 25_000_000  # training set of 2020, boxes rounded to a million
SPLIT = "objects365"
_PART = 100_000  # Python objects at a time: all at once would take twenty times the file size


def write_boxes(root: Path, fraction: float) -> None:
    """Writes annotations for a fraction of the images and boxes in COCO's layout below `root`, without image files."""
    rng = np.random.default_rng(0)
    images, boxes = (max(1, round(fraction * count)) for count in (IMAGES, BOXES))
    categories = [{"id": i, "name": f"class {i}"} for i in range(1, 366)]
    path = root / "annotations" / f"instances_{SPLIT}.json"
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        file.write(b'{"categories":' + msgspec.json.encode(categories))
        for key, count, rows in (("images", images, _images), ("annotations", boxes, _annotations)):
            file.write(f',"{key}":['.encode())
            for first in range(0, count, _PART):
                part = msgspec.json.encode(rows(range(first, min(first + _PART, count)), images, rng))
                file.write(b"," * (first > 0) + part[1:-1])
            file.write(b"]")
        file.write(b"}")


def _images(numbers: range, images: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    height, width = SIZES["landscape"]
    return [
        {"id": i, "file_name": f"images/v2/patch{i % 51}/objects365_v2_{i:08}.jpg", "height": height, "width": width}
        for i in numbers
    ]


def _annotations(numbers: range, images: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    count = len(numbers)
    boxes = make_boxes(count, SIZES["landscape"], rng)
    areas = boxes[:, 2:].prod(1).round(4)
    columns = (rng.integers(0, images, count), rng.integers(1, 366, count), boxes, areas)
    return [
        {"id": i, "image_id": image, "category_id": category, "bbox": box, "area": area, "iscrowd": 0}
        for i, image, category, box, area in zip(numbers, *(column.tolist() for column in columns), strict=True)
    ]
