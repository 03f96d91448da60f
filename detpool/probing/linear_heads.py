"""Linear heads on the pooled maps of a frozen backbone: a detector's second stage that is solved, not trained."""

from __future__ import annotations

import math
from itertools import accumulate

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import Matcher
from torchvision.ops import batched_nms, clip_boxes_to_image, remove_small_boxes

from detpool.data.sampling import derive_seed
from detpool.detection.assignment import BoxCoder, mask_targets, match_boxes
from detpool.detection.detector import Prediction, Target
from detpool.errors import ConfigError
from detpool.probing.ridge import LinearMap, NormalEquations, fit_ridge

PENALTIES = tuple(10.0**power for power in range(-4, 4))
MIN_IOU, SCORE_THRESH, NMS_THRESH = 0.5, 0.05, 0.5
"""As in the heads of torchvision's detectors: of a box with an object, of a detection, of two of them."""
CODER = BoxCoder((1.0, 1.0, 1.0, 1.0))
Shape = tuple[int, int]


class RandomProjection:
    """Pooled maps as vectors of a limited length: channels are projected, at random but always alike.

    Normal numbers with variance 1 / D keep lengths and products on average (Johnson and Lindenstrauss, 1984), the same
    ones for every bin, so that what bins tell apart stays apart.

    Args:
        shape: channels, height and width of a pooled map.
        features: most numbers of a vector; D, channels of each bin, is what this allows. Channels stay as they are
            where there are no more.
        seed: of the projection.

    Raises:
        ConfigError: fewer features than bins.
    """

    def __init__(self, shape: tuple[int, int, int], features: int, seed: int = 0) -> None:
        channels, height, width = shape
        kept = features // (height * width)
        if kept < 1:
            raise ConfigError(f"features: {features} are fewer than the {height} x {width} bins of a pooled map")
        self.matrix: Tensor | None = None
        if kept < channels:
            generator = torch.Generator().manual_seed(derive_seed(seed, channels, kept))
            self.matrix = torch.randn(kept, channels, generator=generator) / math.sqrt(kept)
        self.features = min(kept, channels) * height * width

    def __call__(self, pooled: Tensor) -> Tensor:
        """(K, C, PH, PW) to (K, `features`)."""
        vectors = pooled.flatten(2)
        return (vectors if self.matrix is None else self.matrix @ vectors).flatten(1)


def columns_of(classes: int, mask_size: int) -> dict[str, slice]:
    """Which columns of targets are which head's: deltas, classes with background first, mask row after row."""
    sizes = {"box": 4, "class": classes + 1, "mask": mask_size**2}
    ends = accumulate(sizes.values())
    return {name: slice(end - size, end) for (name, size), end in zip(sizes.items(), ends, strict=True)}


def make_targets(boxes: Tensor, target: Target, classes: int, mask_size: int = 0) -> tuple[Tensor, Tensor]:
    """What heads are to predict of an image's boxes.

    Args:
        boxes: (k, 4) in pixels.
        target: of the image; `boxes`, `labels`, and `masks` if a mask is wanted.
        classes: number of classes without background.
        mask_size: bins along each side of a mask, 0 for none.

    Returns:
        (k, T), by the columns of `columns_of`: deltas (Girshick et al., CVPR 2014, appendix C) and mask are 0 for boxes
        without an object; and (k,), the object of each, of an IoU of 0.5 or more, or -1.
    """
    columns = columns_of(classes, mask_size)
    wanted = boxes.new_zeros(len(boxes), columns["mask"].stop)
    matches = torch.full_like(boxes[:, 0], -1, dtype=torch.int64)
    if len(target["boxes"]) and len(boxes):
        matches = match_boxes(Matcher(MIN_IOU, MIN_IOU), target["boxes"], boxes)
    on = (matches >= 0).nonzero()[:, 0]
    labels = torch.zeros_like(matches)
    labels[on] = target["labels"][matches[on]]
    wanted[torch.arange(len(boxes)), columns["class"].start + labels] = 1
    if len(on):
        (wanted[on, columns["box"]],) = CODER.encode([target["boxes"][matches[on]]], [boxes[on]])
        if mask_size:
            wanted[on, columns["mask"]] = mask_targets(target["masks"], boxes[on], matches[on], mask_size).flatten(1)
    return wanted, matches


