"""COCO's detection metrics, computed by faster-coco-eval or by pycocotools.

Definitions: https://cocodataset.org/#detection-eval. The metrics are taken from the library's arrays of
precision and recall: its `summarize` reports AP at 100 detections, whatever it was asked to evaluate.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle

from detpool.evaluation.results import Row, check_rows, shorten
from detpool.masks import SegmentationError, to_rles

IouType = Literal["bbox", "segm"]
Backend = Literal["pycocotools", "faster_coco_eval"]

_AREAS = {"s": 1, "m": 2, "l": 3}  # the libraries' area ranges; 0 is "all"
_MAX_AREA = 1e5**2  # where the libraries' ranges end: they ignore what is larger


class CocoEvaluator:
    """COCO metrics of result rows against one data set's ground truth.

    Args:
        ground_truth: COCO's annotation format (`images`, `annotations`, `categories`), in pixels of the image
            files. Crowds (`iscrowd`) are ignore regions, as COCO defines. Objects flagged `ignore` need not
            be found, and a detection that matches one does not count. The dict is not changed.
        iou_type: `"bbox"`, or `"segm"` for masks.
        backend: `"faster_coco_eval"`, or `"pycocotools"` (the same numbers, slower).
        max_dets: ascending limits on detections per image and class. AR is reported at each; AP and the
            metrics by size at the last.

    Raises:
        ValueError: an argument is none of the accepted values, class names repeat, an area is negative, or
            `iou_type="segm"` and an object has no segmentation or a malformed one.
    """

    def __init__(
        self,
        ground_truth: Mapping[str, Any],
        *,
        iou_type: IouType = "bbox",
        backend: Backend = "faster_coco_eval",
        max_dets: Sequence[int] = (1, 10, 100),
    ) -> None:
        if iou_type not in get_args(IouType):
            raise ValueError(f"iou_type must be one of {', '.join(get_args(IouType))}, got {iou_type!r}")
        if not max_dets or list(max_dets) != sorted(set(max_dets)) or max_dets[0] < 1:
            raise ValueError(f"max_dets must be ascending positive integers, got {list(max_dets)}")
        self.iou_type = iou_type
        self.max_dets = [int(limit) for limit in max_dets]
        self._coco_class, self._eval_class = _load_backend(backend)

        categories = sorted(ground_truth["categories"], key=lambda category: category["id"])
        self.class_names: list[str] = [category["name"] for category in categories]
        if len(set(self.class_names)) != len(self.class_names):
            raise ValueError(f"category names must be unique, got {self.class_names}")
        # The libraries get numbers from 1: one of them keeps ids as 32 bits or as floats, and to both an annotation 0
        # is no annotation. In the order of the ids, which decides between equal scores.
        self._category_numbers = {category["id"]: number for number, category in enumerate(categories, 1)}
        images = sorted(ground_truth["images"], key=lambda image: image["id"])
        self._image_numbers = {image["id"]: number for number, image in enumerate(images, 1)}
        self._sizes = [(image.get("height", 0), image.get("width", 0)) for image in images]
        self._ground_truth = self._index(self._ground_truth_rows(ground_truth["annotations"]))

    def evaluate(self, rows: Iterable[Row], image_ids: Collection[int] | None = None) -> dict[str, float]:
        """Metrics of `rows` on some images.

        Args:
            rows: detections in COCO's result format, in pixels of the image files, in any order (between
                equal scores of one image and class the order of `rows` decides). Not changed.
            image_ids: the images to evaluate; default all of the ground truth's. Rows and objects of other
                images do not count. An image without rows counts as one in which nothing was found.

        Returns:
            A flat dict, values in 0 .. 1:
            - `AP` (mean over IoU 0.50:0.05:0.95), `AP50`, `AP75`, `AP@0.50` ... `AP@0.95`,
            - `APs`, `APm`, `APl`: objects of area < 32^2, 32^2 .. 96^2, > 96^2 pixels of the image file,
            - `AR<n>` for each n of `max_dets`, and `ARs`, `ARm`, `ARl` at the last,
            - `AP/<class name>` for every class.
            What no object defines (a size or a class that does not occur) is NaN and enters no mean.

        Raises:
            ValueError: a row or `image_ids` names an image, or a row a category, that is not in the ground
                truth; or `iou_type="segm"` and a row has no segmentation or a malformed one.
        """
        wanted = self._image_numbers.keys() if image_ids is None else set(image_ids)
        if unknown := wanted - self._image_numbers.keys():
            raise ValueError(f"image_ids: not in the ground truth: {shorten(unknown)}")
        rows = list(rows)
        check_rows(rows, self._image_numbers, self._category_numbers)
        detections = self._index(self._detections(rows, wanted))

        # pycocotools reports its progress with print(), once a validation epoch.
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = self._eval_class(self._ground_truth, detections, self.iou_type)
            evaluation.params.imgIds = sorted(self._image_numbers[identity] for identity in wanted)
            evaluation.params.maxDets = self.max_dets
            evaluation.evaluate()
            evaluation.accumulate()
        return self._metrics(
            np.asarray(evaluation.eval["precision"]),
            np.asarray(evaluation.eval["recall"]),
            [float(threshold) for threshold in evaluation.params.iouThrs],
        )

    def _metrics(self, precision: NDArray[Any], recall: NDArray[Any], thresholds: list[float]) -> dict[str, float]:
        """`precision` is (thresholds, recalls, classes, areas, limits), `recall` the same without recalls."""
        by_threshold = {f"AP@{t:.2f}": _mean(precision[i, :, :, 0, -1]) for i, t in enumerate(thresholds)}
        metrics = {
            "AP": _mean(precision[:, :, :, 0, -1]),
            "AP50": by_threshold["AP@0.50"],
            "AP75": by_threshold["AP@0.75"],
        }
        metrics |= {f"AP{size}": _mean(precision[:, :, :, area, -1]) for size, area in _AREAS.items()}
        metrics |= {f"AR{limit}": _mean(recall[:, :, 0, i]) for i, limit in enumerate(self.max_dets)}
        metrics |= {f"AR{size}": _mean(recall[:, :, area, -1]) for size, area in _AREAS.items()}
        metrics |= by_threshold
        metrics |= {f"AP/{name}": _mean(precision[:, :, k, 0, -1]) for k, name in enumerate(self.class_names)}
        return metrics

    def _ground_truth_rows(self, annotations: Sequence[Mapping[str, Any]]) -> list[Row]:
        """What the libraries read of annotations, put so that both read it correctly."""
        check_rows(annotations, self._image_numbers, self._category_numbers)
        shapes = self._shapes(annotations, "annotation", [row.get("id") for row in annotations])
        rows = []
        for number, (row, shape) in enumerate(zip(annotations, shapes, strict=True), 1):
            if not row["area"] >= 0:
                raise ValueError(f"annotation {row.get('id')} has area {row['area']}, which the metrics would ignore")
            crowd = int(row.get("iscrowd", 0))
            # Both libraries overwrite `ignore` with `iscrowd`. An area outside of every range is their one way to
            # ignore an object that is not a crowd; the overlap is computed from the box or mask, not from `area`.
            area = -1 if row.get("ignore", 0) and not crowd else min(row["area"], _MAX_AREA)
            rows.append({**self._numbers(row), **shape, "id": number, "iscrowd": crowd, "area": area})
        return rows

    def _detections(self, rows: Sequence[Row], wanted: Collection[int]) -> list[Row]:
        kept = [(place, row) for place, row in enumerate(rows) if row["image_id"] in wanted]
        shapes = self._shapes([row for _, row in kept], "row", [place for place, _ in kept])
        if self.iou_type == "bbox":
            areas = [row["bbox"][2] * row["bbox"][3] for _, row in kept]
        else:
            # The size of a mask is its own area, not that of the box beside it.
            areas = [float(rle.area(shape["segmentation"])) for shape in shapes]
        return [
            self._numbers(row) | shape | {"score": row["score"], "id": i, "iscrowd": 0, "area": min(area, _MAX_AREA)}
            for i, ((_, row), shape, area) in enumerate(zip(kept, shapes, areas, strict=True), 1)
        ]

    def _numbers(self, row: Mapping[str, Any]) -> dict[str, int]:
        return {
            "image_id": self._image_numbers[row["image_id"]],
            "category_id": self._category_numbers[row["category_id"]],
        }

    def _shapes(self, rows: Sequence[Mapping[str, Any]], what: str, names: Sequence[Any]) -> list[dict[str, Any]]:
        """The box of each row, or its mask as a run-length encoding that is safe to read."""
        if self.iou_type == "bbox":
            return [{"bbox": row["bbox"]} for row in rows]
        for name, row in zip(names, rows, strict=True):
            if not row.get("segmentation"):
                raise ValueError(f"iou_type 'segm' needs masks: {what} {name} has no segmentation")
        sizes = [self._sizes[self._image_numbers[row["image_id"]] - 1] for row in rows]
        try:
            masks = to_rles([row["segmentation"] for row in rows], sizes)
        except SegmentationError as error:
            raise ValueError(f"{what} {names[error.index]} {error}") from error
        return [{"segmentation": mask} for mask in masks]

    def _index(self, annotations: list[Row]) -> Any:
        with contextlib.redirect_stdout(io.StringIO()):
            coco = self._coco_class()
            coco.dataset = {
                "images": [
                    {"id": number, "height": height, "width": width}
                    for number, (height, width) in enumerate(self._sizes, 1)
                ],
                "categories": [{"id": n, "name": name} for n, name in enumerate(self.class_names, 1)],
                "annotations": annotations,
            }
            coco.createIndex()
        return coco


def _load_backend(backend: str) -> tuple[Any, Any]:
    """The backend's classes for annotations and for evaluation."""
    if backend == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        return COCO, COCOeval
    if backend == "faster_coco_eval":
        import faster_coco_eval

        return faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster
    raise ValueError(f"backend must be one of {', '.join(get_args(Backend))}, got {backend!r}")


def _mean(values: NDArray[Any]) -> float:
    """Mean of the defined entries (the libraries write -1 for undefined); NaN if there is none."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else math.nan
