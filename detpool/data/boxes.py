"""Checks of the boxes in annotation files, which find probable mistakes."""

from collections.abc import Callable

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from detpool.errors import DataError

_CHUNK = 1 << 20  # boxes per step: intermediate results take ten times their memory


def clamp_corners(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Converts boxes (n, 4) from x, y, width, height to XYXY, clamped to sizes (height, width), (n, 2) or (2,)."""
    corners = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
    limit = sizes.flip(-1).repeat(*[1] * (sizes.ndim - 1), 2)
    return torch.minimum(corners.clamp(min=0), limit)


def find_unusable(
    source: str, boxes: Tensor, sizes: Tensor, name_of: Callable[[int], str], corners: bool = False
) -> Tensor:
    """Finds boxes without width or height within their image, and warns once per kind of probable mistake in boxes.

    Args:
        source: name of the data set in messages.
        boxes: float64 (n, 4): x, y, width and height in pixels.
        sizes: (n, 2): height and width of each box's image in pixels.
        name_of: function that returns the name of the image of box i.
        corners: whether the file stores a second corner instead of width and height.

    Returns:
        bool (n,), true for boxes without width or height within their image.

    Raises:
        DataError: If all boxes seem to be fractions of the image's sides.
    """

    def warn(which: Tensor, text: str) -> None:
        if which.any():
            first = int(which.nonzero()[0])
            counts = f"{int(which.sum())} of {len(boxes)} objects"
            where = f"the first is {boxes[first].tolist()} (x, y, width, height) in {name_of(first)}"
            rank_zero_warn(f"{source}: {text.format(counts)}; {where}")

    chunks = zip(boxes.split(_CHUNK), sizes.split(_CHUNK), strict=True)
    signs = torch.cat([_find_signs(*chunk) for chunk in chunks])
    flat, unusable, fractions, beyond, thin, within_as_corners, within_if_swapped = signs.unbind(1)
    if fractions.any() and bool((fractions | flat).all()):
        first = int(fractions.nonzero()[0])
        raise DataError(
            f"{source}: all boxes lie within the first pixel of their image, such as {boxes[first].tolist()} (x, y, "
            f"width, height) in {name_of(first)}: they seem to be fractions of its sides, expected pixels"
        )

    none, outside = int(flat.sum()), int((unusable & ~flat).sum())
    causes = [f"{none} have none at all"] * (none > 0)
    causes += [f"{outside} lie outside, as of another image or another size of it"] * (outside > 0)
    warn(unusable, f"left out {{}}, whose boxes have no width or height within the image ({', '.join(causes)})")

    if not corners and within_as_corners.all():
        mistake = "as corners (x1, y1, x2, y2) all would lie within"
    elif within_if_swapped.all():
        mistake = "all would lie within if the height and width of the images were swapped"
    else:
        mistake = "as if images had been cropped or resized"
    warn(beyond, f"{{}} reach more than a pixel beyond their image, and are cut at its edge in training; {mistake}")

    hint = f", {int(fractions.sum())} of them as if fractions of its sides were meant" if fractions.any() else ""
    warn(thin, f"{{}} are less than a pixel wide or high{hint}: training leaves them out unless it enlarges the image")
    return unusable.clone()  # a copy, so that the other columns are freed


def find_repeated(positions: Tensor, labels: Tensor, boxes: Tensor) -> list[int]:
    """Returns the indices of objects that have the same image, label and box as an earlier object.

    Args:
        positions: int64 (n,), index of each object's image.
        labels: int64 (n,).
        boxes: float64 (n, 4).
    """
    columns = [column.numpy().view(np.uint64) for column in (positions, labels, *boxes.T.contiguous())]
    hashes = np.zeros(len(positions), np.uint64)  # sorting these takes a hundredth of the time of sorting rows
    for column in columns:
        hashes = (hashes ^ column) * np.uint64(0x9E3779B97F4A7C15)
        hashes ^= hashes >> np.uint64(32)
    ordered = np.sort(hashes)
    alike = np.isin(hashes, ordered[1:][ordered[1:] == ordered[:-1]]).nonzero()[0]
    first: dict[tuple[int, ...], int] = {}
    rows = zip(*(column[alike].tolist() for column in columns), strict=True)
    return [place for place, row in zip(alike.tolist(), rows, strict=True) if first.setdefault(row, place) != place]


def _find_signs(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Classifies boxes: bool (n, 7), one column per property.

    The columns are: no width or height; none within the image; seems to be fractions of the image's sides; reaches more
    than a pixel beyond the image; less than a pixel wide or high; within the image if read as corners; within the image
    if its height and width were swapped.
    """
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    sides = sizes.flip(1)  # (width, height)
    flat = (boxes[:, 2:] <= 0).any(1)
    inside = clamp_corners(boxes, sizes)
    extent = inside[:, 2:] - inside[:, :2]
    unusable = flat | (extent <= 0).any(1)
    fractions = ~flat & ((low >= -1) & (high <= 1) & (sides > 2)).all(1)
    beyond = ~unusable & ((low < -1) | (high > sides + 1)).any(1)
    thin = ~unusable & (extent < 1).any(1)
    as_corners = ((low >= -1) & (boxes[:, 2:] > low) & (boxes[:, 2:] <= sides + 1)).all(1)
    swapped = (high <= sizes + 1).all(1)
    return torch.stack([flat, unusable, fractions, beyond, thin, as_corners, swapped], 1)
