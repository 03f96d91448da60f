"""Shift consistency: how detections, scores and AP change if an image moves by less than a cell of the coarsest map.

Rounding in pooling, aliasing by strides and anchors on a grid make a detector depend on where in a cell an object lies.
Here each image is placed on a larger canvas at several positions. The detections are moved back and compared with those
at the first position. Canvas and padding are the same for all positions, so nothing else differs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from detpool.data.dataset import DetectionDataset
from detpool.data.sampling import derive_seed
from detpool.detection import GivenProposals, JitteredProposals, TwoStageDetector
from detpool.errors import ConfigError
from detpool.evaluation import DetectionEvaluator
from detpool.evaluation.detections import Detections, by_image
from detpool.evaluation.errors import judge_image
from detpool.evaluation.results import to_detections
from detpool.predictor import Predictor
from detpool.probing.weights import METRICS

DIRECTIONS = {"diagonal": (1, 1), "right": (1, 0), "down": (0, 1)}


def coarsest_stride(model: TwoStageDetector) -> int:
    """Returns the stride in pixels of the coarsest map that a detector reads; for a pyramid, the RPN's extra level."""
    backbone: Any = model.backbone
    proposing = not isinstance(model.rpn, GivenProposals | JitteredProposals)
    pooled = int(max(backbone.strides))
    return 2 * pooled if proposing and "pool" in backbone.rpn_names else max(pooled, int(max(backbone.body.strides)))


