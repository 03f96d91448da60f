"""A probe without training: how much linear heads can read from what poolings make of frozen feature maps."""

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
"""One of so many of the images that are fitted to is left out while the penalties are chosen."""


@dataclass(frozen=True)
class Settings:
    """What of the data is looked at.

    Args:
        images: most images to fit to, evenly spread over the training set.
        held_out: most images to measure on, evenly spread over the validation set.
        boxes: most boxes of an image that are fitted to, drawn of its proposals; measured is on all of them.
        batch_size: images that go through the backbone at a time.
        num_workers: processes that load images.
        seed: of the proposals.
    """

    images: int = 200
    held_out: int = 100
    boxes: int = 64
    batch_size: int = 4
    num_workers: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Batch:
    """Maps and boxes of some images."""

    features: dict[str, Tensor]
    boxes: list[Tensor]
    shapes: list[Shape]
    targets: list[Target]
    choosing: Tensor
    """(K,), of each box whether its image is one of those that choose the penalty"""

    def wanted(self, classes: int, mask_size: int) -> tuple[Tensor, Tensor]:
        """`make_targets` of all images' boxes, one after the other."""
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
    """Fits the heads of each pooling to training images and measures them on others; each image is seen once.

    The same numbers come out each time, with the same number of threads on the same machine.

    Args:
        backbone: images (N, 3, H, W), normalised, to feature maps by name; in evaluation mode.
        transform: normalises and batches images.
        proposals: called with images, maps and targets, gives boxes of each image, as `JitteredProposals`.
        heads: those of each pooling, not fitted yet.
        train: data set to fit to; samples are taken as they are, so its transform should be the evaluation's.
        held_out: data set to measure on.
        make_evaluator: called with whether there are masks, gives an evaluator of `held_out`, for AP.
        most: detections an image, for AP.
        settings: which images, and how many.

    Returns:
        of each pooling the numbers of `measure`, AP and its kin of the evaluator, `penalty/box` and so on, and the
        `seconds` that it took by itself, without the backbone.
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
    """How well heads predict what they were asked for.

    Args:
        heads: those that predicted.
        seen: of each batch of boxes what was predicted (K, T) and wanted (K, T), the object of each (K,), -1 for none,
            and the boxes (K, 4).

    Returns:
        `R2/dx`, ..., `R2/dh` of the deltas and `R2/box`, their mean; `R2/class`, the mean over classes, background
        among them; `R2/mask`, of all bins together; `IoU/before`, `IoU/after`, means over the boxes with an object.
        R^2 is 1 - squared error / squared difference from the mean of the images at hand; NaN where nothing varies.
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
    """Over the first dimension."""
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
