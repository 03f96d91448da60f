"""Linear heads on the pooled maps of a frozen backbone: a detector's second stage that is solved, not trained."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import Matcher
from torchvision.ops import batched_nms, clip_boxes_to_image, remove_small_boxes

from detpool.data.sampling import derive_seed
from detpool.detection.assignment import BoxCoder, mask_targets, match_boxes
from detpool.detection.detector import Prediction, Target
from detpool.probing.ridge import LinearMap, NormalEquations, fit_ridge

PENALTIES = tuple(10.0**power for power in range(-5, 2))
MIN_IOU, SCORE_THRESH, NMS_THRESH = 0.5, 0.05, 0.5
"""As in the heads of torchvision's detectors: of a box with an object, of a detection, of two of them."""
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
        ValueError: fewer features than bins.
    """

    def __init__(self, shape: tuple[int, int, int], features: int, seed: int = 0) -> None:
        channels, height, width = shape
        kept = features // (height * width)
        if kept < 1:
            raise ValueError(f"features: {features} are fewer than the {height} x {width} bins of a pooled map")
        self.matrix: Tensor | None = None
        if kept < channels:
            generator = torch.Generator().manual_seed(derive_seed(seed, channels, kept))
            self.matrix = torch.randn(kept, channels, generator=generator) / math.sqrt(kept)
        self.features = min(kept, channels) * height * width

    def __call__(self, pooled: Tensor) -> Tensor:
        """(K, C, PH, PW) to (K, `features`)."""
        vectors = pooled.flatten(2)
        return (vectors if self.matrix is None else self.matrix @ vectors).flatten(1)


class LinearHeads:
    """Boxes, classes and masks as linear maps of a pooled map, by ridge regression (`solve_ridge`).

    Targets are those of a detector's heads: of each box the one-hot class (first, background), of boxes with an object
    its deltas (Girshick et al., CVPR 2014, appendix C) and, of each bin of the box, how much of it the object covers.

    Args:
        pooler: called as a detector's pooler.
        shape: channels, height and width of what it gives.
        classes: number of classes without background.
        features: most features of a box; see `RandomProjection`.
        masks: whether targets have masks. A pooling whose bins are no square has none.
        seed: of the projection.

    Raises:
        ValueError: fewer features than bins.
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
        self.coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
        sizes = {"box": 4, "class": classes + 1, "mask": self.mask_size**2}
        ends = torch.tensor(list(sizes.values())).cumsum(0).tolist()
        self.columns = {name: slice(end - size, end) for (name, size), end in zip(sizes.items(), ends, strict=True)}
        # Samples that are fitted to, and those that choose the penalty; of either, boxes with an object and background.
        width = self.projection.features
        self.samples = [[NormalEquations(width, ends[-1]) for _ in range(2)] for _ in range(2)]
        self.maps: dict[str, LinearMap] = {}
        self.penalties: dict[str, float] = {}

    def pool(self, features: dict[str, Tensor], boxes: list[Tensor], shapes: list[Shape]) -> Tensor:
        """Features of the boxes of all images, one image after the other: (K, F)."""
        return self.projection(self.pooler(features, boxes, shapes))

    def targets(self, boxes: Tensor, target: Target) -> tuple[Tensor, Tensor]:
        """Of an image's boxes (k, 4) what is to be predicted (k, T), and the object of each, -1 for background."""
        wanted = boxes.new_zeros(len(boxes), self.columns["mask"].stop)
        matches = torch.full_like(boxes[:, 0], -1, dtype=torch.int64)
        if len(target["boxes"]) and len(boxes):
            matches = match_boxes(Matcher(MIN_IOU, MIN_IOU), target["boxes"], boxes)
        on = (matches >= 0).nonzero()[:, 0]
        labels = torch.zeros_like(matches)
        labels[on] = target["labels"][matches[on]]
        wanted[torch.arange(len(boxes)), self.columns["class"].start + labels] = 1
        if len(on):
            (wanted[on, self.columns["box"]],) = self.coder.encode([target["boxes"][matches[on]]], [boxes[on]])
            if self.mask_size:
                masks = mask_targets(target["masks"], boxes[on], matches[on], self.mask_size)
                wanted[on, self.columns["mask"]] = masks.flatten(1)
        return wanted, matches

    def add(
        self,
        features: dict[str, Tensor],
        boxes: list[Tensor],
        shapes: list[Shape],
        targets: Sequence[Target],
        chooses: Sequence[bool],
    ) -> None:
        """Adds boxes of images to the samples.

        Args:
            features: maps of the images.
            boxes: of each image (k, 4) in pixels.
            shapes: (height, width) of each.
            targets: of each; `boxes`, `labels`, and `masks` if masks are wanted.
            chooses: whether an image is one of those that choose the penalty.
        """
        pooled = self.pool(features, boxes, shapes).split([len(box) for box in boxes])
        for x, box, target, choosing in zip(pooled, boxes, targets, chooses, strict=True):
            wanted, matches = self.targets(box, target)
            for kind, rows in enumerate((matches >= 0, matches < 0)):
                self.samples[choosing][kind].add(x[rows], wanted[rows])

    def fit(self) -> None:
        """Solves for all heads, the penalty of each chosen of `PENALTIES`.

        Raises:
            ValueError: among the images of either part no box has an object.
        """
        (on, off), (on_held, off_held) = self.samples
        if not on.count or not on_held.count:
            raise ValueError("no box has an object, of the images to fit to or of those that choose the penalty")
        of_objects = {name: self.columns[name] for name in ("box", *(("mask",) if self.mask_size else ()))}
        self.maps, self.penalties = fit_ridge(on, on_held, PENALTIES, of_objects)
        maps, penalties = fit_ridge(on + off, on_held + off_held, PENALTIES, {"class": self.columns["class"]})
        self.maps |= maps
        self.penalties |= penalties
        self.samples = []  # a gigabyte for some

    def detect(
        self, features: dict[str, Tensor], x: Tensor, boxes: list[Tensor], shapes: list[Shape], most: int
    ) -> list[Prediction]:
        """Detections as a detector's heads make them of boxes; scores are what is predicted of the one-hot class.

        Args:
            features: maps of the images.
            x: (K, F), the boxes' own features, as `pool` gives them.
            boxes: of each image (k, 4).
            shapes: (height, width) of each.
            most: detections an image.
        """
        counts = [len(box) for box in boxes]
        moved = self.coder.decode(self.maps["box"](x).float(), boxes)[:, 0].split(counts)
        scores = self.maps["class"](x).float()[:, 1:].clamp(0, 1).split(counts)
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
