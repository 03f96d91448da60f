"""Synthetic images, annotations and detections, with COCO's numbers and sizes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as rle

TRAIN, VAL = (118_287, 860_001), (5_000, 36_781)  # images and objects of COCO's splits
DETECTIONS = 100  # per image
SIZES = {"landscape": (480, 640), "portrait": (640, 480)}  # (height, width) of the two image files
CATEGORIES = [{"id": i, "name": f"class {i}"} for i in range(1, 81)]


def write_images(folder: Path) -> None:
    """Writes two JPEG files, to which all images of a set refer."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name, (height, width) in SIZES.items():
        coarse = Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{name}.jpg", quality=90)


def make_polygon(box: Sequence[float], points: int, rng: np.random.Generator) -> list[float]:
    """Returns a ragged ellipse within a box (x, y, width, height): x1, y1, x2, y2, ..., with 2 decimals."""
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    radius = rng.uniform(0.7, 1, points)
    x = box[0] + box[2] / 2 * (1 + radius * np.cos(angles))
    y = box[1] + box[3] / 2 * (1 + radius * np.sin(angles))
    return np.stack([x, y], 1).ravel().round(2).tolist()


def make_boxes(count: int, size: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float64]:
    """Returns boxes (count, 4): x, y, width, height; log-uniform sides from 8 pixels to the image's side."""
    sides = np.array([size[1], size[0]])
    extent = np.exp(rng.uniform(np.log(8), np.log(sides), (count, 2)))
    return np.concatenate([rng.uniform(0, 1, (count, 2)) * (sides - extent), extent], 1).round(2)


def make_annotations(images: int, objects: int, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Returns annotations in COCO's format: every hundredth object is a crowd (run lengths), the others are polygons.

    Args:
        images: number of images; half of them are landscape.
        objects: total number of objects; a few images have many, as in COCO.
        seed: random seed.
    """
    rng = np.random.default_rng(seed)
    names = list(SIZES)
    rows = []
    for i in range(images):
        height, width = SIZES[names[i % 2]]
        rows.append({"id": 5 * i + 9, "file_name": f"{names[i % 2]}.jpg", "height": height, "width": width})
    weights = rng.lognormal(0, 1, images)
    owners = rng.choice(images, objects, p=weights / weights.sum())
    points = rng.lognormal(3, 0.7, objects).clip(4, 300).astype(int)
    annotations = []
    for number, (owner, count) in enumerate(zip(owners.tolist(), points.tolist(), strict=True), 1):
        size = SIZES[names[owner % 2]]
        box = make_boxes(1, size, rng)[0].tolist()
        crowd = int(number % 100 == 0)
        polygon = make_polygon(box, count, rng)
        annotations.append(
            {
                "segmentation": _run_lengths(polygon, size) if crowd else [polygon],
                "area": round(0.6 * box[2] * box[3], 4),
                "iscrowd": crowd,
                "image_id": rows[owner]["id"],
                "bbox": box,
                "category_id": number % len(CATEGORIES) + 1,
                "id": number,
            }
        )
    return {"images": rows, "annotations": annotations, "categories": CATEGORIES}


def _run_lengths(polygon: list[float], size: tuple[int, int]) -> dict[str, Any]:
    flat = rle.decode(rle.frPyObjects([polygon], *size))[..., 0].ravel(order="F")
    return {"counts": np.diff([0, *np.flatnonzero(np.diff(flat)) + 1, flat.size]).tolist(), "size": list(size)}


def write_split(root: Path, split: str, images: int, objects: int) -> Path:
    """Writes a split in COCO's layout below ``root``, and returns the path of its annotation file."""
    write_images(root / split)
    path = root / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(msgspec.json.encode(make_annotations(images, objects, seed=len(split))))
    return path


def make_detections(truth: dict[str, list[dict[str, Any]]], seed: int = 0) -> list[dict[str, Any]]:
    """Returns `DETECTIONS` rows per image in COCO's result format, with masks: displaced objects, and random boxes."""
    rng = np.random.default_rng(seed)
    objects: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in truth["images"]}
    for annotation in truth["annotations"]:
        objects[annotation["image_id"]].append(annotation)
    rows = []
    for image in truth["images"]:
        size = (image["height"], image["width"])
        own = objects[image["id"]][: DETECTIONS // 2]
        boxes = [np.array(a["bbox"]) + rng.normal(0, 0.05, 4) * np.tile(a["bbox"][2:], 2) for a in own]
        boxes += list(make_boxes(DETECTIONS - len(own), size, rng))
        for place, box in enumerate(boxes):
            mask = rle.merge(rle.frPyObjects([make_polygon(box.tolist(), 12, rng)], *size))
            rows.append(
                {
                    "image_id": image["id"],
                    "category_id": own[place]["category_id"] if place < len(own) else int(rng.integers(1, 81)),
                    "bbox": box.tolist(),
                    "score": float(rng.beta(4, 2) if place < len(own) else rng.beta(1, 6)),
                    "segmentation": {"size": list(size), "counts": mask["counts"].decode()},
                }
            )
    return rows
