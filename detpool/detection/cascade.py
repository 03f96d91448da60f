"""Cascade R-CNN: a sequence of box heads, each trained for better boxes than the one before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import Matcher
from torchvision.ops import clip_boxes_to_image

from detpool.detection.assemble import PYRAMID_RPN, HeadFactory, PoolerFactory, ProposalFactory, assemble, build_heads
from detpool.detection.assignment import BoxCoder
from detpool.detection.backbones import Body, FPNBackbone
from detpool.detection.detector import Target, TwoStageDetector
from detpool.detection.faster_rcnn import box_head, mask_head
from detpool.detection.heads import FlattenHead
from detpool.detection.roi_heads import Samples, Shapes, TwoStageHeads, boxes_of_objects
from detpool.detection.slots import LayerFactory
from detpool.errors import ConfigError, check_numbers

STAGE_IOUS = (0.5, 0.6, 0.7)
STAGE_REG_WEIGHTS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))


class CascadeHeads(TwoStageHeads):
    """`TwoStageHeads` with several stages, each of which classifies and refines the boxes of the stage before.

    In training, the proposals of the first stage are sampled. Later stages use all boxes of the stage before, which are
    matched again with a higher threshold. The losses of the stages are summed, and the gradients that pass from each
    stage through pooling to the feature maps are divided by the number of stages, as in detectron2 (MMDetection weights
    the losses by 1, 0.5 and 0.25 instead). A detection has the box of the last stage, and the mean of the probabilities
    of all stages, each for its own box. Masks, if any, are trained on the samples of the first stage.

    Args:
        heads: the modules of `TwoStageHeads`; those for boxes are the first stage.
        make_stage: function that returns pooler, head and predictor of stage 1, 2, ... after the first.
        stage_ious: for each stage, the IoU from which a box is matched with an object, and below which it is
            background.
        stage_reg_weights: for each stage, the weights of the deltas (x, y, w, h).
        box: the other settings of `TwoStageHeads`.

    Raises:
        ConfigError: If there is no stage, if the numbers of weights and thresholds differ, or if a number is out of
            range.
    """

    def __init__(
        self,
        *heads: nn.Module,
        make_stage: Callable[[int], Sequence[nn.Module]],
        stage_ious: Sequence[float] = STAGE_IOUS,
        stage_reg_weights: Sequence[tuple[float, float, float, float]] = STAGE_REG_WEIGHTS,
        **box: Any,
    ) -> None:
        if not stage_ious or len(stage_ious) != len(stage_reg_weights):
            raise ConfigError(
                f"model.roi_heads.stage_ious and stage_reg_weights must have an entry for each stage, one stage at "
                f"least, got {len(stage_ious)} and {len(stage_reg_weights)}"
            )
        check_numbers("model.roi_heads", "above 0 and at most 1", lambda n: 0 < n <= 1, stage_ious=stage_ious)
        for weights in stage_reg_weights:
            check_numbers("model.roi_heads", "more than 0", lambda n: n > 0, stage_reg_weights=weights)
        first = stage_ious[0]
        super().__init__(*heads, fg_iou_thresh=first, bg_iou_thresh=first, bbox_reg_weights=stage_reg_weights[0], **box)
        self.matchers = [Matcher(iou, iou, allow_low_quality_matches=False) for iou in stage_ious]
        self.box_coders = [BoxCoder(tuple(weights)) for weights in stage_reg_weights]
        self.later_stages = nn.ModuleList(nn.ModuleList(make_stage(number)) for number in range(1, len(stage_ious)))

    def box_losses(
        self, features: dict[str, Tensor], samples: Samples, image_shapes: Shapes, targets: list[Target]
    ) -> dict[str, Tensor]:
        """Losses of classes and boxes of all stages; names from the second stage on are `loss_classifier_2`, ..."""
        losses: dict[str, Tensor] = {}
        objects = [target["boxes"].to(samples.boxes[0]) for target in targets]
        stages = self.run_stages(features, samples.boxes, image_shapes)
        for number, (logits, regression, boxes) in enumerate(stages):
            if number > 0:
                matches, labels = self.assign_targets_to_proposals(
                    boxes, objects, [target["labels"] for target in targets], self.matchers[number]
                )
                samples = samples._replace(
                    boxes=boxes, matches=matches, labels=labels, objects=boxes_of_objects(objects, matches)
                )
            found = self.mean_losses(logits, regression, samples, self.box_coders[number])
            losses |= {f"{name}_{number + 1}" if number else name: loss for name, loss in found.items()}
        return losses

    def score_boxes(
        self, features: dict[str, Tensor], proposals: list[Tensor], image_shapes: Shapes
    ) -> tuple[Tensor, Tensor]:
        """Mean probabilities (K, classes + 1) over the stages, and boxes (K, classes + 1, 4) of the last stage."""
        stages = list(self.run_stages(features, proposals, image_shapes))
        scores = torch.stack([logits.softmax(-1) for logits, _, _ in stages]).mean(0)
        _, regression, boxes = stages[-1]
        return scores, self.box_coders[-1].decode(regression, boxes)

    def run_stages(
        self, features: dict[str, Tensor], boxes: list[Tensor], image_shapes: Shapes
    ) -> Iterator[tuple[Tensor, Tensor, list[Tensor]]]:
        """Yields, for each stage, class logits (K, classes + 1), deltas, and the input boxes (k, 4) of each image."""
        logits, regression = self.classify(features, boxes, image_shapes)
        yield logits, regression, boxes
        for parts, coder in zip(self.later_stages, self.box_coders[:-1], strict=True):
            boxes = move_boxes(logits.detach(), regression.detach(), boxes, coder, image_shapes)
            logits, regression = self.classify(features, boxes, image_shapes, parts)
            yield logits, regression, boxes

    def pool(self, pooler: nn.Module, features: dict[str, Tensor], boxes: list[Tensor], image_shapes: Shapes) -> Tensor:
        pooled = pooler(features, boxes, image_shapes)
        if pooled.requires_grad:
            pooled.register_hook(lambda gradient: gradient / len(self.box_coders))
        return pooled


def move_boxes(
    logits: Tensor, regression: Tensor, boxes: list[Tensor], coder: BoxCoder, image_shapes: Shapes
) -> list[Tensor]:
    """Applies the deltas of the best class to the boxes (k, 4) of each image, and clips them to the image."""
    best = logits[:, 1:].argmax(1) + 1
    mine = regression.reshape(*logits.shape, 4)[torch.arange(best.shape[0], device=best.device), best]
    moved = coder.decode_single(mine, torch.cat(boxes)).split([box.shape[0] for box in boxes])
    return [clip_boxes_to_image(box, shape) for box, shape in zip(moved, image_shapes, strict=True)]


def cascade_rcnn(
    num_classes: int,
    body: Body,
    box_pooler: PoolerFactory,
    head_pool: HeadFactory = FlattenHead,
    stage2_pooler: PoolerFactory | None = None,
    stage3_pooler: PoolerFactory | None = None,
    mask_pooler: PoolerFactory | None = None,
    fpn_channels: int = 256,
    mask_channels: int = 256,
    mask_convolutions: int = 4,
    class_agnostic: bool = True,
    context: LayerFactory | None = None,
    rpn: ProposalFactory = PYRAMID_RPN,
    proposals: nn.Module | None = None,
    roi_heads: Callable[..., CascadeHeads] = CascadeHeads,
) -> TwoStageDetector:
    """Cascade R-CNN (Cai & Vasconcelos, CVPR 2018) with a feature pyramid; with masks Cascade Mask R-CNN.

    Every stage has its own pooler, head and predictor. With one stage, it is Faster R-CNN.

    Arguments that are not listed are those of `detpool.detection.faster_rcnn_fpn`.

    Args:
        box_pooler: builds the pooler of the first stage, and of stages without another one.
        stage2_pooler, stage3_pooler: build the poolers of the second and the third stage; None: `box_pooler`.
        class_agnostic: whether to predict one box per RoI, as in the paper; if false, one per class, and the box of the
            best class is passed to the next stage.
        roi_heads: builds the stages from poolers, heads and predictors.

    Raises:
        ConfigError: If the parts do not fit each other, or a pooler is given for a stage that does not exist.
    """
    backbone = FPNBackbone(body, fpn_channels, context)
    poolers = {1: stage2_pooler, 2: stage3_pooler}

    def make_stage(number: int) -> list[nn.Module]:
        pooler = poolers.get(number) or box_pooler
        return box_head(backbone, pooler, head_pool, num_classes, class_agnostic)

    parts = make_stage(0) + mask_head(backbone, mask_pooler, mask_channels, mask_convolutions, num_classes)
    heads = build_heads(roi_heads, parts, make_stage=make_stage)
    for number, pooler in poolers.items():
        if pooler is not None and number > len(heads.later_stages):
            raise ConfigError(
                f"stage{number + 1}_pooler: model.roi_heads.stage_ious has {len(heads.later_stages) + 1} entries, so "
                f"there is no stage {number + 1}"
            )
    return assemble(backbone, heads, rpn, proposals)
