"""Makes coco_small.json: ground truth, detections, and what pycocotools' own `summarize` says of them.

    python tests/evaluation/make_coco_small.py

Nothing of detpool is used, so that the numbers are an independent oracle.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
from pathlib import Path

import numpy as np
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
CATEGORIES = [{"id": 3, "name": "disc"}, {"id": 7, "name": "box"}, {"id": 90, "name": "never seen"}]


def polygon(kind: int, x: float, y: float, w: float, h: float) -> list[list[float]]:
    if kind == 7:
        return [[x, y, x + w, y, x + w, y + h, x, y + h]]
    angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    points = np.stack([x + w / 2 * (1 + np.cos(angles)), y + h / 2 * (1 + np.sin(angles))], axis=1)
    return [[round(float(v), 1) for v in points.ravel()]]


def summary(coco: COCO, results: COCO, iou_type: str, categories: list[int] | None = None) -> list[float]:
    evaluation = COCOeval(coco, results, iou_type)
    if categories is not None:
        evaluation.params.catIds = categories
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats.tolist()


def main() -> None:
    rng = np.random.default_rng(7)
    images, annotations, detections = [], [], []
    for image_id in (11, 5, 42, 1000, 6, 8, 77, 78):
        height, width = int(rng.integers(230, 320)), int(rng.integers(230, 400))
        images.append({"id": image_id, "height": height, "width": width, "file_name": f"{image_id}.png"})

        def detect(kind: int, x: float, y: float, w: float, h: float, score: float, at: dict = images[-1]) -> None:
            bbox = [round(float(v), 2) for v in (x, y, w, h)]
            encoded = rle.merge(rle.frPyObjects(polygon(kind, *bbox), at["height"], at["width"]))
            detections.append(
                {
                    "image_id": at["id"],
                    "category_id": kind,
                    "bbox": bbox,
                    "score": round(float(score), 3),
                    "segmentation": {"size": [at["height"], at["width"]], "counts": encoded["counts"].decode()},
                }
            )

        for _ in range(0 if image_id == 6 else int(rng.integers(2, 9))):  # image 6 has no object
            kind = int(rng.choice([3, 7]))
            w, h = np.exp(rng.uniform(np.log(8), np.log(220), 2))
            x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
            bbox = [round(float(v), 1) for v in (x, y, w, h)]
            annotations.append(
                {
                    "id": 100 + len(annotations),
                    "image_id": image_id,
                    "category_id": kind,
                    "bbox": bbox,
                    "area": round(bbox[2] * bbox[3], 2),
                    "iscrowd": 0,
                    "segmentation": polygon(kind, *bbox),
                }
            )
            for _ in range(int(rng.choice([0, 1, 1, 1, 2]))):  # missed, found, found twice
                shift = rng.normal(0, 0.06, 4) * (w, h, w, h)
                found = kind if rng.random() > 0.1 else 10 - kind
                if image_id != 8:  # image 8 has no detection
                    detect(found, x + shift[0], y + shift[1], w + shift[2], h + shift[3], rng.beta(4, 2))
        for _ in range(2):  # of nothing
            w, h = rng.uniform(10, 80, 2)
            if image_id != 8:
                detect(
                    int(rng.choice([3, 7, 90])),
                    rng.uniform(0, width - w),
                    rng.uniform(0, height - h),
                    w,
                    h,
                    rng.beta(2, 4),
                )
        if image_id in (42, 77):  # a crowd, and detections inside of it
            area = np.zeros((height, width), dtype=np.uint8, order="F")
            area[20:100, 30:140] = 1
            counts = np.diff(np.flatnonzero(np.diff(area.ravel(order="F"), prepend=0)), prepend=0).tolist()
            counts.append(area.size - sum(counts))
            annotations.append(
                {
                    "id": 100 + len(annotations),
                    "image_id": image_id,
                    "category_id": 3,
                    "bbox": [30, 20, 110, 80],
                    "area": 8800,
                    "iscrowd": 1,
                    "segmentation": {"size": [height, width], "counts": counts},
                }
            )
            for x in (35, 70, 100):
                detect(3, x, 40, 30, 35, 0.95)

    ground_truth = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    record = {"ground_truth": ground_truth, "detections": detections}
    for iou_type in ("bbox", "segm"):
        rows = copy.deepcopy(detections)
        for row in rows:
            # With a box present loadRes would take the area of a mask from its box.
            del row["bbox" if iou_type == "segm" else "segmentation"]
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO()
            coco.dataset = copy.deepcopy(ground_truth)
            coco.createIndex()
            results = coco.loadRes(rows)
            record[iou_type] = dict(zip(NAMES, summary(coco, results, iou_type), strict=True))
            for category in CATEGORIES:
                record[iou_type][f"AP/{category['name']}"] = summary(coco, results, iou_type, [category["id"]])[0]
    Path(__file__).with_name("coco_small.json").write_text(json.dumps(record, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
