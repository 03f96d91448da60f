"""The second stage: classes, boxes and masks of proposals, on torchvision's `RoIHeads`."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_inference
from torchvision.ops import clip_boxes_to_image, remove_small_boxes

from detpool.detection.assignment import BoxCoder, Matcher, mask_targets, match_boxes
from detpool.detection.box_losses import BoxLoss, roi_losses
from detpool.detection.detector import Prediction, Target, has_objects
from detpool.detection.sampling import count_samples, draw_samples, places_of
from detpool.detection.suppression import Suppression, soft_nms, suppress
from detpool.errors import ConfigError, check_numbers

Shapes = list[tuple[int, int]]
BOX_REG_WEIGHTS = (10.0, 10.0, 5.0, 5.0)


class Samples(NamedTuple):
    """The boxes that are sampled for the losses; each attribute is a list with one entry per image.

    Attributes:
        boxes: (k, 4) XYXY in pixels.
        matches: (k,), index of the object of each box.
        labels: (k,), 0 for background.
        objects: (k, 4), boxes of the matched objects; undefined for background.
        positive: (p,), indices of the boxes that are matched with an object.
    """

    boxes: list[Tensor]
    matches: list[Tensor]
    labels: list[Tensor]
    objects: list[Tensor]
    positive: list[Tensor]


class TwoStageHeads(RoIHeads):
    """torchvision's heads, with losses in both modes, hard example mining, and batches without objects or proposals.

    Args:
        box_pooler: `pooler(features, boxes, image_shapes)` returns pooled RoIs (K, C, PH, PW).
        box_head: computes features of each RoI from pooled RoIs.
        box_predictor: computes class logits (K, classes + 1), background first, and box deltas (K, 4 (classes + 1))
            from these features.
        mask_pooler, mask_head, mask_predictor: the same for masks, with logits (K, classes + 1, M, M); or None.
        fg_iou_thresh, bg_iou_thresh: minimum IoU of a proposal with an object to be positive, and IoU below which it is
            background.
        batch_size_per_image: number of proposals sampled per image for the losses.
        positive_fraction: maximum fraction of positives among these; default 0.25. None with `hard_examples`.
        hard_examples: whether to use online hard example mining (Shrivastava et al., CVPR 2016): losses are computed
            for all proposals, and only the largest `batch_size_per_image` times the number of images are used, over the
            whole batch, whatever their labels.
        bbox_reg_weights: weights of the deltas (x, y, w, h).
        box_loss: `"smooth_l1"` of the deltas, or `"giou"`, `"diou"` or `"ciou"` of the predicted boxes (see
            `roi_losses`).
        box_loss_weight: weight of the box loss. (An overlap loss is at most 2 per object; common weights are 1 in
            detectron2 to 10 in MMDetection.)
        score_thresh: detections with a lower score are dropped, also after soft-NMS (its paper: 0.001).
        nms: `"hard"`, or soft-NMS, `"linear"` or `"gaussian"` (see `soft_nms`).
        nms_thresh: IoU of two detections of a class above which one is dropped or, with `nms="linear"`, loses score.
        nms_sigma: sigma of `nms="gaussian"`.
        detections_per_img: maximum number of detections per image.
        pre_nms_top_n: maximum number of boxes per image, over all classes, for suppression; those with the best scores
            are used. If no image has more (1000 proposals give 80,000 boxes with COCO's classes, of which at most a few
            thousand pass `score_thresh`), detections are those of torchvision, which has no such limit.

    Raises:
        ConfigError: If a number is out of range, `positive_fraction` is given with `hard_examples`, or `box_loss` or
            `nms` is unknown.
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
        positive_fraction: float | None = None,
        hard_examples: bool = False,
        bbox_reg_weights: tuple[float, float, float, float] = BOX_REG_WEIGHTS,
        box_loss: BoxLoss = "smooth_l1",
        box_loss_weight: float = 1.0,
        score_thresh: float = 0.05,
        nms: Suppression = "hard",
        nms_thresh: float = 0.5,
        nms_sigma: float = 0.5,
        detections_per_img: int = 100,
        pre_nms_top_n: int = 10_000,
    ) -> None:
        check = functools.partial(check_numbers, "model.roi_heads")
        check("at least 1", lambda n: n >= 1, batch_size_per_image=batch_size_per_image, pre_nms_top_n=pre_nms_top_n)
        check("at least 1", lambda n: n >= 1, detections_per_img=detections_per_img)
        check("more than 0", lambda n: n > 0, box_loss_weight=box_loss_weight, nms_sigma=nms_sigma)
        check("more than 0", lambda n: n > 0, bbox_reg_weights=bbox_reg_weights)
        if hard_examples and positive_fraction is not None:
            raise ConfigError(
                f"model.roi_heads.positive_fraction={positive_fraction} has no effect: with hard_examples the losses "
                "say which proposals count"
            )
        positive_fraction = 0.25 if positive_fraction is None else positive_fraction
        check("0 to 1", lambda n: 0 <= n <= 1, positive_fraction=positive_fraction, nms_thresh=nms_thresh)
        check("0 to 1", lambda n: 0 <= n <= 1, fg_iou_thresh=fg_iou_thresh)
        check(f"0 to fg_iou_thresh={fg_iou_thresh}", lambda n: 0 <= n <= fg_iou_thresh, bg_iou_thresh=bg_iou_thresh)
        for name, word, known in (("box_loss", box_loss, get_args(BoxLoss)), ("nms", nms, get_args(Suppression))):
            if word not in known:
                raise ConfigError(f"model.roi_heads.{name} must be one of {', '.join(known)}, got {word!r}")
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
        self.box_loss, self.box_loss_weight = box_loss, box_loss_weight
        self.nms, self.nms_sigma, self.pre_nms_top_n = nms, nms_sigma, pre_nms_top_n
        self.image_context: nn.Module | None = None  # an `ImageContext`, if box heads get a vector of the whole image

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: Shapes,
        targets: list[Target] | None = None,
    ) -> tuple[list[Prediction], dict[str, Tensor]]:
        """Returns detections, empty in training mode, and losses if `targets` have boxes."""
        losses = self.losses(features, proposals, image_shapes, targets) if has_objects(targets) else {}
        return [] if self.training else self.detect(features, proposals, image_shapes), losses

    def losses(
        self, features: dict[str, Tensor], proposals: list[Tensor], image_shapes: Shapes, targets: list[Target]
    ) -> dict[str, Tensor]:
        # Without any proposal, means would be undefined: use the whole image as a proposal.
        proposals = [
            box if len(box) + len(target["boxes"]) > 0 else box.new_tensor([[0, 0, width, height]])
            for box, target, (height, width) in zip(proposals, targets, image_shapes, strict=True)
        ]
        samples = self._sample(proposals, targets)
        losses = self.box_losses(features, samples, image_shapes, targets)
        if self.has_mask():
            losses["loss_mask"] = self._mask_loss(features, samples, image_shapes, targets)
        return losses

    def box_losses(
        self, features: dict[str, Tensor], samples: Samples, image_shapes: Shapes, targets: list[Target]
    ) -> dict[str, Tensor]:
        """Computes the losses of classes and boxes."""
        return self.mean_losses(*self.classify(features, samples.boxes, image_shapes), samples, self.box_coder)

    def mean_losses(self, logits: Tensor, regression: Tensor, samples: Samples, coder: BoxCoder) -> dict[str, Tensor]:
        """Means of the losses over the boxes of all images, or over the hard examples among them."""
        labels, boxes, objects = (torch.cat(each) for each in (samples.labels, samples.boxes, samples.objects))
        class_loss, box_loss = roi_losses(logits, regression, labels, boxes, objects, coder, self.box_loss)
        box_loss = box_loss * self.box_loss_weight
        count = len(class_loss)
        if self.hard_examples:
            count = min(count, self.batch_size_per_image * len(samples.boxes))
            hardest = (class_loss + box_loss).topk(count).indices
            class_loss, box_loss = class_loss[hardest], box_loss[hardest]
        return {
            "loss_classifier": class_loss.sum() / max(count, 1),
            "loss_box_reg": box_loss.sum() / max(count, 1),
        }

    def _sample(self, proposals: list[Tensor], targets: list[Target]) -> Samples:
        """Samples proposals and objects of each image, as torchvision does."""
        self.check_targets(targets)
        objects = [target["boxes"].to(proposals[0]) for target in targets]
        boxes = self.add_gt_proposals(proposals, objects)
        matches, labels = self.assign_targets_to_proposals(boxes, objects, [target["labels"] for target in targets])
        counts = count_samples(labels).tolist()  # the only wait
        if self.hard_examples:
            # Selected later, by their losses; -1 is neither object nor background.
            rows = [places_of(label >= 0, sum(count)) for label, count in zip(labels, counts, strict=True)]
            positives = [count[0] for count in counts]
        else:
            drawn = draw_samples(self.fg_bg_sampler, labels, counts)
            rows = [torch.cat(both).sort().values for both in drawn]
            positives = [len(some) for some, _ in drawn]
        boxes, matches, labels = (
            [each[row] for each, row in zip(x, rows, strict=True)] for x in (boxes, matches, labels)
        )
        positive = [places_of(label > 0, count) for label, count in zip(labels, positives, strict=True)]
        return Samples(boxes, matches, labels, boxes_of_objects(objects, matches), positive)

    def assign_targets_to_proposals(
        self,
        proposals: list[Tensor],
        gt_boxes: list[Tensor],
        gt_labels: list[Tensor],
        matcher: Matcher | None = None,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Of each image the object of each box (n,), and its label (n,): 0 for background, -1 for neither.

        Args:
            matcher: default the one of `fg_iou_thresh` and `bg_iou_thresh`.
        """
        matcher = matcher or self.proposal_matcher
        matches, labels = [], []
        for boxes, objects, classes in zip(proposals, gt_boxes, gt_labels, strict=True):
            match = torch.full_like(boxes[:, 0], matcher.BELOW_LOW_THRESHOLD, dtype=torch.int64)
            nearest, label = match + 1, match + 1
            if len(objects):
                match = match_boxes(matcher, objects, boxes)
                nearest = match.clamp(min=0)
                label = torch.where(match >= 0, classes[nearest], match + 1)
            matches.append(nearest)
            labels.append(label)
        return matches, labels

    def detect(self, features: dict[str, Tensor], proposals: list[Tensor], image_shapes: Shapes) -> list[Prediction]:
        scores, boxes = self.score_boxes(features, proposals, image_shapes)
        counts = [box.shape[0] for box in proposals]
        each = zip(scores.split(counts), boxes.split(counts), image_shapes, strict=True)
        detections = self.suppress(features, [self._candidates(*image) for image in each], image_shapes)
        if self.has_mask():
            logits = self._mask_logits(features, [d["boxes"] for d in detections], image_shapes)
            masks = maskrcnn_inference(logits, [d["labels"] for d in detections])
            for detection, mask in zip(detections, masks, strict=True):
                detection["mask_probabilities"] = mask[:, 0]
        return detections

    def score_boxes(
        self, features: dict[str, Tensor], proposals: list[Tensor], image_shapes: Shapes
    ) -> tuple[Tensor, Tensor]:
        """Probabilities (K, classes + 1) of the proposals of all images, and boxes (K, classes + 1, 4)."""
        logits, regression = self.classify(features, proposals, image_shapes)
        return logits.softmax(-1), self.box_coder.decode(regression, proposals)

    def _candidates(self, scores: Tensor, boxes: Tensor, image_shape: tuple[int, int]) -> Prediction:
        """All pairs of proposal and class of an image above the score threshold; at most the best `pre_nms_top_n`."""
        classes, score = scores.shape[1] - 1, scores[:, 1:].reshape(-1)
        rows = torch.where(score > self.score_thresh)[0]
        if torch.compiler.is_compiling() or len(rows) > self.pre_nms_top_n:  # the number is unknown in traced code
            rows = rows[score[rows].topk(torch.sym_min(rows.shape[0], self.pre_nms_top_n)).indices]
        box = clip_boxes_to_image(boxes[:, 1:].reshape(-1, 4)[rows], image_shape)
        large = remove_small_boxes(box, 1e-2)
        rows = rows[large]
        return {"boxes": box[large], "labels": rows % classes + 1, "scores": score[rows]}

    def suppress(
        self, features: dict[str, Tensor], candidates: list[Prediction], image_shapes: Shapes
    ) -> list[Prediction]:
        """Selects the candidates of each image that become its detections, best first."""
        found = [(candidate, *self.suppress_by_score(candidate)) for candidate in candidates]
        return [{"boxes": c["boxes"][rows], "labels": c["labels"][rows], "scores": s} for c, rows, s in found]

    def suppress_by_score(self, found: Prediction) -> tuple[Tensor, Tensor]:
        """Indices of an image's kept candidates in order of decreasing score, and scores, which soft-NMS may reduce."""
        arguments = found["boxes"], found["scores"], found["labels"]
        if self.nms == "hard":
            rows = suppress(*arguments, self.nms_thresh)[: self.detections_per_img]
            return rows, found["scores"][rows]
        rows, scores = soft_nms(*arguments, self.nms, self.nms_thresh, self.nms_sigma, self.detections_per_img)
        good = scores > self.score_thresh
        return rows[good], scores[good]

    def classify(
        self,
        features: dict[str, Tensor],
        boxes: list[Tensor],
        image_shapes: Shapes,
        parts: Any = None,
    ) -> tuple[Tensor, Tensor]:
        """Class logits and box deltas of boxes, float32 where features have half precision: see `ProposalNetwork`.

        Args:
            parts: modules (pooler, head, predictor); None: those of boxes.
        """
        pooler, head, predictor = parts or (self.box_roi_pool, self.box_head, self.box_predictor)
        vectors = head(self.pool(pooler, features, boxes, image_shapes))
        if self.image_context is not None:
            images = self.image_context(features, image_shapes)
            vectors = vectors + torch.cat([v.expand(box.shape[0], -1) for v, box in zip(images, boxes, strict=True)])
        logits, regression = predictor(vectors)
        exact = torch.promote_types(logits.dtype, torch.float32)
        return logits.to(exact), regression.to(exact)

    def pool(self, pooler: nn.Module, features: dict[str, Tensor], boxes: list[Tensor], image_shapes: Shapes) -> Tensor:
        """Input of the box head."""
        return pooler(features, boxes, image_shapes)

    def _mask_logits(self, features: dict[str, Tensor], boxes: list[Tensor], image_shapes: Shapes) -> Tensor:
        return self.mask_predictor(self.mask_head(self.mask_roi_pool(features, boxes, image_shapes)))

    def _mask_loss(
        self,
        features: dict[str, Tensor],
        samples: Samples,
        image_shapes: Shapes,
        targets: list[Target],
    ) -> Tensor:
        if not any(len(rows) for rows in samples.positive):
            # Batch normalization of a head does not accept an empty batch: use one box, whose loss is not counted.
            some = [box[:1] for box in samples.boxes]
            return self._mask_logits(features, some, image_shapes).sum() * 0
        boxes, matched = (
            [each[rows] for each, rows in zip(x, samples.positive, strict=True)]
            for x in (samples.boxes, samples.matches)
        )
        logits = self._mask_logits(features, boxes, image_shapes)
        classes = torch.cat([target["labels"][rows] for target, rows in zip(targets, matched, strict=True)])
        wanted = [
            mask_targets(target["masks"], box, rows, logits.shape[-1])
            for target, box, rows in zip(targets, boxes, matched, strict=True)
        ]
        mine = logits[torch.arange(len(classes), device=classes.device), classes]
        return F.binary_cross_entropy_with_logits(mine, torch.cat(wanted))


def boxes_of_objects(objects: list[Tensor], matches: list[Tensor]) -> list[Tensor]:
    """Selects boxes (k, 4) of an image's objects (n, 4) by index (k,); zeros if there are no objects."""
    return [
        box[match] if len(box) else box.new_zeros(len(match), 4) for box, match in zip(objects, matches, strict=True)
    ]
