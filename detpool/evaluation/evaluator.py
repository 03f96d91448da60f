"""What a training or evaluation loop talks to: predictions in, one flat dict of metrics out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, get_args

from torch import Tensor

from detpool.distributed import gather_lists
from detpool.evaluation.coco import Backend, CocoEvaluator, IouType
from detpool.evaluation.errors import error_decomposition
from detpool.evaluation.iou_correlation import iou_correlation
from detpool.evaluation.results import Row, shorten, to_rows
from detpool.evaluation.voc import check_iou_threshold, voc_metrics

Metric = Literal["coco", "voc"]


class EvaluationDataset(Protocol):
    """What evaluation reads of a data set."""

    @property
    def class_names(self) -> Sequence[str]: ...

    @property
    def category_ids(self) -> Sequence[int]: ...

    def ground_truth(self) -> dict[str, Any]: ...


class DetectionEvaluator:
    """Collects predictions over an epoch, on every process, and computes the metrics of the whole.

    Under torch.distributed each process updates its own evaluator with its share of the images; `results` and
    `compute` are collective and return the same on every process. The metrics do not depend on the order of
    the images, nor on how they were shared out.

    Args:
        dataset: ground truth in COCO's format; `category_ids` and `class_names` of labels 1, 2, ...
        metrics: which metrics: `"coco"`, `"voc"` (keys begin with `voc_`), or both.
        iou_types: what the COCO metrics compare: `"bbox"`, and `"segm"` for masks (keys begin with `mask_`).
        backend: library of the COCO metrics, `"faster_coco_eval"` or `"pycocotools"`.
        max_dets: ascending limits on detections per image and class of the COCO metrics; raise the last for
            dense images.
        voc_iou_threshold: smallest IoU of a match of the VOC metrics.

    Raises:
        ValueError: an argument is none of the accepted values, or does not fit the data set.
    """

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
            raise ValueError(f"metrics must be some of {', '.join(get_args(Metric))}, got {list(metrics)}")
        if not iou_types:
            raise ValueError(f"iou_types must be some of {', '.join(get_args(IouType))}, got none")
        check_iou_threshold(voc_iou_threshold)
        self.metrics = tuple(metrics)
        self.voc_iou_threshold = voc_iou_threshold
        self._category_ids = list(dataset.category_ids)
        self._ground_truth = dataset.ground_truth()
        self._image_ids = {image["id"] for image in self._ground_truth["images"]}
        annotations = self._ground_truth["annotations"]
        if (
            "coco" in metrics
            and "segm" in iou_types
            and annotations
            and not any("segmentation" in row for row in annotations)
        ):
            raise ValueError(
                "iou_type 'segm' needs masks, and the data set gives none: set data.masks=true (Pascal VOC's layout "
                "has no masks), or evaluation.iou_types=[bbox]"
            )
        self._coco = [
            CocoEvaluator(self._ground_truth, iou_type=iou_type, backend=backend, max_dets=max_dets)
            for iou_type in (iou_types if "coco" in metrics else ())
        ]
        self._predicted: list[tuple[int, list[Row]]] = []  # (image id, rows) per image, of this process

    def update(
        self,
        predictions: Sequence[Mapping[str, Tensor]],
        targets: Sequence[Mapping[str, Any]],
        input_sizes: Sequence[tuple[int, int]],
    ) -> None:
        """Add a batch.

        Args:
            predictions: torchvision's dicts, in pixels of the model's inputs
                (`detpool.evaluation.results.to_rows`).
            targets: the samples' targets; `image_id` and `orig_size` (height, width) are read.
            input_sizes: (height, width) of the model's inputs.

        Raises:
            ValueError: the lengths differ, an image is not in the ground truth, or a prediction is malformed.
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
            rows = to_rows(
                prediction,
                image_id=image_id,
                orig_size=(height, width),
                input_size=(int(input_size[0]), int(input_size[1])),
                category_ids=self._category_ids,
            )
            self.add_rows(image_id, rows)

    def add_rows(self, image_id: int, rows: list[Row]) -> None:
        """Add all detections of an image, as rows of COCO's result format in pixels of its file."""
        self._predicted.append((image_id, rows))

    def reset(self) -> None:
        """Forget all predictions."""
        self._predicted = []

    def results(self) -> list[Row]:
        """The rows of all processes in COCO's result format, by image id. Collective.

        Raises:
            ValueError: an image was predicted more than once.
        """
        return [row for _, rows in self._gather() for row in rows]

    def errors(self) -> dict[str, int]:
        """What `error_decomposition` counts in the images predicted since the last reset. Collective.

        Raises:
            ValueError: an image was predicted more than once.
        """
        predicted = self._gather()
        rows = [row for _, rows in predicted for row in rows]
        return error_decomposition(self._ground_truth, rows, image_ids={image_id for image_id, _ in predicted})

    def compute(self, *, partial: bool = False) -> dict[str, float]:
        """Metrics of everything since the last reset, as floats in 0 .. 1, NaN where undefined. Collective.

        Args:
            partial: evaluate on the images predicted so far; by default each of the data set must have been.

        Returns:
            The dicts of `CocoEvaluator.evaluate` (keys of masks begin with `mask_`) and `voc_metrics` in one; of
            a model that predicts IoUs, `iou_pearson` too (`iou_correlation`).

        Raises:
            ValueError: an image was predicted more than once; or not at all, unless `partial`.
        """
        predicted = self._gather()
        image_ids = {image_id for image_id, _ in predicted}
        missing = sorted(self._image_ids - image_ids)
        if missing and not partial:
            raise ValueError(
                f"{len(missing)} of {len(self._image_ids)} images of the data set were not predicted: "
                f"{shorten(missing)}; partial=True evaluates on the others"
            )
        rows = [row for _, rows in predicted for row in rows]
        computed: dict[str, float] = {}
        for coco in self._coco:
            prefix = "mask_" if coco.iou_type == "segm" else ""
            computed |= {prefix + name: value for name, value in coco.evaluate(rows, image_ids).items()}
        if "voc" in self.metrics:
            computed |= voc_metrics(self._ground_truth, rows, image_ids=image_ids, iou_threshold=self.voc_iou_threshold)
        if any("iou" in row for row in rows):
            computed["iou_pearson"] = iou_correlation(self._ground_truth, rows)
        return computed

    def _gather(self) -> list[tuple[int, list[Row]]]:
        predicted = gather_lists(self._predicted)
        counts = Counter(image_id for image_id, _ in predicted)
        if repeated := sorted(image_id for image_id, count in counts.items() if count > 1):
            raise ValueError(
                f"{len(repeated)} images were predicted more than once: {shorten(repeated)}; "
                "every image must reach one process, once (DistributedSampler repeats some to fill up)"
            )
        # Order breaks ties between scores: sorted, the metrics do not depend on which process had an image.
        return sorted(predicted, key=lambda item: item[0])
