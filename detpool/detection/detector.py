"""The two-stage detector: torchvision's, with losses and predictions of one pass."""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.roi_heads import paste_masks_in_image

Target = dict[str, Tensor]
Prediction = dict[str, Tensor]


class TwoStageDetector(GeneralizedRCNN):
    """Backbone, proposals, heads, called as torchvision's detectors are.

    Images are taken as they come, (3, H, W) RGB in [0, 1], and never resized: that is the data's business. Targets are
    dicts of `boxes` (n, 4) XYXY in pixels, `labels` (n,) from 1, and, where the model needs them, `masks`, (n, H, W) or
    `ObjectMasks`, and `proposals` (m, 4).
    """

    def forward(
        self, images: list[Tensor], targets: list[Target] | None = None
    ) -> dict[str, Tensor] | list[Prediction]:
        """In training mode a dict of losses, which needs targets; otherwise predictions, one dict an image.

        Predictions are torchvision's, `masks` (n, 1, H, W) of probabilities pasted into the image among them.

        Raises:
            ValueError: without targets in training mode, or if a target holds a box without width or height.
        """
        if self.training and targets is None:
            raise ValueError("targets must be given in training mode, got None")
        predictions, losses = self.evaluate(images, targets)
        return losses if self.training else [_paste(p, image) for p, image in zip(predictions, images, strict=True)]

    def evaluate(
        self, images: list[Tensor], targets: list[Target] | None = None
    ) -> tuple[list[Prediction], dict[str, Tensor]]:
        """Predictions and losses, in the mode (of batch normalisation, ...) that the model is in.

        Returns:
            the predictions, none in training mode; and the losses, none where `targets` hold no `boxes`. In place of
            `masks` a prediction has `mask_probabilities` (n, M, M) within its boxes, of the mask head's M, which take
            little memory and no wait for a GPU.

        Raises:
            ValueError: if a target holds a box without width or height.
        """
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        _check_boxes([target.get("boxes") for target in targets or []])
        batch, targets = self.transform(images, targets)
        features = self.backbone(batch.tensors)
        proposals, rpn_losses = self.rpn(batch, features, targets)
        predictions, head_losses = self.roi_heads(features, proposals, batch.image_sizes, targets)
        return self.transform.postprocess(predictions, batch.image_sizes, sizes), {**head_losses, **rpn_losses}


def _paste(prediction: Prediction, image: Tensor) -> Prediction:
    """With masks of the whole image in place of those within boxes."""
    if "mask_probabilities" not in prediction:
        return prediction
    rest = dict(prediction)
    probabilities = rest.pop("mask_probabilities")[:, None]
    return rest | {"masks": paste_masks_in_image(probabilities, rest["boxes"], (image.shape[-2], image.shape[-1]))}


def has_objects(targets: list[Target] | None) -> TypeGuard[list[Target]]:
    """Whether losses are asked for: targets may hold nothing but proposals."""
    return targets is not None and all("boxes" in target for target in targets)


def _check_boxes(boxes: list[Tensor | None]) -> None:
    given = {number: box for number, box in enumerate(boxes) if box is not None}
    for number, box in given.items():
        if box.ndim != 2 or box.shape[1] != 4:
            raise ValueError(f"targets[{number}]['boxes'] must be (n, 4), got {tuple(box.shape)}")
    empty = {number: (box[:, 2:] <= box[:, :2]).any(1) for number, box in given.items()}
    if empty and torch.cat(list(empty.values())).any():  # one wait for all images
        number = next(number for number, rows in empty.items() if rows.any())
        bad = given[number][empty[number]][0].tolist()
        raise ValueError(f"targets[{number}]['boxes'] holds a box without width or height: {bad}")
