"""Linear heads on the pooled maps of a frozen backbone: a detector's second stage in closed form, without training."""

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
"""As in torchvision's detectors: the IoU that matches a box to an object, the score threshold, the NMS threshold."""
CODER = BoxCoder((1.0, 1.0, 1.0, 1.0))
Shape = tuple[int, int]


class RandomProjection:
    """Turns pooled maps into vectors of limited length by a fixed random projection of their channels.

    The matrix (D, C) holds normal random numbers with variance 1 / D, which preserves lengths and inner products on
    average (Johnson and Lindenstrauss, 1984). It is the same for every bin, so bins remain distinct.

    Args:
        shape: channels, height and width of a pooled map.
        features: maximum length of a vector; D is this number divided by the number of bins, rounded down. If the map
            has at most D channels, they are not projected.
        seed: seed of the projection.

    Raises:
        ConfigError: If `features` is less than the number of bins.
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
        """Maps pooled maps (K, C, PH, PW) to vectors (K, `features`)."""
        vectors = pooled.flatten(2)
        return (vectors if self.matrix is None else self.matrix @ vectors).flatten(1)


def columns_of(classes: int, mask_size: int) -> dict[str, slice]:
    """Returns the columns of each head's targets: box deltas, classes with background first, mask row by row."""
    sizes = {"box": 4, "class": classes + 1, "mask": mask_size**2}
    ends = accumulate(sizes.values())
    return {name: slice(end - size, end) for (name, size), end in zip(sizes.items(), ends, strict=True)}


def make_targets(boxes: Tensor, target: Target, classes: int, mask_size: int = 0) -> tuple[Tensor, Tensor]:
    """Computes the regression targets of an image's boxes.

    Args:
        boxes: (k, 4) in pixels.
        target: ground truth of the image: `boxes`, `labels`, and `masks` if `mask_size` is not 0.
        classes: number of classes without background.
        mask_size: bins along each side of a mask, 0 for no masks.

    Returns:
        The targets (k, T), with the columns of `columns_of`; deltas (Girshick et al., CVPR 2014, appendix C) and masks
        are 0 for boxes without an object. And the index (k,) of the object matched to each box with an IoU of at least
        0.5, or -1.
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
    """Predicts boxes, classes and masks as linear functions of a pooled map, by ridge regression (`solve_ridge`).

    Classes are fitted to all boxes; deltas and masks only to boxes with an object. A mask has one number per bin, the
    fraction that the object covers.

    Args:
        pooler: pooler with the signature of a detector's.
        shape: channels, height and width of its output.
        classes: number of classes without background.
        features: maximum number of features of a box; see `RandomProjection`.
        masks: whether targets have masks. Masks are left out if the pooled map is not square.
        seed: seed of the projection.

    Raises:
        ConfigError: If `features` is less than the number of bins.
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
        # Samples to fit, and samples that choose the penalty; each as a pair of boxes with an object and background.
        width = self.projection.features
        self.samples = [[NormalEquations(width, self.columns["mask"].stop) for _ in range(2)] for _ in range(2)]
        self.maps: dict[str, LinearMap] = {}
        self.penalties: dict[str, float] = {}

    def pool(self, features: dict[str, Tensor], boxes: list[Tensor], shapes: list[Shape]) -> Tensor:
        """Returns the features (K, F) of the boxes of all images, one image after the other."""
        return self.projection(self.pooler(features, boxes, shapes))

    def add(self, x: Tensor, wanted: Tensor, matches: Tensor, choosing: Tensor) -> None:
        """Adds boxes to the samples.

        Args:
            x: features (K, F) from `pool`.
            wanted, matches: targets (K, T) and matched objects (K,) from `make_targets`.
            choosing: bool (K,), whether each box is used to choose the penalty.
        """
        for part in (False, True):
            for kind, of_kind in enumerate((matches >= 0, matches < 0)):
                rows = of_kind & (choosing == part)
                self.samples[part][kind].add(x[rows], wanted[rows])

    def fit(self) -> None:
        """Fits all heads and chooses the penalty of each from `PENALTIES`. Discards the samples.

        Raises:
            ConfigError: If no box has an object, among the samples to fit or among those that choose the penalty.
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
        self.samples = []  # frees up to a gigabyte

    def predict(self, x: Tensor) -> Tensor:
        """Predicts all targets of boxes, float64 (K, T), from their features (K, F)."""
        return torch.cat([self.maps[name](x) for name in self.columns if name in self.maps], 1)

    def detect(
        self, features: dict[str, Tensor], predicted: Tensor, boxes: list[Tensor], shapes: list[Shape], most: int
    ) -> list[Prediction]:
        """Makes detections of boxes, as a detector's heads do. Scores are the predictions of the one-hot class.

        Args:
            features: feature maps of the images by name.
            predicted: predicted targets (K, T) of the boxes of all images.
            boxes: boxes (k, 4) of each image.
            shapes: (height, width) of each image.
            most: maximum number of detections per image.

        Returns:
            For each image `boxes`, `scores`, `labels` and, if there are masks, `mask_probabilities`.
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
