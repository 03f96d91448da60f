"""Encoding of predicted masks, from probabilities within boxes to run lengths at the size of the image file."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.models.detection.roi_heads import paste_masks_in_image

from detpool.evaluation import Detections, to_detections

from .synthetic import DETECTIONS, make_boxes

_INPUT, _FILE = (800, 1333), (480, 800)  # (height, width) of the model's input and of the image file


def encode_masks(images: int) -> Callable[[], list[Detections]]:
    """Encodes masks like the evaluation: pasted into the boxes at the size of the image file."""
    return _prepare(_detections, images)


def encode_pasted_masks(images: int) -> Callable[[], list[Detections]]:
    """Encodes masks like torchvision: pasted into images of the size of the model's input, then resized."""
    return _prepare(_detections_of_pasted, images)


def _prepare(convert: Callable[[Tensor, Tensor], Detections], images: int) -> Callable[[], list[Detections]]:
    boxes = torch.from_numpy(make_boxes(DETECTIONS, _INPUT, np.random.default_rng(0))).float()
    boxes[:, 2:] += boxes[:, :2]
    # Smooth, like the output of a mask head, where neighboring cells are similar.
    coarse = torch.rand(DETECTIONS, 1, 7, 7, generator=torch.Generator().manual_seed(0))
    probabilities = interpolate(coarse, size=28, mode="bicubic").clamp(0, 1)[:, 0]
    convert(boxes[:1], probabilities[:1])  # loads kernels, once per process
    return partial(_convert_all, convert, boxes, probabilities, images)


def _convert_all(
    convert: Callable[[Tensor, Tensor], Detections], boxes: Tensor, probabilities: Tensor, images: int
) -> list[Detections]:
    return [convert(boxes, probabilities) for _ in range(images)]


def _detections(boxes: Tensor, probabilities: Tensor) -> Detections:
    return _to_file(boxes, "mask_probabilities", probabilities)


def _detections_of_pasted(boxes: Tensor, probabilities: Tensor) -> Detections:
    return _to_file(boxes, "masks", paste_masks_in_image(probabilities[:, None], boxes, _INPUT))


def _to_file(boxes: Tensor, key: str, masks: Tensor) -> Detections:
    count = len(boxes)
    prediction = {"boxes": boxes, "labels": torch.ones(count).long(), "scores": torch.ones(count), key: masks}
    return to_detections(prediction, image_id=1, orig_size=_FILE, input_size=_INPUT, category_ids=[1])
