"""Features, boxes and sizes: parse and check. The only place that words their errors."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .layout import sum_dtype
from .registration import differentiable, fake, operator


@dataclass(frozen=True)
class PyramidRoIs:
    """RoIs of several feature maps, each pooled from one of them."""

    rois: Tensor
    """(K, 5) rows (image index, x1, y1, x2, y2), in pixels"""
    levels: Tensor
    """(K,) int64: the map of each RoI, counted from 0; on the device of ``rois``"""


Boxes = Tensor | Sequence[Tensor] | PyramidRoIs
Scale = float | Sequence[float]
INTEGERS = (int, torch.SymInt)


def find_proxies(*values: object) -> list[Any]:
    """Those of ``values`` that stand for a tensor that is not there yet, as in ``torch.fx.symbolic_trace``."""
    return [v for v in values if not isinstance(v, Tensor) and hasattr(type(v), "__torch_function__")]


def check_features(features: Tensor, name: str = "input", dimensions: int = 2) -> None:
    """Raise TypeError or ValueError unless ``features`` is a floating tensor (N, C, H, W) with C, H and W positive.

    With other ``dimensions``, (N, C, L) or (N, C, D, H, W).
    """
    shape = f"(N, C, {('L', 'H, W', 'D, H, W')[dimensions - 1]})"
    if not isinstance(features, Tensor):
        raise TypeError(f"{name} must be a tensor of shape {shape}, got {type(features).__name__}")
    if features.dim() != dimensions + 2:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(features.shape)}")
    if not features.is_floating_point():
        raise TypeError(f"{name} must have a floating dtype, got {features.dtype}")
    if 0 in features.shape[1:]:
        raise ValueError(f"{name} must have at least one channel, row and column, got {tuple(features.shape)}")


def parse(
    input: Tensor | Sequence[Tensor], boxes: Boxes, spatial_scale: Scale | Sequence[Scale], coordinates: int
) -> tuple[list[Tensor], Tensor, Tensor | None, tuple[Scale, ...]]:
    """One map or those of a pyramid as (maps, RoIs, levels or None, scales), all but the values of scales checked.

    For RoIs see :func:`to_rois`.

    Raises:
        TypeError, ValueError: If an argument has a wrong type or shape, or they do not belong together.
    """
    if isinstance(input, Tensor):
        check_features(input)
        if isinstance(boxes, PyramidRoIs):
            raise TypeError("boxes must be a tensor or a sequence of tensors where input is one map, got PyramidRoIs")
        return [input], to_rois(boxes, input, coordinates), None, (spatial_scale,)  # type: ignore[return-value]
    if not isinstance(input, Sequence) or isinstance(input, str):
        kind = type(input).__name__
        raise TypeError(f"input must be a tensor of shape (N, C, H, W) or a sequence of them, got {kind}")
    if not isinstance(boxes, PyramidRoIs):
        raise TypeError(f"boxes must be PyramidRoIs where input is several maps, got {type(boxes).__name__}")
    if not input or not isinstance(spatial_scale, Sequence) or len(spatial_scale) != len(input):
        raise ValueError(f"spatial_scale must hold a number for each of the {len(input)} maps, got {spatial_scale!r}")
    for number, features in enumerate(input):
        check_features(features, f"input[{number}]")
        first = input[0]
        same = (features.shape[:2], features.dtype, features.device) == (first.shape[:2], first.dtype, first.device)
        if not same:
            raise ValueError(
                f"the maps of input must have the same images, channels, dtype and device, got {tuple(first.shape)} "
                f"{first.dtype} on {first.device} and {tuple(features.shape)} {features.dtype} on {features.device}"
            )
    rois, levels = to_rois(boxes.rois, input[0], coordinates), boxes.levels
    if levels.dtype != torch.int64 or levels.shape != rois.shape[:1] or levels.device != rois.device:
        raise ValueError(
            f"levels must be int64 of shape ({len(rois)},) on {rois.device}, got {levels.dtype} of shape "
            f"{tuple(levels.shape)} on {levels.device}"
        )
    return list(input), rois, levels, tuple(spatial_scale)


def check_groups(channels: int, bins: tuple[int, int]) -> None:
    """Raise ValueError unless the channels can be divided among the bins, as position-sensitive pooling does."""
    if channels % (bins[0] * bins[1]):
        raise ValueError(
            f"input must have a multiple of {bins[0]} x {bins[1]} channels for position-sensitive pooling, "
            f"got {channels}"
        )


_ONE_FOR_EACH = {1: "", 2: " or a pair of them (height, width)", 3: " or three of them (depth, height, width)"}


def each_axis(value: int | Sequence[int], name: str, dimensions: int) -> tuple[int, ...]:
    """``value`` as one number for each dimension. Raises ValueError unless it is a positive integer or so many."""
    sizes = tuple(value) if isinstance(value, Sequence) else (value,)
    sizes = sizes * dimensions if len(sizes) == 1 else sizes
    if [isinstance(n, INTEGERS) and not isinstance(n, bool) and n > 0 for n in sizes] != [True] * dimensions:
        raise ValueError(f"{name} must be a positive integer{_ONE_FOR_EACH[dimensions]}, got {value!r}")
    return tuple([int(n) for n in sizes])


def pair(value: int | Sequence[int], name: str) -> tuple[int, int]:
    """``value`` as (height, width). Raises ValueError if it is neither a positive integer nor a pair of them."""
    height, width = each_axis(value, name, 2)
    return height, width


def positive(value: int, name: str) -> int:
    """``value``. Raises ValueError if it is not a positive integer."""
    return each_axis(value, name, 1)[0]


def check_ratio(sampling_ratio: int, name: str = "sampling_ratio") -> int:
    """``sampling_ratio`` as an int. Raises TypeError if it is not an integer."""
    if not isinstance(sampling_ratio, INTEGERS) or isinstance(sampling_ratio, bool):
        raise TypeError(f"{name} must be an integer, got {sampling_ratio!r}")
    return int(sampling_ratio)


def split_ratio(sampling_ratio: int | Sequence[int], sampling: object) -> tuple[int, tuple[int, int]]:
    """Points per bin along (y, x) as a number for both axes and the parts that each bin falls into before.

    Raises:
        TypeError, ValueError: If there are not two, they are not of single points, or one alone is adaptive.
    """
    if not isinstance(sampling_ratio, Sequence) or isinstance(sampling_ratio, str):
        return sampling_ratio, (1, 1)
    if len(sampling_ratio) != 2:
        raise ValueError(f"sampling_ratio must be an integer or two of them (height, width), got {sampling_ratio!r}")
    y, x = (max(0, check_ratio(ratio)) for ratio in sampling_ratio)
    if y == x:
        return y, (1, 1)
    if sampling != "points" or min(y, x) == 0:
        raise ValueError(
            f"sampling_ratio must be the same for both axes, unless sampling is 'points' and both are positive, got "
            f"{tuple(sampling_ratio)} for sampling {sampling!r}"
        )
    both = math.gcd(y, x)
    return both, (y // both, x // both)


def pair_of_scales(spatial_scale: Any) -> tuple[float, float]:
    """``spatial_scale``, one number or two, as (height, width). Raises TypeError or ValueError if it is neither."""
    scales = tuple(spatial_scale) if isinstance(spatial_scale, Sequence) else (spatial_scale, spatial_scale)
    if len(scales) != 2 or isinstance(spatial_scale, str):
        raise ValueError(f"spatial_scale must be a number or two of them (height, width), got {spatial_scale!r}")
    return check_scale(scales[0]), check_scale(scales[1])


def check_scale(spatial_scale: Any, name: str = "spatial_scale") -> float:
    """``spatial_scale`` as a float. Raises TypeError or ValueError unless it is a positive finite number."""
    try:
        scale = float(spatial_scale)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {spatial_scale!r}") from None
    if not 0 < scale < math.inf:
        raise ValueError(f"{name} must be a positive finite number, got {spatial_scale!r}")
    return scale


def to_rois(boxes: Tensor | Sequence[Tensor], features: Tensor, coordinates: int = 4) -> Tensor:
    """Bring both forms of RoIs to one, of checked shape, dtype and device; values are checked where they are used.

    Args:
        boxes: one tensor (K, 1 + coordinates) whose first column is the index of the image in the batch, or a
            sequence of N tensors (L, coordinates), one for each image.
        features: the tensor (N, C, H, W) that will be pooled; sets device, dtype and N.
        coordinates: numbers that describe one box: 4 for (x1, y1, x2, y2), 5 for rotated boxes.

    Returns:
        (K, 1 + coordinates), float64 for float64 features and float32 otherwise, whatever the dtype of the boxes;
        differentiable with respect to them.

    Raises:
        TypeError, ValueError: If type, shape, dtype or device is wrong; says what was received and what is accepted.
    """
    dtype = sum_dtype(features.dtype)
    if isinstance(boxes, Tensor):
        _check_box_tensor(boxes, "boxes", 1 + coordinates, features.device)
        return boxes if boxes.dtype == dtype else boxes.to(dtype)
    if not isinstance(boxes, Sequence):
        raise TypeError(
            f"boxes must be a tensor of shape (K, {1 + coordinates}) or a sequence of tensors of shape "
            f"(L, {coordinates}), got {type(boxes).__name__}"
        )
    if len(boxes) != features.shape[0]:
        raise ValueError(
            f"boxes must hold one tensor for each of the {features.shape[0]} images of input, got {len(boxes)}"
        )
    for number, image_boxes in enumerate(boxes):
        _check_box_tensor(image_boxes, f"boxes[{number}]", coordinates, features.device)
    return join_images(boxes, dtype) if boxes else features.new_zeros((0, 1 + coordinates), dtype=dtype)


def join_images(boxes: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Boxes (L, D) of each of at least one image as rows (image index, box), in the order of the images."""
    return torch.cat(
        [torch.nn.functional.pad(image_boxes.to(dtype), (1, 0), value=i) for i, image_boxes in enumerate(boxes)]
    )


