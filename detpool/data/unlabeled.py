"""A data set of images without annotations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors

from detpool.data.dataset import DetectionDataset, Sample, Transform
from detpool.data.images import displayed_size, read_image, to_rgb

ImageLike = str | Path | Image.Image | np.ndarray | Tensor


class UnlabeledImages(DetectionDataset):
    """Images without objects; the `image_id` of sample i is ``i + 1``.

    Args:
        images: each is a file, which is read as displayed (its EXIF orientation is applied); a PIL image; an array
            (H, W, 3) or (H, W), uint8, RGB or gray; or a tensor (3, H, W), RGB, uint8 or floating point in 0 .. 1.
        class_names: names of labels 1, 2, ...
        proposals: for each image, boxes (m, 4) XYXY in its pixels, best first; None: samples have no proposals.
        transform: see `DetectionDataset`.

    Raises:
        TypeError, ValueError: If an image or the proposals have another type or shape. The message names the entry.
    """

    def __init__(
        self,
        images: Sequence[ImageLike],
        class_names: Sequence[str],
        proposals: Sequence[Tensor] | None = None,
        transform: Transform | None = None,
    ) -> None:
        super().__init__(transform)
        self.images, self.class_names = list(images), list(class_names)
        self.category_ids = list(range(1, len(class_names) + 1))
        for place, image in enumerate(self.images):
            _check_image(image, f"images[{place}]")
        if isinstance(proposals, Tensor):
            raise ValueError(f"proposals must be a list of a tensor for each image, got one {tuple(proposals.shape)}")
        if proposals is not None and len(proposals) != len(self.images):
            raise ValueError(f"proposals must be given for each of {len(self.images)} images, got {len(proposals)}")
        for place, boxes in enumerate(proposals or []):
            if not isinstance(boxes, Tensor) or boxes.ndim != 2 or boxes.shape[1] != 4:
                got = tuple(boxes.shape) if isinstance(boxes, Tensor) else type(boxes).__name__
                raise ValueError(f"proposals[{place}] must be a tensor (m, 4), got {got}")
        self.given_proposals = proposals

    @property
    def image_ids(self) -> list[int]:
        return list(range(1, len(self.images) + 1))

    def __len__(self) -> int:
        return len(self.images)

    def load(self, index: int) -> Sample:
        image = _pixels(self.images[index])
        size = (image.shape[-2], image.shape[-1])
        target: dict[str, Any] = {
            "boxes": tv_tensors.BoundingBoxes(torch.zeros(0, 4), format="XYXY", canvas_size=size),
            "labels": torch.zeros(0, dtype=torch.int64),
            "image_id": index + 1,
            "orig_size": size,
        }
        if self.given_proposals is not None:
            boxes = self.given_proposals[index].float().cpu()
            target["proposals"] = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size)
        return image, target

    def ground_truth(self) -> dict[str, list[dict[str, Any]]]:
        categories = [{"id": i, "name": n} for i, n in zip(self.category_ids, self.class_names, strict=True)]
        images = []
        for image_id, image in zip(self.image_ids, self.images, strict=True):
            height, width = _size(image)
            name = str(image) if isinstance(image, str | Path) else f"{image_id}"
            images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        return {"images": images, "annotations": [], "categories": categories}


def _check_image(image: Any, name: str) -> None:
    """Raise TypeError or ValueError if `image` is not one of the accepted kinds of images."""
    accepted = "a path, a PIL image, a uint8 array (H, W, 3) or (H, W), or a tensor (3, H, W), uint8 or floating"
    if not isinstance(image, str | Path | Image.Image | np.ndarray | Tensor):
        raise TypeError(f"{name} must be {accepted}, got {type(image).__name__}")
    if isinstance(image, np.ndarray) and (
        image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3)
    ):
        raise ValueError(f"{name} must be {accepted}, got an array of {image.dtype} {image.shape}")
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] != 3 or not (image.dtype == torch.uint8 or image.is_floating_point()):
            raise ValueError(f"{name} must be {accepted}, got a tensor of {image.dtype} {tuple(image.shape)}")
        low, high = image.aminmax() if image.is_floating_point() and image.numel() else (0, 1)
        if not (low >= 0 and high <= 1):  # NaN is neither
            raise ValueError(f"{name}: a floating image must have values in 0 .. 1, got {low:g} .. {high:g}")
    if isinstance(image, Image.Image) and image.mode == "F":
        raise ValueError(f"{name} must have values of a known range, got a PIL image of floating-point numbers")
    if not isinstance(image, str | Path) and 0 in _size(image):
        raise ValueError(f"{name} must have pixels, got {_size(image)[0]} x {_size(image)[1]} (height x width)")


def _size(image: Any) -> tuple[int, int]:
    """Return (height, width) of an image in pixels."""
    if isinstance(image, str | Path):
        return displayed_size(Path(image))
    if isinstance(image, Image.Image):
        return image.height, image.width
    return (image.shape[0], image.shape[1]) if isinstance(image, np.ndarray) else (image.shape[1], image.shape[2])


def _pixels(image: ImageLike) -> tv_tensors.Image:
    """Convert an image of any accepted kind to uint8 (3, H, W), RGB."""
    if isinstance(image, str | Path):
        return read_image(Path(image))
    if isinstance(image, Tensor):
        scaled = (image * 255).round().to(torch.uint8) if image.is_floating_point() else image
        return tv_tensors.Image(scaled.detach().cpu())
    array = np.array(to_rgb(image) if isinstance(image, Image.Image) else image)
    return tv_tensors.Image(torch.from_numpy(array).reshape(*array.shape[:2], -1).permute(2, 0, 1).expand(3, -1, -1))
