"""COCO's detection metrics, computed by faster-coco-eval or by pycocotools.

Definitions: https://cocodataset.org/#detection-eval. The metrics are taken from the library's arrays of
precision and recall: its `summarize` reports AP at 100 detections, whatever it was asked to evaluate.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle

from detpool.evaluation.detections import Detections, Row, check_known, read_integers, shorten
from detpool.evaluation.matches import Matches, match
from detpool.garbage import collection_paused
from detpool.masks import SegmentationError, to_rles

IouType = Literal["bbox", "segm", "boundary"]
PREFIXES: dict[str, str] = {"bbox": "", "segm": "mask_", "boundary": "boundary_"}
"""Prefix of metric names, by IoU type."""
Backend = Literal["pycocotools", "faster_coco_eval", "hotcoco"]

_AREAS = {"s": 1, "m": 2, "l": 3}  # the libraries' area ranges; 0 is "all"
_THRESHOLDS = [percent / 100 for percent in range(50, 100, 5)]  # IoU thresholds
_MAX_AREA = 1e5**2  # upper end of the libraries' area ranges: they ignore larger objects


class CocoEvaluator:
    """Computes COCO metrics of result rows against the ground truth of one data set.

    Args:
        ground_truth: COCO's annotation format (`images`, `annotations`, `categories`), in pixels of the image
            files. Crowds (`iscrowd`) are ignore regions, as COCO defines. Objects flagged `ignore` need not
            be found, and a detection that matches one does not count. The dict is not changed.
        iou_type: `"bbox"` for boxes, `"segm"` for masks, or `"boundary"` for masks with Boundary IoU: the smaller of
            the mask IoU and the IoU of the pixels within 2 % of the image's diagonal of the outlines (Cheng et al.,
            Boundary IoU, CVPR 2021).
        backend: `"faster_coco_eval"`; or, with the same results, `"pycocotools"`, which is slower, or `"hotcoco"`,
            which must be installed (`pip install 'detpool[hotcoco]'`).
        max_dets: limits on the number of detections per image and class, ascending. AR is reported at each limit, AP
            and the metrics by size at the last.

    Raises:
        ValueError: If an argument is not one of the accepted values, class names repeat, an annotation names an unknown
            image or category, an area is negative, masks are compared and an object has no segmentation or a malformed
            one, or `iou_type` is `"boundary"` and the backend is not faster-coco-eval.
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
        if iou_type == "boundary" and backend != "faster_coco_eval":
            raise ValueError(f"iou_type 'boundary' needs the backend 'faster_coco_eval', got {backend!r}")
        self.iou_type = iou_type
        self.max_dets = [int(limit) for limit in max_dets]
        self._coco_class, self._eval_class = _load_backend(backend)
        self._spacing = 0.0 if backend == "faster_coco_eval" else float(np.spacing(1))

        categories = sorted(ground_truth["categories"], key=lambda category: category["id"])
        self.class_names: list[str] = [category["name"] for category in categories]
        if len(set(self.class_names)) != len(self.class_names):
            raise ValueError(f"category names must be unique, got {self.class_names}")
        images = sorted(ground_truth["images"], key=lambda image: image["id"])
        self._category_ids = np.array([category["id"] for category in categories], np.int64)
        self._image_ids = np.array([image["id"] for image in images], np.int64)
        self._sizes = [(image.get("height", 0), image.get("width", 0)) for image in images]
        self._objects = self._objects_by_class(ground_truth["annotations"])

    @collection_paused()
    def evaluate(self, rows: Detections | Iterable[Row], image_ids: Collection[int] | None = None) -> dict[str, float]:
        """Compute the metrics of `rows` on all images or on some.

        Args:
            rows: detections, as `Detections` or in COCO's result format, in pixels of the image files, in any order
                (among equal scores of one image and class, the order of `rows` decides). Not changed.
            image_ids: the images to evaluate, by default all images of the ground truth. Rows and objects of other
                images do not count. An image without rows counts as one in which nothing was found.

        Returns:
            A flat dict, values in 0 .. 1:
            - `AP` (mean over IoU 0.50:0.05:0.95), `AP50`, `AP75`, `AP@0.50` ... `AP@0.95`,
            - `APs`, `APm`, `APl`: objects of area < 32^2, 32^2 .. 96^2, > 96^2 pixels of the image file,
            - `AR<n>` for each n of `max_dets`, and `ARs`, `ARm`, `ARl` at the last,
            - `AP/<class name>` for every class.
            A metric of a size or a class that does not occur is NaN and does not enter any mean.

        Raises:
            ValueError: If a row or `image_ids` names an image, or a row names a category, that is not in the ground
                truth; or if masks are compared and a row has no segmentation or a malformed one.
        """
        # One class at a time, with only the images in which it occurs: the libraries create a Python object for each
        # detection, each mask, and each pair of image and class.
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports its progress with print()
            curves = [self._evaluate_class(*rows) for rows in self._by_class(rows, image_ids)]
        precision, recall = (np.concatenate(each, axis=-3) for each in zip(*curves, strict=True))
        return self._metrics(precision, recall)

    @collection_paused()
    def matches(self, rows: Detections | Iterable[Row], image_ids: Collection[int] | None = None) -> Matches:
        """Match `rows` with objects as `evaluate` does over all areas; arguments and errors are those of `evaluate`."""
        wanted = self._image_ids if image_ids is None else np.unique(np.array(list(image_ids), np.int64))
        numbers = np.array(self._numbers(wanted), np.int64)
        by_class, limit = self._by_class(rows, image_ids), self.max_dets[-1]
        return match(by_class, wanted, numbers, self.class_names, limit, self._spacing)

    def _by_class(
        self, rows: Detections | Iterable[Row], image_ids: Collection[int] | None
    ) -> Iterator[tuple[list[Row], list[Row]]]:
        """Yield the objects and the detections of each class in the given images, in the format of the libraries."""
        wanted = self._image_ids if image_ids is None else np.array(list(image_ids), np.int64)
        if unknown := set(wanted.tolist()).difference(self._image_ids.tolist()):
            raise ValueError(f"image_ids: not in the ground truth: {shorten(unknown)}")
        found = Detections.of(rows)
        found.check(self._image_ids.tolist(), self._category_ids.tolist())
        numbers = set(self._numbers(wanted))
        places = np.isin(found.image_ids, wanted).nonzero()[0]
        places = places[found.category_ids[places].argsort(kind="stable")]
        ends = found.category_ids[places].searchsorted(self._category_ids, side="right")[:-1]
        for objects, of_class in zip(self._objects, np.split(places, ends), strict=True):
            yield [row for row in objects if row["image_id"] in numbers], self._detections(found, of_class)

    def _evaluate_class(self, objects: list[Row], detections: list[Row]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the precision and recall that the library computes for one class."""
        images = sorted({row["image_id"] for rows in (objects, detections) for row in rows})
        evaluation = self._eval_class(self._index(objects, images), self._index(detections, images), self.iou_type)
        if hasattr(evaluation, "rle_iou_max_workers"):
            evaluation.rle_iou_max_workers = 1  # faster-coco-eval's default of eight Python threads gains nothing
        evaluation.params.imgIds = images
        evaluation.params.maxDets = self.max_dets
        evaluation.evaluate()
        evaluation.accumulate()
        return np.asarray(evaluation.eval["precision"]), np.asarray(evaluation.eval["recall"])

    def _metrics(self, precision: NDArray[Any], recall: NDArray[Any]) -> dict[str, float]:
        """Average `precision` (thresholds, recalls, classes, areas, limits) and `recall`, the same without recalls."""
        by_threshold = {f"AP@{t:.2f}": _mean(precision[i, :, :, 0, -1]) for i, t in enumerate(_THRESHOLDS)}
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

    def _objects_by_class(self, annotations: Sequence[Mapping[str, Any]]) -> list[list[Row]]:
        """Convert annotations to one list per class, in a form that all libraries read correctly."""
        image_ids, category_ids = (read_integers(annotations, key) for key in ("image_id", "category_id"))
        check_known("image_id", image_ids, self._image_ids.tolist())
        check_known("category_id", category_ids, self._category_ids.tolist())
        images, classes = self._numbers(image_ids), self._category_ids.searchsorted(category_ids).tolist()
        if self.iou_type == "bbox":
            shapes = [row["bbox"] for row in annotations]
        else:
            names = [row.get("id") for row in annotations]
            shapes = self._masks([row.get("segmentation") for row in annotations], images, "annotation", names)
        objects: list[list[Row]] = [[] for _ in self.class_names]
        for number, (row, image, label, shape) in enumerate(zip(annotations, images, classes, shapes, strict=True), 1):
            if not row["area"] >= 0:
                raise ValueError(f"annotation {row.get('id')} has area {row['area']}, which the metrics would ignore")
            crowd = int(row.get("iscrowd", 0))
            # The libraries overwrite `ignore` with `iscrowd`. An area outside every range is the only way to make them
            # ignore an object that is not a crowd; the overlap is computed from the box or mask, not from `area`.
            area = -1 if row.get("ignore", 0) and not crowd else min(row["area"], _MAX_AREA)
            objects[label].append(self._row(number, image, shape, area) | {"iscrowd": crowd})
        return objects

    def _detections(self, found: Detections, places: NDArray[np.int64]) -> list[Row]:
        images = self._numbers(found.image_ids[places])
        if self.iou_type == "bbox":
            shapes = found.boxes[places].tolist()
            areas = found.boxes[places, 2:].prod(1).tolist()
        else:
            names = places.tolist()
            shapes = self._masks([found.segmentations[place] for place in names], images, "row", names)
            # The size class of a mask depends on its own area, not on the area of its box.
            areas = [float(rle.area(shape)) for shape in shapes]
        columns = zip(images, shapes, areas, found.scores[places].tolist(), strict=True)
        return [
            self._row(number, image, shape, min(area, _MAX_AREA)) | {"iscrowd": 0, "score": score}
            for number, (image, shape, area, score) in enumerate(columns, 1)
        ]

    def _row(self, number: int, image: int, shape: Any, area: float) -> Row:
        key = "bbox" if self.iou_type == "bbox" else "segmentation"
        return {"id": number, "image_id": image, "category_id": 1, key: shape, "area": area}

    def _numbers(self, image_ids: NDArray[np.int64]) -> list[int]:
        """Number images for the libraries, in the order of their ids, which decides between equal scores.

        Numbers are small because one library stores ids as 32-bit integers or floats. They start at 1, as those of
        annotations must: the libraries take an annotation 0 for none.
        """
        return (self._image_ids.searchsorted(image_ids) + 1).tolist()

    def _masks(self, segmentations: list[Any], images: list[int], what: str, names: Sequence[Any]) -> list[Any]:
        """Convert segmentations to valid run-length encodings; raise ValueError for a missing or malformed one."""
        for name, segmentation in zip(names, segmentations, strict=True):
            if not segmentation:
                raise ValueError(f"iou_type {self.iou_type!r} needs masks: {what} {name} has no segmentation")
        try:
            return to_rles(segmentations, [self._sizes[image - 1] for image in images])
        except SegmentationError as error:
            raise ValueError(f"{what} {names[error.index]} {error}") from error

    def _index(self, rows: list[Row], images: list[int]) -> Any:
        coco = self._coco_class()
        sizes = [(number, *self._sizes[number - 1]) for number in images]
        coco.dataset = {
            "images": [{"id": number, "height": height, "width": width} for number, height, width in sizes],
            "categories": [{"id": 1, "name": "1"}],
            "annotations": rows,
        }
        coco.createIndex()
        return coco


def _load_backend(backend: str) -> tuple[Any, Any]:
    """Return the backend's class for annotations and its class for evaluation."""
    if backend == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        return COCO, COCOeval
    if backend == "faster_coco_eval":
        import faster_coco_eval

        return faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster
    if backend == "hotcoco":
        try:
            import hotcoco
        except ImportError as error:
            raise ValueError(
                "backend 'hotcoco' needs a package of that name: pip install 'detpool[hotcoco]'"
            ) from error

        return hotcoco.COCO, hotcoco.COCOeval
    raise ValueError(f"backend must be one of {', '.join(get_args(Backend))}, got {backend!r}")


def _mean(values: NDArray[Any]) -> float:
    """Return the mean of the defined entries (the libraries write -1 for undefined ones); NaN if there are none."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else math.nan
