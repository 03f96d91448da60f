"""Objects and detections that tests of kinds of errors are made of."""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as rle

CAT, DOG = 3, 7
BOX = [0.0, 0.0, 10.0, 10.0]
HALF_OFF = [4.0, 0.0, 10.0, 10.0]  # IoU with BOX: 60 / 140 = 0.43
NEAR = [2.0, 0.0, 10.0, 10.0]  # 80 / 120 = 0.67
FAR = [9.0, 0.0, 10.0, 10.0]  # 10 / 190 = 0.05


def truth(*objects: tuple[int, list[float]], images: int = 1, **flags: int) -> dict[str, Any]:
    """Objects (category, box) of image 0; `flags` are those of the last one."""
    annotations: list[dict[str, Any]] = [
        {"id": n, "image_id": 0, "category_id": category, "bbox": box} for n, (category, box) in enumerate(objects)
    ]
    annotations[-1].update(flags)
    return {
        "images": [{"id": i} for i in range(images)],
        "categories": [{"id": CAT, "name": "cat"}, {"id": DOG, "name": "dog"}],
        "annotations": annotations,
    }


def row(category: int, box: list[float], score: float = 0.5, image: int = 0) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


AWAY = (CAT, [100.0, 100.0, 10.0, 10.0])  # a second object, so that two detections are considered


def masked(made: dict[str, Any], box: list[float] | None = None) -> dict[str, Any]:
    """A ground truth, or a row, with masks that fill the boxes (or `box`) of images of 200 x 200 pixels."""
    if "annotations" in made:
        images = [{**image, "height": 200, "width": 200} for image in made["images"]]
        return {**made, "images": images, "annotations": [masked(each, box) for each in made["annotations"]]}
    x, y, width, height = map(int, box or made["bbox"])
    pixels = np.zeros((200, 200), np.uint8, order="F")
    pixels[y : y + height, x : x + width] = 1
    return {**made, "segmentation": rle.encode(pixels), "area": width * height}
