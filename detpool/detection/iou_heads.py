"""IoU-Net's head, which predicts the IoU of a box with its object, for suppression and refinement in any detector."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image

from detpool.detection.assemble import Backbone, PoolerFactory, RoIHeadsFactory, build_heads, build_pooler
from detpool.detection.detector import Prediction, Target
from detpool.detection.heads import FlattenHead
from detpool.detection.localization import iou_guided_nms, jittered_boxes, paired_iou, refine_boxes
from detpool.detection.roi_heads import Shapes, TwoStageHeads
from detpool.errors import ConfigError, check_numbers


class IoUHeads(TwoStageHeads):
    """`TwoStageHeads` with an IoU head.

    Args:
        heads: the modules of `TwoStageHeads`.
        iou_pooler, iou_head, iou_predictor: modules that compute pooled RoIs, their features, and scores (K, classes),
            which are 4 IoU - 3, so that IoUs from 0.5 to 1 become -1 to 1.
        iou_boxes_per_image: number of jittered boxes per image on which the IoU head is trained.
        iou_guided: whether to suppress by predicted IoU; if false, by class score, according to `nms`.
        refine_steps: number of gradient steps on each detected box; 0: no refinement.
        refine_step_size: see `detpool.detection.localization.refine_boxes`.
        box: the settings of `TwoStageHeads`.

    Raises:
        ConfigError: If a count is out of range, or soft-NMS is combined with suppression by predicted IoU.
    """

    def __init__(
        self,
        *heads: nn.Module,
        iou_pooler: nn.Module,
        iou_head: nn.Module,
        iou_predictor: nn.Module,
        iou_boxes_per_image: int = 512,
        iou_guided: bool = True,
        refine_steps: int = 5,
        refine_step_size: float = 0.02,
        **box: Any,
    ) -> None:
        check_numbers("model.roi_heads", "at least 1", lambda n: n >= 1, iou_boxes_per_image=iou_boxes_per_image)
        check_numbers("model.roi_heads", "at least 0", lambda n: n >= 0, refine_steps=refine_steps)
        super().__init__(*heads, **box)
        if iou_guided and self.nms != "hard":
            raise ConfigError(
                f"model.roi_heads.nms={self.nms} suppresses by class score, so model.roi_heads.iou_guided must be false"
            )
        self.iou_pooler, self.iou_head, self.iou_predictor = iou_pooler, iou_head, iou_predictor
        self.iou_boxes_per_image, self.iou_guided = iou_boxes_per_image, iou_guided
        self.refine_steps, self.refine_step_size = refine_steps, refine_step_size

    def losses(
        self, features: dict[str, Tensor], proposals: list[Tensor], image_shapes: Shapes, targets: list[Target]
    ) -> dict[str, Tensor]:
        losses = super().losses(features, proposals, image_shapes, targets)
        boxes, labels, ious = [], [], []
        for target, shape, box in zip(targets, image_shapes, proposals, strict=True):
            objects = target["boxes"].to(box)
            if len(objects) == 0:
                boxes.append(objects)
                continue
            jittered, rows = jittered_boxes(objects, shape, self.iou_boxes_per_image)
            boxes.append(jittered)
            labels.append(target["labels"][rows])
            ious.append(paired_iou(jittered, objects[rows]))
        scores = self._scores(features, boxes, image_shapes)
        # Without objects, the sum over no boxes keeps the head in the graph.
        mine = scores[torch.arange(len(scores)), torch.cat(labels) - 1] if labels else scores.sum(1)
        wanted = 4 * torch.cat(ious) - 3 if ious else mine
        losses["loss_iou"] = F.smooth_l1_loss(mine, wanted, reduction="sum") / max(len(mine), 1)
        return losses

    def suppress(
        self, features: dict[str, Tensor], candidates: list[Prediction], image_shapes: Shapes
    ) -> list[Prediction]:
        boxes, labels = ([found[key] for found in candidates] for key in ("boxes", "labels"))
        ious = self.predict_ious(features, boxes, labels, image_shapes)
        detections = [self._suppress(found, iou) for found, iou in zip(candidates, ious, strict=True)]
        if self.refine_steps > 0:
            self._refine(features, detections, image_shapes)
        return detections

    def predict_ious(
        self, features: dict[str, Tensor], boxes: list[Tensor], labels: list[Tensor], image_shapes: Shapes
    ) -> list[Tensor]:
        """Predicted IoUs (n,) of the boxes (n, 4) of each image with their objects, given their classes (n,)."""
        scores = self._scores(features, boxes, image_shapes)
        mine = scores[torch.arange(len(scores)), torch.cat(labels) - 1]
        return list(((mine + 3) / 4).split([len(box) for box in boxes]))

    def _scores(self, features: dict[str, Tensor], boxes: list[Tensor], image_shapes: Shapes) -> Tensor:
        scores = self.iou_predictor(self.iou_head(self.iou_pooler(features, boxes, image_shapes)))
        return scores.to(torch.promote_types(scores.dtype, torch.float32))

    def _suppress(self, found: Prediction, ious: Tensor) -> Prediction:
        boxes, labels, scores = found["boxes"], found["labels"], found["scores"]
        if self.iou_guided:
            rows, scores = iou_guided_nms(boxes, scores, labels, ious, self.nms_thresh)
        else:
            rows, scores = self.suppress_by_score(found)
        rows, scores = rows[: self.detections_per_img], scores[: self.detections_per_img]
        return {"boxes": boxes[rows], "labels": labels[rows], "scores": scores, "ious": ious[rows]}

    def _refine(self, features: dict[str, Tensor], detections: list[Prediction], image_shapes: Shapes) -> None:
        counts = [len(d["boxes"]) for d in detections]
        labels = torch.cat([d["labels"] for d in detections])
        image = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).to(labels.device)
        # Tensors created in inference mode, as in Lightning's validation, cannot have gradients, but copies can.
        # PyTorch 2.9 would continue to use the weights that autocast converted in inference mode.
        torch.clear_autocast_cache()
        with torch.inference_mode(False):
            maps = {name: feature.clone() for name, feature in features.items()}
            boxes = torch.cat([d["boxes"] for d in detections]).clone()
            labels, image = labels.clone(), image.clone()

            def predict(moved: Tensor, rows: Tensor) -> Tensor:
                # Rows are in order, so the images' boxes stay together.
                split = [image[rows] == number for number in range(len(counts))]
                ious = self.predict_ious(
                    maps, [moved[s] for s in split], [labels[rows][s] for s in split], image_shapes
                )
                return torch.cat(ious)

            refined = refine_boxes(predict, boxes, self.refine_steps, self.refine_step_size)
            with torch.no_grad():
                ious = predict(refined, torch.arange(len(refined), device=refined.device))
        for detection, shape, box, iou in zip(
            detections, image_shapes, refined.split(counts), ious.split(counts), strict=True
        ):
            detection["boxes"], detection["ious"] = clip_boxes_to_image(box, shape), iou


def build_roi_heads(
    roi_heads: RoIHeadsFactory,
    parts: list[nn.Module],
    backbone: Backbone,
    iou_pooler: PoolerFactory | None,
    iou_channels: int,
    num_classes: int,
) -> TwoStageHeads:
    """Builds the second stage from its parts, with an IoU head if there is a pooler for one.

    Raises:
        ConfigError: as `build_heads`, or if refinement is asked for with a pooler that has no gradient with respect to
            boxes.
    """
    if iou_pooler is None:
        return build_heads(roi_heads, parts)
    pooler, shape = build_pooler(iou_pooler, backbone, "iou_pooler")
    head, predictor = FlattenHead(shape, iou_channels), nn.Linear(iou_channels, num_classes)
    heads = build_heads(roi_heads, parts, iou_pooler=pooler, iou_head=head, iou_predictor=predictor)
    if heads.refine_steps > 0 and not _has_box_gradient(pooler, backbone):
        raise ConfigError(
            "iou_pooler: refinement follows the gradient with respect to boxes, which this pooler has not (it rounds "
            "them); choose iou_pooler=pr_roi_pool or roi_align, or model.roi_heads.refine_steps=0"
        )
    return heads


def _has_box_gradient(pooler: nn.Module, backbone: Backbone) -> bool:
    maps = {level: torch.rand(1, backbone.out_channels, 8, 8) for level in backbone.level_names}
    box = torch.tensor([[3.0, 3.0, 17.0, 19.0]], requires_grad=True)
    with torch.enable_grad():
        pooled = pooler(maps, [box], [(32, 32)])
        return pooled.requires_grad and bool(torch.autograd.grad(pooled.sum(), box)[0].any())
