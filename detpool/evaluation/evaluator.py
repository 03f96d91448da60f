"""The interface of training and evaluation loops to the metrics: predictions in, one flat dict of metrics out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from detpool.distributed import compute_on_main_process, gather
from detpool.evaluation.calibration import calibration
from detpool.evaluation.coco import PREFIXES, Backend, CocoEvaluator, IouType
from detpool.evaluation.confusion import confusion_matrix
from detpool.evaluation.detections import Detections, shorten
from detpool.evaluation.errors import Kind, error_decomposition
from detpool.evaluation.iou_correlation import iou_correlation
from detpool.evaluation.matches import Matches
from detpool.evaluation.results import to_detections
from detpool.evaluation.tide import error_costs
from detpool.evaluation.voc import check_iou_threshold, voc_metrics
from detpool.garbage import collection_paused

Metric = Literal["coco", "voc"]


class EvaluationDataset(Protocol):
    """What evaluation needs from a data set."""

    @property
    def class_names(self) -> Sequence[str]: ...

    @property
    def category_ids(self) -> Sequence[int]: ...

    def ground_truth(self) -> dict[str, Any]: ...


class DetectionEvaluator:
    """Collects predictions over an epoch, on every process, and computes the metrics of all of them.

    Under torch.distributed each process updates its own evaluator with its share of the images. The methods that
    compute something or return results are collective: the first one called gathers all predictions on the main
    process, which alone computes. The metrics do not depend on the order of the images or their distribution.

    Args:
        dataset: the ground truth in COCO's format, and the `category_ids` and `class_names` of labels 1, 2, ...
        metrics: which metrics: `"coco"`, `"voc"` (keys begin with `voc_`), or both.
        iou_types: what the COCO metrics compare: `"bbox"`, and for masks `"segm"` (keys begin with `mask_`) and
            `"boundary"` (`boundary_`).
        backend: library of the COCO metrics: `"faster_coco_eval"`, `"pycocotools"` or `"hotcoco"`.
        max_dets: limits on the number of detections per image and class for the COCO metrics, ascending; raise the last
            one for dense images.
        voc_iou_threshold: smallest IoU of a match for the VOC metrics.

    Raises:
        ValueError: If an argument is not one of the accepted values, or does not fit the data set.
    """

    @collection_paused()
    def __init__(
        self,
        dataset: EvaluationDataset,
        *,
        metrics: Sequence[Metric] = ("coco",),
        iou_types: Sequence[IouType] = ("bbox",),
        backend: Backend = "faster_coco_eval",
        max_dets: Sequence[int] = (1, 10, 100),
        voc_iou_threshold: float = 0.5,
    ) -> None:
        if not metrics or not set(metrics) <= set(get_args(Metric)):
            raise ValueError(f"metrics must be one or more of {', '.join(get_args(Metric))}, got {list(metrics)}")
        if not iou_types:
            raise ValueError(f"iou_types must be one or more of {', '.join(get_args(IouType))}, got none")
        check_iou_threshold(voc_iou_threshold)
        self.metrics = tuple(metrics)
        self.voc_iou_threshold = voc_iou_threshold
        self._max_dets = int(max_dets[-1])
        self._category_ids = list(dataset.category_ids)
        self._ground_truth = dataset.ground_truth()
        self._image_ids = {image["id"] for image in self._ground_truth["images"]}
        annotations = self._ground_truth["annotations"]
        if (
            "coco" in metrics
            and (masks := [each for each in iou_types if each != "bbox"])
            and annotations
            and not any("segmentation" in row for row in annotations)
        ):
            raise ValueError(
                f"iou_type {masks[0]!r} needs masks, and the data set gives none: set data.masks=true (Pascal VOC's "
                "layout has no masks), or evaluation.iou_types=[bbox]"
            )
        self._coco = [
            CocoEvaluator(self._ground_truth, iou_type=iou_type, backend=backend, max_dets=max_dets)
            for iou_type in (iou_types if "coco" in metrics else ())
        ]
        self._predicted: list[tuple[int, Detections]] = []  # (image id, detections) of this process
        self._gathered: tuple[list[int], Detections] | None = None  # of all processes; empty on all but the main one

    def update(
        self,
        predictions: Sequence[Mapping[str, Tensor]],
        targets: Sequence[Mapping[str, Any]],
        input_sizes: Sequence[tuple[int, int]],
    ) -> None:
        """Add a batch.

        Args:
            predictions: the detector's output, one dict per image, in pixels of the model's inputs
                (`detpool.evaluation.results.to_detections`).
            targets: the samples' targets; `image_id` and `orig_size` (height, width) are read.
            input_sizes: (height, width) of the model's input for each image.

        Raises:
            ValueError: If the lengths differ, an image is not in the ground truth, or a prediction is malformed.
        """
        if not len(predictions) == len(targets) == len(input_sizes):
            raise ValueError(
                f"predictions, targets and input_sizes must be equally long, "
                f"got {len(predictions)}, {len(targets)} and {len(input_sizes)}"
            )
        for prediction, target, input_size in zip(predictions, targets, input_sizes, strict=True):
            image_id = int(target["image_id"])
            if image_id not in self._image_ids:
                raise ValueError(f"image_id {image_id} is not in the data set's ground truth")
            height, width = (int(side) for side in target["orig_size"])
            found = to_detections(
                prediction,
                image_id=image_id,
                orig_size=(height, width),
                input_size=(int(input_size[0]), int(input_size[1])),
                category_ids=self._category_ids,
            )
            self.add(image_id, found)

    def add(self, image_id: int, detections: Detections) -> None:
        """Add all detections of one image, in pixels of its file."""
        self._predicted.append((image_id, detections))
        self._gathered = None

    def reset(self) -> None:
        """Forget all predictions."""
        self._predicted = []
        self._gathered = None

    def results(self) -> Detections:
        """Return all detections, sorted by image id, on the main process, and none on the others. Collective.

        Raises:
            ValueError: If an image was predicted more than once.
        """
        return self._gather()[1]

    def errors(self, iou_type: Kind = "bbox") -> dict[str, int]:
        """Compute `error_decomposition` for the images predicted since the last reset. Collective.

        Raises:
            ValueError: If an image was predicted more than once.
        """
        return self._of_all(error_decomposition, iou_type=iou_type)

    def error_costs(self, iou_type: Kind = "bbox") -> dict[str, float]:
        """Compute the AP that fixing each kind of error would gain (`detpool.evaluation.tide`). Collective.

        Raises:
            ValueError: If an image was predicted more than once.
        """
        return self._of_all(error_costs, iou_type=iou_type, max_dets=self._max_dets)

    def calibration(self) -> dict[str, float]:
        """Compute the `calibration` of the images predicted since the last reset. Collective.

        Raises:
            ValueError: If an image was predicted more than once.
        """
        return self._of_all(calibration)

    def confusion(self) -> NDArray[np.int64]:
        """Compute the `confusion_matrix` of the images predicted since the last reset. Collective.

        Raises:
            ValueError: If an image was predicted more than once.
        """
        return self._of_all(confusion_matrix)

    def _of_all(self, function: Callable[..., Any], **options: Any) -> Any:
        image_ids, found = self._gather()
        return compute_on_main_process(lambda: function(self._ground_truth, found, image_ids=image_ids, **options))

    def matches(self) -> dict[str, Matches]:
        """Compute `CocoEvaluator.matches` for the images predicted since the last reset, by IoU type. Collective.

        Only for boxes and masks: matches by Boundary IoU are internal to the library.

        Raises:
            ValueError: If an image was predicted more than once.
        """
        image_ids, found = self._gather()
        kept = [each for each in self._coco if each.iou_type != "boundary"]
        return compute_on_main_process(lambda: {each.iou_type: each.matches(found, image_ids) for each in kept})

    def compute(self, *, partial: bool = False) -> dict[str, float]:
        """Compute the metrics of all predictions since the last reset. Collective.

        Args:
            partial: evaluate on the images predicted so far; by default all images of the data set must be predicted.

        Returns:
            One dict, the same on every process: the metrics of `CocoEvaluator.evaluate`, for masks with the prefix
            `mask_` or `boundary_`; `voc_metrics` (`voc_`); and, if the model predicts IoUs, `iou_pearson`
            (`iou_correlation`). Values are NaN where undefined, else in 0 .. 1, but `iou_pearson` is in -1 .. 1.

        Raises:
            ValueError: If an image was predicted more than once, or, unless `partial`, was not predicted.
        """
        image_ids, found = self._gather()
        return compute_on_main_process(lambda: self._compute(image_ids, found, partial))

    def _compute(self, image_ids: list[int], found: Detections, partial: bool) -> dict[str, float]:
        missing = sorted(self._image_ids.difference(image_ids))
        if missing and not partial:
            raise ValueError(
                f"{len(missing)} of {len(self._image_ids)} images of the data set were not predicted: "
                f"{shorten(missing)}; partial=True evaluates on the others"
            )
        computed: dict[str, float] = {}
        for coco in self._coco:
            prefix = PREFIXES[coco.iou_type]
            computed |= {prefix + name: value for name, value in coco.evaluate(found, image_ids).items()}
        if "voc" in self.metrics:
            threshold = self.voc_iou_threshold
            computed |= voc_metrics(self._ground_truth, found, image_ids=image_ids, iou_threshold=threshold)
        if not np.isnan(found.ious).all():
            computed["iou_pearson"] = iou_correlation(self._ground_truth, found)
        return computed

    def _gather(self) -> tuple[list[int], Detections]:
        """Return the sorted ids of the images predicted, and all detections sorted by image id."""
        if self._gathered is None:
            own = [image_id for image_id, _ in self._predicted], Detections.concatenate([d for _, d in self._predicted])
            parts = gather(own) or []
            image_ids = sorted(image_id for ids, _ in parts for image_id in ids)
            compute_on_main_process(lambda: _check_once(image_ids))
            found = Detections.concatenate([part for _, part in parts])
            # The order decides between equal scores: once sorted, it does not matter which process had an image.
            self._gathered = image_ids, found.take(found.image_ids.argsort(kind="stable"))
        return self._gathered


def _check_once(image_ids: list[int]) -> None:
    counts = Counter(image_ids)
    if repeated := sorted(image_id for image_id, count in counts.items() if count > 1):
        raise ValueError(
            f"{len(repeated)} images were predicted more than once: {shorten(repeated)}; "
            "every image must reach one process, once (DistributedSampler repeats some to fill up)"
        )
