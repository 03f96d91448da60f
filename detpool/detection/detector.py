"""The two-stage detector: torchvision's, with losses and predictions in a single pass."""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.roi_heads import paste_masks_in_image

Target = dict[str, Tensor]
Prediction = dict[str, Tensor]


class TwoStageDetector(GeneralizedRCNN):
    """A detector of backbone, proposals and heads, with the interface of torchvision's detectors.

    Images are (3, H, W), RGB in [0, 1], and are not resized, which is left to the data pipeline. Targets are dicts with
    `boxes` (n, 4) XYXY in pixels, `labels` (n,) starting at 1, and, if the model needs them, `masks`, (n, H, W) or
    `ObjectMasks`, and `proposals` (m, 4) XYXY in pixels.
    """

    def forward(
        self, images: list[Tensor], targets: list[Target] | None = None
    ) -> dict[str, Tensor] | list[Prediction]:
        """Returns a dict of losses in training mode, otherwise predictions, one dict per image.

        Predictions have the format of torchvision's, including `masks` (n, 1, H, W), probabilities pasted into the
        image.

        Raises:
            ValueError: If there are no targets in training mode, or a target has a box without width or height.
        """
        if self.training and targets is None:
            raise ValueError("targets must be given in training mode, got None")
        predictions, losses = self.evaluate(images, targets)
        return losses if self.training else [_paste(p, image) for p, image in zip(predictions, images, strict=True)]

    def evaluate(
        self, images: list[Tensor], targets: list[Target] | None = None
    ) -> tuple[list[Prediction], dict[str, Tensor]]:
        """Returns predictions and losses, in the current mode of the model (for batch normalization, ...).

        Returns:
            The predictions, empty in training mode, and the losses, empty if `targets` have no `boxes`. In place of
            `masks`, predictions have `mask_probabilities` (n, M, M) within the boxes, at the resolution M of the mask
            head, which take little memory and no wait for a GPU.

        Raises:
            ValueError: If a target has a box without width or height.
        """
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        _check_boxes([target.get("boxes") for target in targets or []])
        batch, targets = self.transform(images, targets)
        features = self.backbone(batch.tensors)
        proposals, rpn_losses = self.rpn(batch, features, targets)
        predictions, head_losses = self.roi_heads(features, proposals, batch.image_sizes, targets)
        return self.transform.postprocess(predictions, batch.image_sizes, sizes), {**head_losses, **rpn_losses}


def _paste(prediction: Prediction, image: Tensor) -> Prediction:
    """Replaces the masks within boxes by masks of the whole image."""
    if "mask_probabilities" not in prediction:
        return prediction
    rest = dict(prediction)
    probabilities = rest.pop("mask_probabilities")[:, None]
    return rest | {"masks": paste_masks_in_image(probabilities, rest["boxes"], (image.shape[-2], image.shape[-1]))}


def has_objects(targets: list[Target] | None) -> TypeGuard[list[Target]]:
    """Whether all targets have objects, so that losses can be computed; targets may hold only proposals."""
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
