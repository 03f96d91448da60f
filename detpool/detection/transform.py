"""What torchvision's detectors do to images first, without the resizing, which belongs to the data."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform


class NormalizeAndBatch(GeneralizedRCNNTransform):
    """Normalises images and pads them to a common size; predictions come back in pixels of the images given.

    torchvision's transform resizes too, in evaluation even where it was told not to in training.

    Args:
        image_mean, image_std: per-channel normalisation of RGB images in [0, 1].
        size_divisible: the padded height and width are multiples of it, usually the coarsest stride in pixels.
    """

    def __init__(self, image_mean: Sequence[float], image_std: Sequence[float], size_divisible: int) -> None:
        # The base class wants sizes to resize to; `resize` never looks at them.
        super().__init__(1, 1, list(image_mean), list(image_std), size_divisible=size_divisible)

    def normalize(self, image: Tensor) -> Tensor:
        if not image.is_floating_point():
            return super().normalize(image)  # an error
        mean, std = (_channels(tuple(v), image.dtype, image.device) for v in (self.image_mean, self.image_std))
        return (image - mean) / std

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        return image, target

    def postprocess(
        self, result: list[dict[str, Tensor]], image_shapes: Sequence[Any], original_image_sizes: Sequence[Any]
    ) -> list[dict[str, Tensor]]:
        # torchvision would copy sizes, which are equal, to the device for each image, and wait for that.
        return result

    def __repr__(self) -> str:
        return f"NormalizeAndBatch(mean={self.image_mean}, std={self.image_std}, size_divisible={self.size_divisible})"


@lru_cache(maxsize=16)
def _channels(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A number a channel, copied to a device once: torchvision copies it for each image, and waits for that."""
    with torch.inference_mode(False):  # of what is kept, a training may want gradients
        return torch.tensor(values, dtype=dtype, device=device)[:, None, None]