class LinearHeads:
    """Boxes, classes and masks as linear maps of a pooled map, by ridge regression (`solve_ridge`).

    Classes are fitted to all boxes; deltas and masks, a number for each bin, how much of it the object covers, to those
    that have an object.

    Args:
        pooler: called as a detector's pooler.
        shape: channels, height and width of what it gives.
        classes: number of classes without background.
        features: most features of a box; see `RandomProjection`.
        masks: whether targets have masks. A pooling whose bins are no square has none.
        seed: of the projection.

    Raises:
        ConfigError: fewer features than bins.
    """

    def __init__(
        self,
        pooler: nn.Module,
        shape: tuple[int, int, int],
        classes: int,
        features: int,
        masks: bool = False,
        seed: int = 0,
    ) -> None:
        self.pooler, self.classes = pooler, classes
        self.projection = RandomProjection(shape, features, seed)
        self.mask_size = shape[1] if masks and shape[1] == shape[2] else 0
        self.columns = columns_of(classes, self.mask_size)
        # Samples that are fitted to, and those that choose the penalty; of either, boxes with an object and background.
        width = self.projection.features
        self.samples = [[NormalEquations(width, self.columns["mask"].stop) for _ in range(2)] for _ in range(2)]
        self.maps: dict[str, LinearMap] = {}
        self.penalties: dict[str, float] = {}

    def pool(self, features: dict[str, Tensor], boxes: list[Tensor], shapes: list[Shape]) -> Tensor:
        """Features of the boxes of all images, one image after the other: (K, F)."""
        return self.projection(self.pooler(features, boxes, shapes))

    def add(self, x: Tensor, wanted: Tensor, matches: Tensor, choosing: Tensor) -> None:
        """Adds boxes to the samples.

        Args:
            x: (K, F), as `pool` gives them.
            wanted, matches: (K, T) and (K,), as `make_targets` gives them.
            choosing: (K,), whether a box is one of those that choose the penalty.
        """
        for part in (False, True):
            for kind, of_kind in enumerate((matches >= 0, matches < 0)):
                rows = of_kind & (choosing == part)
                self.samples[part][kind].add(x[rows], wanted[rows])

    def fit(self) -> None:
        """Solves for all heads, the penalty of each chosen of `PENALTIES`.

        Raises:
            ConfigError: among the images of either part no box has an object.
        """
        (on, off), (on_held, off_held) = self.samples
        if not on.count or not on_held.count:
            raise ConfigError(
                "no box has an object, of the images to fit to or of those that choose the penalty, every fourth: more "
                "images are needed"
            )
        of_objects = {name: self.columns[name] for name in ("box", *(("mask",) if self.mask_size else ()))}
        self.maps, self.penalties = fit_ridge(on, on_held, PENALTIES, of_objects)
        maps, penalties = fit_ridge(on + off, on_held + off_held, PENALTIES, {"class": self.columns["class"]})
        self.maps |= maps
        self.penalties |= penalties
        self.samples = []  # a gigabyte for some

    def predict(self, x: Tensor) -> Tensor:
        """All targets of boxes, float64 (K, T)."""
        return torch.cat([self.maps[name](x) for name in self.columns if name in self.maps], 1)

    def detect(
        self, features: dict[str, Tensor], predicted: Tensor, boxes: list[Tensor], shapes: list[Shape], most: int
    ) -> list[Prediction]:
        """Detections as a detector's heads make them of boxes; scores are what is predicted of the one-hot class.

        Args:
            features: maps of the images.
            predicted: (K, T), for the boxes.
            boxes: of each image (k, 4).
            shapes: (height, width) of each.
            most: detections an image.
        """
        counts = [len(box) for box in boxes]
        moved = CODER.decode(predicted[:, self.columns["box"]].float(), boxes)[:, 0].split(counts)
        scores = predicted[:, self.columns["class"]].float()[:, 1:].clamp(0, 1).split(counts)
        found: list[Prediction] = []
        for box, score, shape in zip(moved, scores, shapes, strict=True):
            rows, labels = (score > SCORE_THRESH).nonzero(as_tuple=True)
            values, clipped = score[rows, labels], clip_boxes_to_image(box[rows], shape)
            large = remove_small_boxes(clipped, 1e-2)
            kept = large[batched_nms(clipped[large], values[large], labels[large], NMS_THRESH)[:most]]
            found.append({"boxes": clipped[kept], "scores": values[kept], "labels": labels[kept] + 1})
        if self.mask_size:
            masks = self.maps["mask"](self.pool(features, [each["boxes"] for each in found], shapes))
            masks = masks.float().clamp(0, 1).view(-1, self.mask_size, self.mask_size)
            for each, mask in zip(found, masks.split([len(each["boxes"]) for each in found]), strict=True):
                each["mask_probabilities"] = mask
        return found
