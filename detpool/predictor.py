"""A trained run in use: detections, feature maps and pooled features of images of any kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.ops import MultiScaleRoIAlign, box_convert

from detpool import ops
from detpool.config import apply_overrides, check
from detpool.data.datamodule import collate
from detpool.data.dataset import DetectionDataset
from detpool.data.transforms import check_eval_transform
from detpool.data.unlabeled import ImageLike, UnlabeledImages
from detpool.detection import GivenProposals, IoUHeads, JitteredProposals, TwoStageDetector
from detpool.errors import ConfigError, did_you_mean
from detpool.evaluation.detections import Detections
from detpool.evaluation.results import to_detections
from detpool.masks import decode_segmentation
from detpool.poolers import RoIPooler
from detpool.run_config import load_config
from detpool.training.module import to_unit_range
from detpool.training.runs import find_checkpoint, restore


def load(path: str | Path, *overrides: str, device: str | torch.device | None = None) -> Predictor:
    """The detector of a run, with the weights of its best checkpoint.

    Args:
        path: a run directory, or a checkpoint with the run's `config.yaml` in its folder or up to three above it.
        overrides: ``key=value`` that change the config of the run, as for `eval.py`, such as
            `model.roi_heads.score_thresh=0.5`; `imports=[my_package]` if the config names code of your own.
        device: where the model computes. None: a GPU if there is one.

    Raises:
        ConfigError: if there is no such run, or an override does not exist.
        WeightsError: if the checkpoint is damaged or belongs to another model.
    """
    path = Path(path).expanduser()
    config = load_config(path)
    apply_overrides(config, overrides)
    check(config)
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return Predictor(config, restore(config, find_checkpoint(path)).model, torch.device(device))


class Predictor:
    """A trained detector that takes images as people have them; `detpool.load` makes one.

    Images go through the run's evaluation transform. An image is a file, a PIL image, a uint8 array (H, W, 3) RGB or
    (H, W) gray, or a tensor (3, H, W) RGB, uint8 or floating in 0 .. 1 (`detpool.data.unlabeled.UnlabeledImages`).
    Boxes are XYXY in pixels of the images as they are given.

    Args:
        config: the run's config.
        model: its detector.
        device: where it computes.

    Attributes:
        model: the detector, in evaluation mode.
        config: the run's config.
        class_names: names of labels 1, 2, ...
        device: where the model computes.
    """

    def __init__(self, config: DictConfig, model: TwoStageDetector, device: torch.device) -> None:
        self.config, self.device = config, device
        self.model = model.to(device).eval()
        self.class_names: list[str] = list(config.class_names)
        self.transform = instantiate(config.data.get("eval_transform"))
        check_eval_transform(self.transform)

    def predict(
        self,
        images: ImageLike | Sequence[ImageLike],
        *,
        proposals: Sequence[Tensor] | None = None,
        batch_size: int = 1,
    ) -> list[dict[str, Tensor]]:
        """Detect objects.

        Args:
            images: one or several.
            proposals: for each image (m, 4), best first, for a model that takes them as given (`proposals=given`).
            batch_size: images computed at once. They are padded to a common size, which changes detections a little.

        Returns:
            For each image, detections by falling score: `boxes` (n, 4), `labels` (n,) from 1, `scores` (n,), and where
            the model predicts them `masks` (n, H, W) bool, in pixels of the image, and `ious` (n,), of each box with
            its object. On the CPU.

        Raises:
            TypeError, ValueError: if an image is of none of the accepted kinds.
            DataError: if a file is missing or no image.
            ConfigError: if the model takes proposals and there are none, or makes its own and there are.
        """
        dataset = self.prepare(images, proposals)
        sizes = [(image["height"], image["width"]) for image in dataset.ground_truth()["images"]]
        found = self.detect(dataset, batch_size=batch_size)
        return [self._as_tensors(each, size) for each, size in zip(found, sizes, strict=True)]

    def prepare(
        self, images: ImageLike | Sequence[ImageLike], proposals: Sequence[Tensor] | None = None
    ) -> UnlabeledImages:
        """Images as a data set whose samples are as the model takes them.

        Args:
            images, proposals: see `predict`.
        """
        several = isinstance(images, Sequence) and not isinstance(images, str)
        given: Any = images if several else [images]
        return UnlabeledImages(given, self.class_names, proposals, self.transform)

    def detect(self, dataset: DetectionDataset, *, batch_size: int = 1, num_workers: int = 0) -> Iterator[Detections]:
        """Detect objects in the images of a data set, one image after the other, as evaluation does.

        Args:
            dataset: its samples as the model takes them (`prepare`, or one of the run's data).
            batch_size: see `predict`.
            num_workers: processes that read images; 0: this one.

        Yields:
            The detections of an image, boxes XYWH in pixels of its file.

        Raises:
            ConfigError: see `predict`.
        """
        for images, targets in self._batches(dataset, batch_size, num_workers):
            with torch.inference_mode():
                predictions, _ = self.model.evaluate(images, self._to_device(targets))
            for prediction, image, target in zip(predictions, images, targets, strict=True):
                yield to_detections(
                    prediction,
                    image_id=int(target["image_id"]),
                    orig_size=target["orig_size"],
                    input_size=(image.shape[-2], image.shape[-1]),
                    category_ids=dataset.category_ids,
                )

    def features(self, images: ImageLike | Sequence[ImageLike]) -> list[dict[str, Tensor]]:
        """The feature maps that the heads pool from.

        Args:
            images: one or several.

        Returns:
            For each image the maps (C, H, W) by name, finest first, of the image after the transform, padded to a
            multiple of the coarsest stride. On `device`; without gradients, but what is pooled from them has those of
            boxes.

        Raises:
            TypeError, ValueError, DataError: as `predict`.
        """
        return [
            {name: features[0] for name, features in maps.items()} for maps, _, _ in self._maps(self.prepare(images))
        ]

    def pool(
        self, image: ImageLike, boxes: Tensor, pooler: str | Callable[..., Tensor] | nn.Module | None = None
    ) -> Tensor:
        """Pooled features of boxes.

        Args:
            image: one.
            boxes: (K, 4), in pixels of the image.
            pooler: None: the one that the model was trained with; a function of `detpool.ops` or its name, or a
                callable of the same arguments, which takes the place of that one's operator; or a module that is
                called as `detpool.poolers.RoIPooler`.

        Returns:
            (K, C, height, width) on `device`.

        Raises:
            ValueError: if `boxes` are not (K, 4), or there is no operator of that name.
            TypeError, DataError: as `predict`.
        """
        if not isinstance(boxes, Tensor) or boxes.ndim != 2 or boxes.shape[1] != 4:
            got = tuple(boxes.shape) if isinstance(boxes, Tensor) else type(boxes).__name__
            raise ValueError(f"boxes must be a tensor (K, 4), got {got}")
        ((maps, size, orig_size),) = self._maps(self.prepare([image]))
        scale = torch.tensor(size[::-1]) / torch.tensor(orig_size[::-1])
        scaled = (boxes.cpu().float() * scale.repeat(2)).to(self.device)
        with torch.no_grad():
            return self._pooler(pooler)(maps, [scaled], [size])

    def _pooler(self, pooler: str | Callable[..., Tensor] | nn.Module | None) -> nn.Module:
        own = self.model.roi_heads.box_roi_pool
        if pooler is None:
            return own
        if isinstance(pooler, MultiScaleRoIAlign):
            return pooler.to(self.device).eval()
        operator: Any = pooler
        if isinstance(pooler, str):
            if pooler not in ops.__all__ or not pooler.islower():
                names = [name for name in ops.__all__ if name.islower() and name.endswith(("pool", "align", "warp"))]
                raise ValueError(f"pooler {pooler!r} is no operator of detpool.ops{did_you_mean(pooler, names)}")
            operator = getattr(ops, pooler)
        if not isinstance(own, RoIPooler):
            raise ValueError(
                f"pooler: the model was trained with {type(own).__name__}, which has no operator to take the place of: "
                f"pass a module, such as detpool.poolers.RoIPooler"
            )
        return RoIPooler(
            own.featmap_names,
            own.output_size,
            operator,
            strides=own.strides,
            canonical_scale=own.canonical_scale,
            canonical_level=own.canonical_level,
        )

    def _maps(self, dataset: UnlabeledImages) -> Iterator[tuple[dict[str, Tensor], tuple[int, int], tuple[int, int]]]:
        """The maps of one image after the other, its size in pixels as the model sees it, and as it was given."""
        for images, (target,) in DataLoader(dataset, batch_size=1, collate_fn=collate):
            with torch.no_grad():  # not inference_mode, of whose tensors no gradient by boxes could be taken
                batch, _ = self.model.transform([image.to(self.device) for image in to_unit_range(images)])
                maps = self.model.backbone(batch.tensors)
            yield maps, batch.image_sizes[0], target["orig_size"]

    def _batches(
        self, dataset: DetectionDataset, batch_size: int, num_workers: int
    ) -> Iterator[tuple[list[Tensor], list[dict[str, Any]]]]:
        loader = DataLoader(dataset, batch_size, num_workers=num_workers, collate_fn=collate)
        for images, targets in loader:
            self._check_proposals(targets)
            yield [image.to(self.device) for image in to_unit_range(images)], targets

    def _check_proposals(self, targets: Sequence[dict[str, Any]]) -> None:
        """Raise ConfigError unless there are proposals just where the model takes them."""
        rpn, given = self.model.rpn, all("proposals" in target for target in targets)
        if isinstance(rpn, JitteredProposals):
            raise ConfigError("the model takes proposals around the objects, which are not known (proposals=jittered)")
        if isinstance(rpn, GivenProposals) != given:
            takes = "takes proposals as given: pass" if not given else "makes its own proposals: do not pass"
            raise ConfigError(f"the model {takes} proposals=...")

    def _to_device(self, targets: Sequence[dict[str, Any]]) -> list[dict[str, Tensor]] | None:
        """Proposals alone: losses, which the model takes of objects, are not asked for."""
        given = [{"proposals": t["proposals"].to(self.device)} for t in targets if "proposals" in t]
        return given or None

    def _as_tensors(self, found: Detections, size: tuple[int, int]) -> dict[str, Tensor]:
        boxes = box_convert(torch.from_numpy(found.boxes), "xywh", "xyxy").float()
        result = {"boxes": boxes, "labels": torch.from_numpy(found.category_ids)}
        result["scores"] = torch.from_numpy(found.scores).float()
        if isinstance(self.model.roi_heads, IoUHeads) or not np.isnan(found.ious).all():
            result["ious"] = torch.from_numpy(found.ious).float()
        if self.model.roi_heads.has_mask():
            masks = [decode_segmentation(mask, size) for mask in found.segmentations]
            result["masks"] = torch.from_numpy(np.array(masks, np.uint8).reshape(-1, *size)).bool()
        return result
