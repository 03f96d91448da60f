"""The image transforms of training and evaluation, built by one function."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from detpool.object_masks import ObjectMasks


class SanitizeObjects(v2.SanitizeBoundingBoxes):
    """Removes objects less than a pixel wide or high, with their labels and masks, and likewise such proposals."""

    def __init__(self) -> None:
        super().__init__(labels_getter=_rows_of_objects)

    def forward(self, image: Tensor, target: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        # The base class would assume that the proposals are the boxes of the labels.
        others = {key: value for key, value in target.items() if key != "proposals"}
        image, cleaned = super().forward(image, others)
        if "proposals" in target:
            boxes = target["proposals"]
            large = ((boxes[:, 2:] - boxes[:, :2]) >= self.min_size).all(1)
            cleaned["proposals"] = tv_tensors.wrap(boxes[large], like=boxes)
        return image, cleaned


def _rows_of_objects(sample: tuple[Tensor, dict[str, Any]]) -> list[Tensor]:
    labels, masks = sample[1]["labels"], sample[1].get("masks")
    return [labels, masks.extents] if isinstance(masks, ObjectMasks) else [labels]


def detection_transform(
    min_size: int | Sequence[int] | None = None,
    max_size: int | None = None,
    size: Sequence[int] | None = None,
    scale_range: Sequence[float] | None = None,
    hflip: float = 0.0,
    photometric: bool = False,
) -> v2.Transform:
    """Build a `torchvision.transforms.v2` pipeline from (image, target) to (image, target).

    Images stay uint8. Boxes are clamped to the image, and objects that are then less than one pixel wide or high are
    removed, with their labels and masks. Proposals are transformed with the image. Without arguments, nothing else is
    done; evaluation needs only a size.

    Args:
        min_size: shorter side of the result in pixels; the aspect ratio is kept. If there are several, one is drawn at
            random for each image. None: no resizing, unless ``size`` is given.
        max_size: maximum longer side in pixels, which takes precedence over ``min_size``. Requires ``min_size``.
        size: (height, width) of every result in pixels; the aspect ratio is not kept. Excludes ``min_size``.
        scale_range: (lowest, highest) factor of scale jitter, such as (0.5, 1.5). With ``min_size``, which must be a
            single number, the shorter side is drawn uniformly from this range times ``min_size``. With ``size``, it is
            large-scale jitter: the image is fitted into ``size`` with its aspect ratio kept, scaled by a factor drawn
            from the range, then cropped or padded with black to ``size``.
        hflip: probability of a horizontal flip.
        photometric: whether to distort brightness, contrast, saturation, hue and channel order, each with
            probability 0.5 (`v2.RandomPhotometricDistort`), before the image is resized, as SSD does (Liu et al.,
            ECCV 2016).

    Returns:
        A picklable transform, which uses torch's global random generator.

    Raises:
        ValueError: If an argument is out of range, requires another one that is missing, or excludes another one.
    """
    if min_size is not None and size is not None:
        raise ValueError(f"min_size and size: got {min_size} and {size}, give one and set the other to null")
    if max_size is not None and min_size is None:
        raise ValueError(f"max_size: got {max_size} without min_size, the shorter side it limits")
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise ValueError(f"size: got {size}, need [height, width], both at least 1")
    if not 0 <= hflip <= 1:
        raise ValueError(f"hflip: got {hflip}, need a probability, 0 to 1")
    sides = [] if min_size is None else [min_size] if isinstance(min_size, int) else list(min_size)
    if min_size is not None and (not sides or min(sides) < 1):
        raise ValueError(f"min_size: got {min_size}, need one or several integers, at least 1")
    if max_size is not None and max_size < max(sides):
        raise ValueError(f"max_size: got {max_size}, need at least min_size, {max(sides)}")
    if scale_range is not None:
        if len(scale_range) != 2 or not 0 < scale_range[0] <= scale_range[1]:
            raise ValueError(f"scale_range: got {scale_range}, need [lowest, highest] with 0 < lowest <= highest")
        if size is None and len(sides) != 1:
            raise ValueError(f"scale_range: got {scale_range} with min_size {min_size}, need one min_size, or size")

    steps: list[v2.Transform] = [v2.RandomPhotometricDistort()] if photometric else []
    if sides:
        if scale_range is not None:
            low, high = (max(1, round(factor * sides[0])) for factor in scale_range)
            sides = list(range(low, high + 1))
        steps.append(v2.RandomShortestSize(sides, max_size=max_size))
    elif size is not None and scale_range is not None:
        jitter = v2.ScaleJitter(tuple(size), scale_range=tuple(scale_range))
        steps += [jitter, v2.RandomCrop(tuple(size), pad_if_needed=True)]
    elif size is not None:
        steps.append(v2.Resize(list(size)))
    if hflip > 0:
        steps.append(v2.RandomHorizontalFlip(hflip))
    steps += [v2.ClampBoundingBoxes(), SanitizeObjects()]
    return v2.Compose(steps)


def check_eval_transform(transform: object) -> None:
    """Checks that an evaluation transform only resizes, since detections are only scaled back to the image file.

    Raises:
        ValueError: If a step of `detection_transform` flips or crops images.
    """
    steps = transform.transforms if isinstance(transform, v2.Compose) else [transform]
    moving = {v2.RandomHorizontalFlip: "hflip", v2.RandomCrop: "scale_range with size"}
    found = [name for step in steps for kind, name in moving.items() if isinstance(step, kind)]
    if found:
        raise ValueError(
            f"data.eval_transform: {' and '.join(found)} would move objects, whose boxes in the file are then not "
            f"those that are detected; expected min_size, max_size or size alone"
        )