def check_offsets(offsets: Tensor, shape: tuple[int | str, ...]) -> None:
    """Raise TypeError or ValueError unless ``offsets`` is a floating tensor of ``shape``, "any" where any size does."""
    if not isinstance(offsets, Tensor) or not offsets.is_floating_point():
        kind = offsets.dtype if isinstance(offsets, Tensor) else type(offsets).__name__
        raise TypeError(f"offsets must be a floating tensor of shape {shape}, got {kind}")
    fits = offsets.dim() == 4 and all(n == "any" or n == m for n, m in zip(shape, offsets.shape, strict=True))
    if not fits or 0 in offsets.shape[1:]:
        raise ValueError(f"offsets must have shape {shape}, got {tuple(offsets.shape)}")


def check_values(rois: Tensor, offsets: Tensor | None, images: int) -> None:
    """Raise ValueError naming the first RoI, or offset, whose values are not valid. Waits for the device."""
    rois = rois.detach()
    image, coords = rois[:, 0], rois[:, 1:]
    wrong = ~((image >= 0) & (image < images) & (image == image.floor()))
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"boxes[{row}, 0] must be the index of an image of input, an integer from 0 to {images - 1}, "
            f"got {image[row].item()}"
        )
    finite = coords.isfinite().all(dim=1)
    if not finite.all():
        row = int((~finite).nonzero()[0])
        raise ValueError(f"boxes must be finite, got {coords[row].tolist()} at row {row}")
    ordered = is_ordered(coords)
    if not ordered.all():
        row = int((~ordered).nonzero()[0])
        rule = "x1 <= x2 and y1 <= y2" if coords.shape[1] == 4 else "width >= 0 and height >= 0"
        raise ValueError(f"boxes must have {rule}, got {coords[row].tolist()} at row {row}")
    if offsets is not None and not offsets.detach().isfinite().all():
        row = int((~offsets.detach().isfinite()).nonzero()[0, 0])
        raise ValueError(f"offsets must be finite, got a number that is not for the RoI at row {row}")


