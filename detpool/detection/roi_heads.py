"""The second stage: classes, boxes and masks of proposals, on torchvision's `RoIHeads`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_inference
from torchvision.ops import clip_boxes_to_image, remove_small_boxes

from detpool.detection.assignment import BoxCoder, mask_targets, match_boxes
from detpool.detection.detector import Prediction, Target, has_objects
from detpool.detection.sampling import count_samples, draw_samples, places_of, suppress
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
        pre_nms_top_n: boxes of all classes of an image that go to suppression: of more, those with the best scores.
            Where no image has more (1000 proposals have 80,000 of COCO's classes, of which `score_thresh` leaves a few
            thousand at most), detections are those of torchvision, which has no such limit.

    Raises:
        ConfigError: if `batch_size_per_image` or `pre_nms_top_n` is less than 1.
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
        pre_nms_top_n: int = 10_000,
    ) -> None:
        for name, value in {"batch_size_per_image": batch_size_per_image, "pre_nms_top_n": pre_nms_top_n}.items():
            if value < 1:
                raise ConfigError(f"model.roi_heads.{name} must be at least 1, got {value}")
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
        self.box_coder = BoxCoder(tuple(bbox_reg_weights))
        self.batch_size_per_image, self.hard_examples = batch_size_per_image, hard_examples
        self.pre_nms_top_n = pre_nms_top_n

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
        proposals, matches, labels, deltas, positive = self._sample(proposals, targets)
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
            losses["loss_mask"] = self._mask_loss(features, proposals, image_shapes, targets, matches, positive)
        return losses

    def _sample(
        self, proposals: list[Tensor], targets: list[Target]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        """The boxes of each image whose losses count, drawn of its proposals and objects as torchvision draws them.

        Returns:
            the boxes (k, 4); the object of each (k,); its label (k,), 0 for background; the deltas (k, 4) to the
            object; and which boxes are of an object.
        """
        self.check_targets(targets)
        objects = [target["boxes"].to(proposals[0]) for target in targets]
        boxes = self.add_gt_proposals(proposals, objects)
        matches, labels = self.assign_targets_to_proposals(boxes, objects, [target["labels"] for target in targets])
        counts = count_samples(labels).tolist()  # the one wait
        if self.hard_examples:
            # Chosen later, by their losses; -1 is neither object nor background.
            rows = [places_of(label >= 0, sum(count)) for label, count in zip(labels, counts, strict=True)]
            positives = [count[0] for count in counts]
        else:
            drawn = draw_samples(self.fg_bg_sampler, labels, counts)
            rows = [torch.cat(both).sort().values for both in drawn]
            positives = [len(some) for some, _ in drawn]
        boxes, matches, labels = (
            [each[row] for each, row in zip(x, rows, strict=True)] for x in (boxes, matches, labels)
        )
        wanted = [
            box[match] if len(box) else torch.zeros_like(own)
            for box, match, own in zip(objects, matches, boxes, strict=True)
        ]
        positive = [places_of(label > 0, count) for label, count in zip(labels, positives, strict=True)]
        return boxes, matches, labels, list(self.box_coder.encode(wanted, boxes)), positive

    def assign_targets_to_proposals(
        self, proposals: list[Tensor], gt_boxes: list[Tensor], gt_labels: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Of each image the object of each box (n,), and its label (n,): 0 for background, -1 for neither."""
        matches, labels = [], []
        for boxes, objects, classes in zip(proposals, gt_boxes, gt_labels, strict=True):
            match = torch.full_like(boxes[:, 0], self.proposal_matcher.BELOW_LOW_THRESHOLD, dtype=torch.int64)
            nearest, label = match + 1, match + 1
            if len(objects):
                match = match_boxes(self.proposal_matcher, objects, boxes)
                nearest = match.clamp(min=0)
                label = torch.where(match >= 0, classes[nearest], match + 1)
            matches.append(nearest)
            labels.append(label)
        return matches, labels

    def detect(self, features: dict[str, Tensor], proposals: list[Tensor], image_shapes: Shapes) -> list[Prediction]:
        logits, regression = self.classify(features, proposals, image_shapes)
        found = zip(*self.postprocess_detections(logits, regression, proposals, image_shapes), strict=True)
        detections = [{"boxes": boxes, "labels": labels, "scores": scores} for boxes, scores, labels in found]
        if self.has_mask():
            logits = self._mask_logits(features, [d["boxes"] for d in detections], image_shapes)
            masks = maskrcnn_inference(logits, [d["labels"] for d in detections])
            for detection, mask in zip(detections, masks, strict=True):
                detection["mask_probabilities"] = mask[:, 0]
        return detections

    def postprocess_detections(
        self, class_logits: Tensor, box_regression: Tensor, proposals: list[Tensor], image_shapes: Shapes
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Boxes (n, 4), scores and labels (n,) of each image, best first."""
        counts = [box.shape[0] for box in proposals]
        boxes = self.box_coder.decode(box_regression, proposals)[:, 1:].split(counts)
        scores = class_logits.softmax(-1)[:, 1:].split(counts)
        classes = class_logits.shape[1] - 1
        found = []
        for box, score, shape in zip(boxes, scores, image_shapes, strict=True):
            score = score.reshape(-1)
            rows = torch.where(score > self.score_thresh)[0]
            if torch.compiler.is_compiling() or len(rows) > self.pre_nms_top_n:  # how many is not known when traced
                most = torch.sym_min(rows.shape[0], self.pre_nms_top_n)
                rows = rows[score[rows].topk(most).indices]
            box, score, label = clip_boxes_to_image(box.reshape(-1, 4)[rows], shape), score[rows], rows % classes + 1
            large = remove_small_boxes(box, 1e-2)
            box, score, label = box[large], score[large], label[large]
            kept = suppress(box, score, label, self.nms_thresh)[: self.detections_per_img]
            found.append((box[kept], score[kept], label[kept]))
        found_boxes, found_scores, found_labels = (list(each) for each in zip(*found, strict=True))
        return found_boxes, found_scores, found_labels

    def classify(self, features: dict[str, Tensor], boxes: list[Tensor], image_shapes: Shapes) -> tuple[Tensor, Tensor]:
        """Class logits and box deltas of boxes, float32 where features have half precision: see `ProposalNetwork`."""
        logits, regression = self.box_predictor(self.box_head(self.box_roi_pool(features, boxes, image_shapes)))
        exact = torch.promote_types(logits.dtype, torch.float32)
        return logits.to(exact), regression.to(exact)

    def _mask_logits(self, features: dict[str, Tensor], boxes: list[Tensor], image_shapes: Shapes) -> Tensor:
        return self.mask_predictor(self.mask_head(self.mask_roi_pool(features, boxes, image_shapes)))

    def _mask_loss(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: Shapes,
        targets: list[Target],
        matches: list[Tensor],
        positive: list[Tensor],
    ) -> Tensor:
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
    rows = torch.arange(len(labels), device=labels.device)
    mine = regression.reshape(len(labels), -1, 4)[rows, labels]
    wanted = torch.where(labels[:, None] > 0, deltas, mine.detach())
    box_loss = F.smooth_l1_loss(mine, wanted, beta=1 / 9, reduction="none").sum(1)
    return F.cross_entropy(logits, labels, reduction="none"), box_loss