def default_shifts(stride: int) -> list[int]:
    """Returns about ten shifts in pixels from 0 to a stride, both included.

    The step is odd, so that objects lie at many different positions within the cells of finer maps, too.
    """
    step = max(1, stride // 8 - (1 - stride // 8 % 2))
    return [*range(0, stride, step), stride]


@torch.inference_mode()
def detect_shifted(
    predictor: Predictor,
    dataset: DetectionDataset,
    indices: Sequence[int],
    shifts: Sequence[int],
    direction: str = "diagonal",
    margin: int | None = None,
) -> Iterator[list[Detections]]:
    """Detects objects in images at several positions of a canvas; moves the boxes back and clips them to the image.

    The canvas has `margin` pixels around the image, plus the largest shift on the right and at the bottom; its sides
    are multiples of the coarsest stride. It is filled with the mean color of the backbone's normalization, which is
    also the padding of training batches. Proposals that are given or made from the ground truth are drawn once per
    image and move with it.

    Args:
        predictor: the detector.
        dataset: data set with samples that are ready for the model.
        indices: indices of the samples to use.
        shifts: shifts in pixels of the model's input.
        direction: one of `DIRECTIONS`.
        margin: margin in pixels of the model's input. Default: the coarsest stride.

    Yields:
        For each image the detections at each of `shifts`, in pixels of its file.

    Raises:
        ConfigError: If the model takes given proposals and the data has none.
    """
    model, device = predictor.model, predictor.device
    stride = coarsest_stride(model)
    margin = stride if margin is None else margin
    right, down = DIRECTIONS[direction]
    fill = torch.tensor(model.transform.image_mean)[:, None, None]
    rpn = model.rpn
    try:
        if isinstance(rpn, JitteredProposals):
            model.rpn = GivenProposals(top_n_test=2**31)
        for index in indices:
            image, target = dataset[index]
            image = image.as_subclass(Tensor).float() / 255
            height, width = image.shape[-2:]
            proposals = _proposals(rpn, image, target, derive_seed(int(predictor.config.seed), 0, index, 0))
            sides = [-(-(side + 2 * margin + max(shifts)) // stride) * stride for side in (height, width)]
            found = []
            for shift in shifts:
                left, top = margin + right * shift, margin + down * shift
                canvas = fill.expand(-1, *sides).clone()
                canvas[:, top : top + height, left : left + width] = image
                move = torch.tensor([left, top, left, top], dtype=torch.float32, device=device)
                given = None if proposals is None else [{"proposals": proposals.to(device) + move}]
                (prediction,), _ = model.evaluate([canvas.to(device)], given)
                back = prediction | {"boxes": prediction["boxes"] - move}
                found.append(_in_file(back, target, (height, width), dataset.category_ids))
            yield found
    finally:
        model.rpn = rpn


def _proposals(rpn: Any, image: Tensor, target: Mapping[str, Any], seed: int) -> Tensor | None:
    """Returns proposals (n, 4) in pixels of the input image; None if the model makes them from feature maps."""
    if isinstance(rpn, GivenProposals):
        if "proposals" not in target:
            raise ConfigError("proposals=given: data.val_proposals must name a file of proposals")
        return target["proposals"].as_subclass(Tensor).float()
    if not isinstance(rpn, JitteredProposals):
        return None
    torch.manual_seed(seed)
    objects = {"boxes": target["boxes"].as_subclass(Tensor)}
    (proposals,), _ = rpn(ImageList(image[None], [(image.shape[-2], image.shape[-1])]), {}, [objects])
    return proposals


def _in_file(
    prediction: Mapping[str, Tensor], target: Mapping[str, Any], size: tuple[int, int], category_ids: Sequence[int]
) -> Detections:
    """Converts predictions to pixels of the image file, clips them to it, and drops those that lie outside."""
    height, width = target["orig_size"]
    found = to_detections(
        prediction,
        image_id=int(target["image_id"]),
        orig_size=(height, width),
        input_size=size,
        category_ids=category_ids,
    )
    # Boxes are clipped after the conversion, because masks are predicted for whole boxes.
    corners = np.hstack([found.boxes[:, :2], found.boxes[:, :2] + found.boxes[:, 2:]])
    corners = corners.clip(0, [width, height, width, height])
    boxes = np.hstack([corners[:, :2], corners[:, 2:] - corners[:, :2]])
    return replace(found, boxes=boxes).take(boxes[:, 2:].min(1, initial=1) > 0)


def consistency(reference: Detections, moved: Detections, score: float) -> dict[str, float]:
    """Compares the detections of shifted images with reference detections.

    Args:
        reference: detections before the shift. Only those with a score of at least `score` count.
        moved: detections after the shift, moved back.
        score: score threshold.

    Returns:
        `kept`, the fraction of reference detections matched by a moved detection of the same class and any score with
        IoU >= 0.5, in order of decreasing score (`errors.judge_image`); over these pairs the mean `iou`, the mean
        `score_change` (moved minus reference) and its mean magnitude `score_error`; and `detections`, the number of
        moved detections with at least `score` over that of the reference. NaN if the reference has no detection or no
        pair is found.
    """
    before, after = by_image(reference.take(reference.scores >= score)), by_image(moved)
    ious, changes = [], []
    for image_id, rows in before.items():
        found = after.get(image_id, [])
        for place, other in enumerate(judge_image(rows, found).objects):
            if other is not None:
                boxes = torch.tensor([rows[other]["bbox"], found[place]["bbox"]], dtype=torch.float64)
                boxes[:, 2:] += boxes[:, :2]
                ious.append(float(box_iou(boxes[:1], boxes[1:])))
                changes.append(found[place]["score"] - rows[other]["score"])
    count = sum(map(len, before.values()))
    return {
        "kept": len(ious) / count if count else float("nan"),
        "iou": _mean(ious),
        "score_change": _mean(changes),
        "score_error": _mean([abs(change) for change in changes]),
        "detections": int((moved.scores >= score).sum()) / count if count else float("nan"),
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def shift_consistency(
    evaluator: DetectionEvaluator,
    found: Sequence[Sequence[Detections]],
    image_ids: Sequence[int],
    shifts: Sequence[int],
    stride: int,
    score: float = 0.5,
) -> dict[str, Any]:
    """Computes metrics at each shift and their variation over shifts.

    Args:
        evaluator: evaluator of the data set.
        found: for each image the detections at each shift (`detect_shifted`).
        image_ids: ids of the images.
        shifts: shifts in pixels; the others are compared with the first.
        stride: the coarsest stride in pixels.
        score: score threshold; see `consistency`.

    Returns:
        `shifts`, for each shift a dict of `shift`, the evaluator's AP, AP50 and AP75 of boxes and masks, and the result
        of `consistency` with the first shift. And `summary`: for each AP the mean, standard deviation (n - 1) and range
        over shifts, as `AP_mean`, `AP_std` and `AP_range`; and the means of `kept`, `iou` and `score_error`. It leaves
        out moves by whole multiples of the stride, which should change nothing and only show the effect of the canvas
        border. It is NaN if there are no other shifts.
    """
    rows: list[dict[str, float]] = []
    reference = Detections.concatenate([each[0] for each in found])
    for number, shift in enumerate(shifts):
        evaluator.reset()
        for image_id, each in zip(image_ids, found, strict=True):
            evaluator.add(image_id, each[number])
        metrics = evaluator.compute(partial=True)
        known = {name: metrics[name] for name in METRICS if name in metrics}
        moved = Detections.concatenate([each[number] for each in found])
        rows.append({"shift": shift, **known, **consistency(reference, moved, score)})
    table = pd.DataFrame(rows)
    within = table[(table.index == 0) | (table["shift"] - shifts[0]).mod(stride).ne(0)]
    if len(within) == 1:
        within = within.iloc[:0]  # the range of one value would be 0, as for a shift-invariant detector
    summary: dict[str, float] = {}
    for name in (name for name in METRICS if name in table):
        values = within[name]
        summary |= {f"{name}_mean": values.mean(), f"{name}_std": values.std()}
        summary[f"{name}_range"] = values.max() - values.min()
    summary |= {name: within[name].iloc[1:].mean() for name in ("kept", "iou", "score_error")}
    return {"shifts": rows, "summary": {name: float(value) for name, value in summary.items()}}