def is_ordered(coords: Tensor) -> Tensor:
    """(K,) bool: whether boxes (K, 4) have ``x1 <= x2`` and ``y1 <= y2``, rotated ones (K, 5) sides of 0 or more."""
    if coords.shape[1] == 4:
        return (coords[:, 0] <= coords[:, 2]) & (coords[:, 1] <= coords[:, 3])
    return (coords[:, 2] >= 0) & (coords[:, 3] >= 0)


def checks_values(device: torch.device) -> bool:
    """Values are inspected where that costs no synchronisation; DETPOOL_CHECK_BOXES=1 does so on every device."""
    return device.type == "cpu" or os.environ.get("DETPOOL_CHECK_BOXES") == "1"


def checked(rois: Tensor, offsets: Tensor | None, images: int) -> Tensor:
    """A copy of ``rois`` whose values have been inspected, when it is made: in traced code too."""
    return _checked_rois(rois, offsets, images)


@operator
def _checked_rois(rois: Tensor, offsets: Tensor | None, images: int) -> Tensor:
    check_values(rois, offsets, images)
    return rois.clone()


@fake(_checked_rois)
def _(rois: Tensor, offsets: Tensor | None, images: int) -> Tensor:
    return torch.empty_like(rois)


differentiable(_checked_rois, lambda ctx, grad: (grad, None, None), lambda ctx, inputs, output: None)


def _check_box_tensor(boxes: Tensor, name: str, columns: int, device: torch.device) -> None:
    if not isinstance(boxes, Tensor):
        raise TypeError(f"{name} must be a tensor of shape (number of boxes, {columns}), got {type(boxes).__name__}")
    if boxes.dim() != 2 or boxes.shape[1] != columns:
        raise ValueError(f"{name} must have shape (number of boxes, {columns}), got {tuple(boxes.shape)}")
    if boxes.dtype == torch.bool or boxes.is_complex():
        raise TypeError(f"{name} must hold real numbers, got {boxes.dtype}")
    if boxes.device != device:
        raise ValueError(f"{name} must be on the device of input, {device}, got {boxes.device}")
