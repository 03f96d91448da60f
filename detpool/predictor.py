"""Inference with a trained run: detections, feature maps and pooled features of images."""

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
    """Loads the detector of a run, with the weights of its best checkpoint.

    Args:
        path: a run directory, or a checkpoint with the run's `config.yaml` in its folder or up to three above it.
        overrides: ``key=value`` arguments that change the config of the run, as for `eval.py`, such as
            `model.roi_heads.score_thresh=0.5`; `imports=[my_package]` if the config names your own code.
        device: device of the model. Default: a GPU if there is one, otherwise the CPU.

    Raises:
        ConfigError: If there is no such run, or an override does not exist.
        WeightsError: If the checkpoint is damaged or belongs to another model.
    """
    path = Path(path).expanduser()
    config = load_config(path)
    apply_overrides(config, overrides)
    check(config)
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return Predictor(config, restore(config, find_checkpoint(path)).model, torch.device(device))


class Predictor:
    """A trained detector that takes image files, PIL images, arrays or tensors. Created by `detpool.load`.

    An image is a file, a PIL image, a uint8 array (H, W, 3) RGB or (H, W) gray, or a tensor (3, H, W) RGB, uint8 or
    floating point in [0, 1] (`detpool.data.unlabeled.UnlabeledImages`). It passes through the run's evaluation
    transform. Boxes are XYXY in pixels of the given image.

    Args:
        config: the run's config.
        model: its detector.
        device: device of the model.

    Attributes:
        model: the detector, in evaluation mode.
        config: the run's config.
        class_names: names of the labels 1, 2, ...
        device: device of the model.
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
            images: one image or several.
            proposals: for each image (m, 4), best first; only for a model trained with `proposals=given`.
            batch_size: images per batch. They are padded to a common size, which changes detections slightly.

        Returns:
            For each image a dict of CPU tensors, in order of decreasing score: `boxes` (n, 4), `labels` (n,) from 1,
            `scores` (n,) and, if the model predicts them, `masks` bool (n, H, W) in pixels of the image and `ious`
            (n,), the predicted IoU of each box with its object.

        Raises:
            TypeError, ValueError: If an image is of none of the accepted kinds.
            DataError: If a file is missing or not an image.
            ConfigError: If the model needs proposals and none are given, or makes its own and some are given.
        """
        dataset = self.prepare(images, proposals)
        sizes = [(image["height"], image["width"]) for image in dataset.ground_truth()["images"]]
        found = self.detect(dataset, batch_size=batch_size)
        return [self._as_tensors(each, size) for each, size in zip(found, sizes, strict=True)]

    def prepare(
        self, images: ImageLike | Sequence[ImageLike], proposals: Sequence[Tensor] | None = None
    ) -> UnlabeledImages:
        """Make a data set of images, with samples that are ready for the model.

        Args:
            images, proposals: see `predict`.
        """
        several = isinstance(images, Sequence) and not isinstance(images, str)
        given: Any = images if several else [images]
        return UnlabeledImages(given, self.class_names, proposals, self.transform)

    def detect(self, dataset: DetectionDataset, *, batch_size: int = 1, num_workers: int = 0) -> Iterator[Detections]:
        """Detect objects in the images of a data set, as evaluation does.

        Args:
            dataset: data set with samples that are ready for the model (from `prepare`, or one of the run's data).
            batch_size: see `predict`.
            num_workers: processes that read images; 0 reads them in this process.

        Yields:
            The detections of each image in order, with boxes XYWH in pixels of its file.

        Raises:
            ConfigError: See `predict`.
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
        """Compute the feature maps that the heads pool from.

        Args:
            images: one image or several.

        Returns:
            For each image the maps (C, H, W) by name, finest first, on `device`. They are those of the transformed
            image, padded to a multiple of the coarsest stride. They have no gradients, but features pooled from them
            can have gradients with respect to boxes.

        Raises:
            TypeError, ValueError, DataError: See `predict`.
        """
        return [
            {name: features[0] for name, features in maps.items()} for maps, _, _ in self._maps(self.prepare(images))
        ]

    def pool(
        self, image: ImageLike, boxes: Tensor, pooler: str | Callable[..., Tensor] | nn.Module | None = None
    ) -> Tensor:
        """Pool the features of boxes.

        Args:
            image: one image.
            boxes: (K, 4), in pixels of the image.
            pooler: a function of `detpool.ops`, its name, or a callable with the same arguments, which replaces the
                operator of the model's pooler; or a subclass of `torchvision.ops.MultiScaleRoIAlign`, such as
                `detpool.poolers.RoIPooler`. Default: the pooler that the model was trained with.

        Returns:
            (K, C, height, width) on `device`.

        Raises:
            ValueError: If `boxes` are not (K, 4), there is no operator of that name, or the model's pooler has no
                operator to replace.
            TypeError, DataError: See `predict`.
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
        """Yield for each image its maps, its (height, width) after the model's transform, and that as it was given."""
        for images, (target,) in DataLoader(dataset, batch_size=1, collate_fn=collate):
            with torch.no_grad():  # not inference_mode: its tensors would rule out gradients with respect to boxes
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
        """Raise ConfigError unless proposals are given exactly if the model takes them."""
        rpn, given = self.model.rpn, all("proposals" in target for target in targets)
        if isinstance(rpn, JitteredProposals):
            raise ConfigError("the model takes proposals around the objects, which are not known (proposals=jittered)")
        if isinstance(rpn, GivenProposals) != given:
            takes = "takes proposals as given: pass" if not given else "makes its own proposals: do not pass"
            raise ConfigError(f"the model {takes} proposals=...")

    def _to_device(self, targets: Sequence[dict[str, Any]]) -> list[dict[str, Tensor]] | None:
        """Return the proposals on the device, None if there are none. Objects are left out: no losses are needed."""
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
