"""The image transform of torchvision's detectors without resizing, which is part of the data pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform


class NormalizeAndBatch(GeneralizedRCNNTransform):
    """Normalizes images and pads them to a common size; predictions are in pixels of the given images.

    torchvision's transform also resizes, in evaluation even if resizing is disabled in training.

    Args:
        image_mean, image_std: mean and standard deviation of each channel of RGB images in [0, 1].
        size_divisible: padded height and width are multiples of this, usually the coarsest stride in pixels.
    """

    def __init__(self, image_mean: Sequence[float], image_std: Sequence[float], size_divisible: int) -> None:
        # The base class requires sizes for resizing, which `resize` does not use.
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
        # torchvision would copy the sizes, which are equal, to the device for each image, and wait for the copy.
        return result

    def __repr__(self) -> str:
        return f"NormalizeAndBatch(mean={self.image_mean}, std={self.image_std}, size_divisible={self.size_divisible})"


@lru_cache(maxsize=16)
def _channels(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """One number per channel on a device, cached: torchvision copies them for each image, and waits for the copy."""
    with torch.inference_mode(False):  # the cached tensor may be used in training later
        return torch.tensor(values, dtype=dtype, device=device)[:, None, None]
