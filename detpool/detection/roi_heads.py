"""The second stage: classes, boxes and masks of proposals, on torchvision's `RoIHeads`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_inference

from detpool.detection.assignment import mask_targets
from detpool.detection.detector import Prediction, Target, has_objects
from detpool.errors import ConfigError

Shapes = list[tuple[int, int]]
BOX_REG_WEIGHTS = (10.0, 10.0, 5.0, 5.0)


class TwoStageHeads(RoIHeads):
    """torchvision's heads, with losses in either mode, hard example mining, and batches without objects or proposals.

    Args:
        box_pooler: `pooler(features, boxes, image_shapes)` to (K, C, PH, PW).
        box_head: from there to features of each RoI.
        box_predictor: from these to class logits (K, classes + 1), background first, and box deltas
            (K, 4 (classes + 1)).
        mask_pooler, mask_head, mask_predictor: the same for masks, whose logits are (K, classes + 1, M, M); or None.
        fg_iou_thresh, bg_iou_thresh: a proposal is an object from the first on, background below the second.
        batch_size_per_image: proposals an image whose losses count.
        positive_fraction: the fraction of objects among these, at most.
        hard_examples: online hard example mining (Shrivastava et al., CVPR 2016): the losses of all proposals are
            computed, and the largest of the batch count, `batch_size_per_image` times its images, whatever their image
            and label.
        bbox_reg_weights: of the deltas (x, y, w, h).
        score_thresh: score below which a detection is dropped.
        nms_thresh: IoU of two detections of a class one of which is dropped.
        detections_per_img: detections an image, at most.

    Raises:
        ConfigError: if `batch_size_per_image` is less than 1.
    """

    def __init__(
        self,
        box_pooler: nn.Module,
        box_head: nn.Module,
        box_predictor: nn.Module,
        mask_pooler: nn.Module | None = None,
        mask_head: nn.Module | None = None,
        mask_predictor: nn.Module | None = None,
        *,
        fg_iou_thresh: float = 0.5,
        bg_iou_thresh: float = 0.5,
        batch_size_per_image: int = 512,
        positive_fraction: float = 0.25,
        hard_examples: bool = False,
        bbox_reg_weights: tuple[float, float, float, float] = BOX_REG_WEIGHTS,
        score_thresh: float = 0.05,
        nms_thresh: float = 0.5,
        detections_per_img: int = 100,
    ) -> None:
        if batch_size_per_image < 1:
            raise ConfigError(f"model.roi_heads.batch_size_per_image must be at least 1, got {batch_size_per_image}")
        super().__init__(
            box_pooler,
            box_head,
            box_predictor,
            fg_iou_thresh,
            bg_iou_thresh,
            batch_size_per_image,
            positive_fraction,
            tuple(bbox_reg_weights),
            score_thresh,
            nms_thresh,
            detections_per_img,
            mask_pooler,
            mask_head,
            mask_predictor,
        )
        self.batch_size_per_image, self.hard_examples = batch_size_per_image, hard_examples

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: Shapes,
        targets: list[Target] | None = None,
    ) -> tuple[list[Prediction], dict[str, Tensor]]:
        """Detections, none in training mode; and losses, where `targets` hold boxes."""
        losses = self.losses(features, proposals, image_shapes, targets) if has_objects(targets) else {}
        return [] if self.training else self.detect(features, proposals, image_shapes), losses

    def losses(
        self, features: dict[str, Tensor], proposals: list[Tensor], image_shapes: Shapes, targets: list[Target]
    ) -> dict[str, Tensor]:
        # With no proposal anywhere there is nothing to take a mean of. The whole image, background, is one.
        proposals = [
            box if len(box) + len(target["boxes"]) > 0 else box.new_tensor([[0, 0, width, height]])
            for box, target, (height, width) in zip(proposals, targets, image_shapes, strict=True)
        ]
        proposals, matches, labels, deltas = self.select_training_samples(proposals, targets)
        logits, regression = self.classify(features, proposals, image_shapes)
        class_loss, box_loss = box_losses(logits, regression, torch.cat(labels), torch.cat(deltas))
        count = len(class_loss)
        if self.hard_examples:
            count = min(count, self.batch_size_per_image * len(proposals))
            hardest = (class_loss + box_loss).topk(count).indices
            class_loss, box_loss = class_loss[hardest], box_loss[hardest]
        losses = {
            "loss_classifier": class_loss.sum() / max(count, 1),
            "loss_box_reg": box_loss.sum() / max(count, 1),
        }
        if self.has_mask():
            losses["loss_mask"] = self._mask_loss(features, proposals, image_shapes, targets, matches, labels)
        return losses

    def detect(self, features: dict[str, Tensor], proposals: list[Tensor], image_shapes: Shapes) -> list[Prediction]:
        logits, regression = self.classify(features, proposals, image_shapes)
        found = zip(*self.postprocess_detections(logits, regression, proposals, image_shapes), strict=True)
        detections = [{"boxes": boxes, "labels": labels, "scores": scores} for boxes, scores, labels in found]
        if self.has_mask():
            logits = self._mask_logits(features, [d["boxes"] for d in detections], image_shapes)
            masks = maskrcnn_inference(logits, [d["labels"] for d in detections])
            for detection, mask in zip(detections, masks, strict=True):
                detection["masks"] = mask
        return detections

    def classify(self, features: dict[str, Tensor], boxes: list[Tensor], image_shapes: Shapes) -> tuple[Tensor, Tensor]:
        """Class logits and box deltas of boxes, float32 where features have half precision: see `ProposalNetwork`."""
        logits, regression = self.box_predictor(self.box_head(self.box_roi_pool(features, boxes, image_shapes)))
        exact = torch.promote_types(logits.dtype, torch.float32)
        return logits.to(exact), regression.to(exact)

    def subsample(self, labels: list[Tensor]) -> list[Tensor]:
        if self.hard_examples:
            # Chosen later, by their losses; -1 is neither object nor background.
            return [torch.where(label >= 0)[0] for label in labels]
        return super().subsample(labels)

    def _mask_logits(self, features: dict[str, Tensor], boxes: list[Tensor], image_shapes: Shapes) -> Tensor:
        return self.mask_predictor(self.mask_head(self.mask_roi_pool(features, boxes, image_shapes)))

    def _mask_loss(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: Shapes,
        targets: list[Target],
        matches: list[Tensor],
        labels: list[Tensor],
    ) -> Tensor:
        positive = [torch.where(label > 0)[0] for label in labels]
        if not any(len(rows) for rows in positive):
            # Batch normalisation of a head does not take an empty batch: one box, whose loss counts nothing.
            some = [box[:1] for box in proposals]
            return self._mask_logits(features, some, image_shapes).sum() * 0
        boxes = [box[rows] for box, rows in zip(proposals, positive, strict=True)]
        matched = [match[rows] for match, rows in zip(matches, positive, strict=True)]
        logits = self._mask_logits(features, boxes, image_shapes)
        classes = torch.cat([target["labels"][rows] for target, rows in zip(targets, matched, strict=True)])
        wanted = [
            mask_targets(target["masks"], box, rows, logits.shape[-1])
            for target, box, rows in zip(targets, boxes, matched, strict=True)
        ]
        mine = logits[torch.arange(len(classes), device=classes.device), classes]
        return F.binary_cross_entropy_with_logits(mine, torch.cat(wanted))


def box_losses(logits: Tensor, regression: Tensor, labels: Tensor, deltas: Tensor) -> tuple[Tensor, Tensor]:
    """Losses (K,) of each RoI: cross entropy, and smooth L1 of the deltas of its class (0 for background).

    Their means are torchvision's `fastrcnn_loss`.
    """
    rows = torch.where(labels > 0)[0]
    mine = regression.reshape(len(labels), -1, 4)[rows, labels[rows]]
    box_loss = F.smooth_l1_loss(mine, deltas[rows], beta=1 / 9, reduction="none").sum(1)
    return F.cross_entropy(logits, labels, reduction="none"), box_loss.new_zeros(len(labels)).index_add(
        0, rows, box_loss
    )
