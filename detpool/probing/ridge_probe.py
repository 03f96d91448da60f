"""A probe without training: how well linear heads predict from features that poolings extract from frozen maps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from torchvision.models.detection.image_list import ImageList

from detpool.data.datamodule import collate
from detpool.data.dataset import DetectionDataset
from detpool.data.sampling import derive_seed, seeded_rng
from detpool.detection.detector import Target
from detpool.detection.localization import paired_iou
from detpool.detection.transform import NormalizeAndBatch
from detpool.evaluation import DetectionEvaluator
from detpool.evaluation.box_errors import ERRORS
from detpool.probing.linear_heads import CODER, LinearHeads, Shape, make_targets

CHOOSING = 4
"""Every fourth training image is held out to choose the penalties."""


@dataclass(frozen=True)
class Settings:
    """Which part of the data is used.

    Args:
        images: maximum number of images to fit, evenly spread over the training set.
        held_out: maximum number of images to measure on, evenly spread over the validation set.
        boxes: maximum number of boxes to fit per image, drawn from its proposals; all of them are measured.
        batch_size: images per batch of the backbone.
        num_workers: processes that load images.
        seed: seed of the proposals.
    """

    images: int = 200
    held_out: int = 100
    boxes: int = 64
    batch_size: int = 4
    num_workers: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Batch:
    """Feature maps, boxes and targets of a batch of images."""

    features: dict[str, Tensor]
    boxes: list[Tensor]
    shapes: list[Shape]
    targets: list[Target]
    choosing: Tensor
    """bool (K,), for each box whether its image is used to choose the penalty"""

    def wanted(self, classes: int, mask_size: int) -> tuple[Tensor, Tensor]:
        """Returns the result of `make_targets` for the boxes of all images, concatenated."""
        made = [make_targets(*args, classes, mask_size) for args in zip(self.boxes, self.targets, strict=True)]
        wanted, matches = map(torch.cat, zip(*made, strict=True))
        return wanted, matches


@torch.inference_mode()
def probe(
    backbone: nn.Module,
    transform: NormalizeAndBatch,
    proposals: nn.Module,
    heads: Mapping[str, LinearHeads],
    train: DetectionDataset,
    held_out: DetectionDataset,
    make_evaluator: Callable[[bool], DetectionEvaluator],
    most: int,
    settings: Settings,
) -> dict[str, dict[str, float]]:
    """Fits the heads of each pooling to training images and measures them on others, in one pass over each set.

    Results are reproducible with the same number of threads on the same machine.

    Args:
        backbone: maps normalized images (N, 3, H, W) to feature maps by name; in evaluation mode.
        transform: normalizes and batches images.
        proposals: called with images, maps and targets, returns boxes of each image, as `JitteredProposals` does.
        heads: unfitted heads by the name of the pooling.
        train: data set to fit; its transform should be that of evaluation, without augmentation.
        held_out: data set to measure on.
        make_evaluator: called with whether there are masks, returns an evaluator of `held_out`, for AP.
        most: maximum number of detections per image, for AP.
        settings: which images, and how many.

    Returns:
        For each pooling the results of `measure`, the metrics of the evaluator, the penalties `penalty/box` and so on,
        and the `seconds` that it took without the backbone.
    """
    seconds = dict.fromkeys(heads, 0.0)

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds[name] += time.perf_counter() - start

    for batch in _batches(backbone, transform, proposals, train, settings.images, settings, settings.boxes):
        for name, each in heads.items():
            with timed(name):
                x = each.pool(batch.features, batch.boxes, batch.shapes)
                each.add(x, *batch.wanted(each.classes, each.mask_size), batch.choosing)
    for name, each in heads.items():
        with timed(name):
            each.fit()
    seen: dict[str, list[tuple[Tensor, ...]]] = {name: [] for name in heads}
    evaluators = {name: make_evaluator(each.mask_size > 0) for name, each in heads.items()}
    for batch in _batches(backbone, transform, proposals, held_out, settings.held_out, settings):
        for name, each in heads.items():
            with timed(name):
                predicted = each.predict(each.pool(batch.features, batch.boxes, batch.shapes))
                found = each.detect(batch.features, predicted, batch.boxes, batch.shapes, most)
                evaluators[name].update(found, batch.targets, batch.shapes)
                seen[name].append((predicted, *batch.wanted(each.classes, each.mask_size), torch.cat(batch.boxes)))
    results = {}
    for name, each in heads.items():
        with timed(name):
            metrics = measure(each, seen[name]) | evaluators[name].compute(partial=True)
        penalties = {f"penalty/{head}": penalty for head, penalty in each.penalties.items()}
        results[name] = metrics | penalties | {"seconds": seconds[name]}
    return results


def measure(heads: LinearHeads, seen: Sequence[tuple[Tensor, ...]]) -> dict[str, float]:
    """Measures how well heads predict their targets.

    Args:
        heads: the heads that made the predictions.
        seen: for each batch of boxes the predictions (K, T), the targets (K, T), the index of the matched object (K,),
            -1 for none, and the boxes (K, 4).

    Returns:
        `R2/dx`, ..., `R2/dh` of the deltas and `R2/box`, their mean; `R2/class`, the mean over classes with background;
        `R2/mask`, over all bins together; `IoU/before` and `IoU/after`, the mean IoU of boxes with their objects before
        and after the predicted deltas are applied. R^2 is 1 - squared error / squared difference from the mean of these
        targets, NaN where a target does not vary.
    """
    predicted, wanted, matches, boxes = (torch.cat(parts) for parts in zip(*seen, strict=True))
    on, columns = matches >= 0, heads.columns
    objects, moved = (CODER.decode(d[on, columns["box"]].float(), [boxes[on]])[:, 0] for d in (wanted, predicted))
    box = _r2(wanted[on, columns["box"]], predicted[on, columns["box"]])
    result = {f"R2/{name}": float(value) for name, value in zip(ERRORS, box, strict=True)} | {
        "R2/box": float(box.mean())
    }
    result["R2/class"] = float(_r2(wanted[:, columns["class"]], predicted[:, columns["class"]]).nanmean())
    if heads.mask_size:
        result["R2/mask"] = float(_r2(wanted[on, columns["mask"]].flatten(), predicted[on, columns["mask"]].flatten()))
    result["IoU/before"] = float(paired_iou(boxes[on], objects).mean())
    return result | {"IoU/after": float(paired_iou(moved, objects).mean())}


def _r2(wanted: Tensor, predicted: Tensor) -> Tensor:
    """Returns R^2 over the first dimension."""
    wanted = wanted.double()
    spread = ((wanted - wanted.mean(0)) ** 2).sum(0)
    return torch.where(spread > 0, 1 - ((wanted - predicted) ** 2).sum(0) / spread, torch.nan)


def _batches(
    backbone: nn.Module,
    transform: NormalizeAndBatch,
    proposals: nn.Module,
    dataset: DetectionDataset,
    count: int,
    settings: Settings,
    most: int | None = None,
) -> Iterator[Batch]:
    count = min(count, len(dataset))
    places = [number * len(dataset) // count for number in range(count)]
    loader = DataLoader(
        Subset(dataset, places), settings.batch_size, num_workers=settings.num_workers, collate_fn=collate
    )
    numbers = iter(range(count))
    for images, targets in loader:
        batch, _ = transform([image.float() / 255 for image in images])
        of_images = [next(numbers) for _ in images]
        chooses = torch.tensor([number % CHOOSING == CHOOSING - 1 for number in of_images])
        features = backbone(batch.tensors)
        boxes = []
        for number, shape, target in zip(of_images, batch.image_sizes, targets, strict=True):
            with seeded_rng(derive_seed(settings.seed, number)):
                (box,), _ = proposals(ImageList(batch.tensors[:1], [shape]), {}, [target])
                boxes.append(box if most is None or len(box) <= most else box[torch.randperm(len(box))[:most]])
        choosing = chooses.repeat_interleave(torch.tensor([len(box) for box in boxes]))
        yield Batch(features, boxes, batch.image_sizes, targets, choosing)
