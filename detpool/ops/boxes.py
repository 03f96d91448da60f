"""RoI formats and their validation: the first thing every operator does, and the only place that words its errors."""

import math
import os
from collections.abc import Sequence

import torch
from torch import Tensor

Boxes = Tensor | Sequence[Tensor]


def check_features(features: Tensor, name: str = "input") -> None:
    """Raise unless ``features`` is a floating tensor (N, C, H, W) with C, H and W of at least one."""
    if not isinstance(features, Tensor):
        raise TypeError(f"{name} must be a tensor of shape (N, C, H, W), got {type(features).__name__}")
    if features.dim() != 4:
        raise ValueError(f"{name} must have shape (N, C, H, W), got {tuple(features.shape)}")
    if not features.is_floating_point():
        raise TypeError(f"{name} must have a floating dtype, got {features.dtype}")
    if 0 in features.shape[1:]:
        raise ValueError(f"{name} must have at least one channel, row and column, got {tuple(features.shape)}")


def pair(value: int | Sequence[int], name: str) -> tuple[int, int]:
    """``value`` as (height, width), both positive integers."""
    sizes = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(sizes) == 1:
        sizes = sizes * 2
    valid = len(sizes) == 2 and all(
        isinstance(v, (int, torch.SymInt)) and not isinstance(v, bool) and v > 0 for v in sizes
    )
    if not valid:
        raise ValueError(f"{name} must be a positive integer or a pair of them (height, width), got {value!r}")
    return sizes[0], sizes[1]


def check_scale(spatial_scale: float) -> float:
    """``spatial_scale`` as a float; raise unless it is positive and finite."""
    try:
        scale = float(spatial_scale)
    except (TypeError, ValueError):
        raise TypeError(f"spatial_scale must be a number, got {spatial_scale!r}") from None
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"spatial_scale must be a positive finite number, got {spatial_scale!r}")
    return scale


def to_rois(boxes: Boxes, features: Tensor, coordinates: int = 4) -> tuple[Tensor, Tensor]:
    """Bring both forms of RoIs to one: the image index and the coordinates of each.

    Args:
        boxes: one tensor (K, 1 + coordinates) whose first column is the index of the image in the batch, or a
            sequence of N tensors (L, coordinates), one for each image.
        features: the tensor (N, C, H, W) that will be pooled; sets device, dtype and N.
        coordinates: numbers that describe one box: 4 for (x1, y1, x2, y2), 5 for rotated boxes.

    Returns:
        ``(batch, coords)``: int64 (K,) and (K, coordinates), the latter float64 for float64 features and float32
        otherwise, whatever the dtype of the boxes, and differentiable with respect to them. On devices
        where values are not inspected, the image of a RoI that is not valid is -1.

    Raises:
        TypeError, ValueError: naming what was received and what is accepted.
    """
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    if isinstance(boxes, Tensor):
        _check_tensor(boxes, "boxes", 1 + coordinates, features.device)
        batch, coords = boxes[:, 0].detach(), boxes[:, 1:].to(dtype)
        if _checks_values(features):
            _check_batch(batch, features.shape[0])
        batch = batch.to(torch.int64)
    elif isinstance(boxes, Sequence):
        if len(boxes) != features.shape[0]:
            raise ValueError(
                f"boxes must hold one tensor for each of the {features.shape[0]} images of input, got {len(boxes)}"
            )
        for i, image_boxes in enumerate(boxes):
            _check_tensor(image_boxes, f"boxes[{i}]", coordinates, features.device)
        if boxes:
            coords = torch.cat([b.to(dtype) for b in boxes])
            batch = torch.cat(
                [torch.full((len(b),), i, dtype=torch.int64, device=b.device) for i, b in enumerate(boxes)]
            )
        else:
            coords = torch.zeros((0, coordinates), dtype=dtype, device=features.device)
            batch = torch.zeros((0,), dtype=torch.int64, device=features.device)
    else:
        raise TypeError(
            f"boxes must be a tensor of shape (K, {1 + coordinates}) or a sequence of tensors of shape "
            f"(L, {coordinates}), got {type(boxes).__name__}"
        )
    if _checks_values(features):
        _check_coordinates(coords.detach(), coordinates)
    elif features.device.type != "cpu":
        exists = (batch >= 0) & (batch < features.shape[0])
        batch = torch.where(exists & _finite(coords.detach()) & _ordered(coords.detach(), coordinates), batch, -1)
    return batch, coords


def prepare(
    input: Tensor, boxes: Boxes, output_size: int | Sequence[int], spatial_scale: float
) -> tuple[Tensor, Tensor, tuple[int, int], float]:
    """What every operator on upright boxes begins with: ``(batch, coords, (height, width), scale)``, all checked."""
    check_features(input)
    size = pair(output_size, "output_size")
    scale = check_scale(spatial_scale)
    return *to_rois(boxes, input), size, scale


def _check_tensor(boxes: Tensor, name: str, columns: int, device: torch.device) -> None:
    if not isinstance(boxes, Tensor):
        raise TypeError(f"{name} must be a tensor of shape (number of boxes, {columns}), got {type(boxes).__name__}")
    if boxes.dim() != 2 or boxes.shape[1] != columns:
        raise ValueError(f"{name} must have shape (number of boxes, {columns}), got {tuple(boxes.shape)}")
    if boxes.dtype == torch.bool or boxes.is_complex():
        raise TypeError(f"{name} must hold real numbers, got {boxes.dtype}")
    if boxes.device != device:
        raise ValueError(f"{name} must be on the device of input, {device}, got {boxes.device}")


def _checks_values(features: Tensor) -> bool:
    """Values are inspected where that costs no synchronisation; DETPOOL_CHECK_BOXES=1 does so on every device."""
    if torch.compiler.is_compiling():
        return False
    return features.device.type == "cpu" or os.environ.get("DETPOOL_CHECK_BOXES") == "1"


def _check_batch(batch: Tensor, images: int) -> None:
    wrong = ~((batch >= 0) & (batch < images) & (batch == batch.to(torch.int64)))
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"boxes[{row}, 0] must be the index of an image of input, an integer from 0 to {images - 1}, "
            f"got {batch[row].item()}"
        )


def _check_coordinates(coords: Tensor, coordinates: int) -> None:
    finite = _finite(coords)
    if not finite.all():
        row = int((~finite).nonzero()[0])
        raise ValueError(f"boxes must be finite, got {coords[row].tolist()} at row {row}")
    ordered = _ordered(coords, coordinates)
    if not ordered.all():
        row = int((~ordered).nonzero()[0])
        rule = "x1 <= x2 and y1 <= y2" if coordinates == 4 else "width >= 0 and height >= 0"
        raise ValueError(f"boxes must have {rule}, got {coords[row].tolist()} at row {row}")


def _finite(coords: Tensor) -> Tensor:
    return coords.isfinite().all(dim=1)


def _ordered(coords: Tensor, coordinates: int) -> Tensor:
    lengths = coords[:, 2:] - coords[:, :2] if coordinates == 4 else coords[:, 2:4]
    return (lengths >= 0).all(dim=1)
