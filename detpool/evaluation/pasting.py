"""Conversion of the mask head's probabilities to masks in COCO's format, without an array for the whole image."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle
from torch import Tensor
from torchvision.models.detection.roi_heads import expand_boxes, expand_masks

from detpool.masks import Size
from detpool.ops.backends.cpu.compiling import exact_kernel


def encode_in_boxes(probabilities: Tensor, boxes: Tensor, input_size: Size, size: Size) -> list[dict[str, Any]]:
    """Paste masks into their image file: foreground is where the interpolated probability is above 0.5.

    For a file that was not resized, the pixels are those of torchvision's `paste_masks_in_image`, which makes a whole
    image for each mask. For other files the same interpolated probabilities are evaluated at the centers of the file's
    pixels: as in torchvision, boxes are rounded to whole pixels of the model's input, not to those of a file that may
    be smaller.

    Args:
        probabilities: float32 (n, M, M) on the CPU, the probabilities within each box, 0 .. 1.
        boxes: float (n, 4) on the CPU, XYXY in pixels of the model's input.
        input_size: (height, width) of the model's input in pixels.
        size: (height, width) of the image file in pixels.

    Returns:
        n compressed run-length encodings, `{"size": [height, width], "counts": bytes}`.
    """
    padded, scale = expand_masks(probabilities, padding=1)
    corners = expand_boxes(boxes, scale).long()
    height, width = size
    encoded = []
    for mask, (x1, y1, x2, y2) in zip(padded.numpy(), corners.tolist(), strict=True):
        rows = _taps(y1, y2, input_size[0], height, len(mask))
        columns = _taps(x1, x2, input_size[1], width, len(mask))
        runs = _runs(mask, *rows, *columns, height, width)
        encoded.append(rle.frPyObjects({"size": [height, width], "counts": runs}, height, width))
    return encoded


def _taps(
    first: int, last: int, input_side: int, side: int, cells: int
) -> tuple[int, NDArray[np.int64], NDArray[np.float32]]:
    """Compute where those pixels of a file that lie within `first` .. `last` of the model's input sample a mask.

    Returns:
        The first of these pixels; and for each of them the first of the two neighboring cells of the mask, and the
        weight of the second. Computed in float32 as PyTorch's `interpolate` does, because rounding decides where the
        edge of a mask lies.
    """
    inside = (np.arange(side) + 0.5) * (input_side / side) - first  # from the edge of the box, in pixels of the input
    begin, end = np.searchsorted(inside, (0, last - first + 1))
    places = inside[begin:end].astype(np.float32) * (np.float32(cells) / np.float32(last - first + 1))
    places = np.maximum(places - np.float32(0.5), np.float32(0))
    cell = np.minimum(places.astype(np.int64), cells - 1)
    return int(begin), cell, places - cell.astype(np.float32)


@exact_kernel
def _runs(
    mask: NDArray[np.float32],
    top: int,
    rows: NDArray[np.int64],
    row_weights: NDArray[np.float32],
    left: int,
    columns: NDArray[np.int64],
    column_weights: NDArray[np.float32],
    height: int,
    width: int,
) -> NDArray[np.int64]:
    """Compute run lengths of background, foreground, background, ..., in column-major order of the image's pixels."""
    one, half, last = np.float32(1), np.float32(0.5), len(mask) - 1
    runs = np.empty(len(columns) * (len(rows) + 1) + 1, np.int64)  # only the entries that are written take memory
    line = np.empty(len(mask), np.float32)
    count = begin = 0
    foreground = False
    for j in range(len(columns)):
        cell, weight = columns[j], column_weights[j]
        for i in range(len(mask)):
            line[i] = (one - weight) * mask[i, cell] + weight * mask[i, min(cell + 1, last)]
        place = (left + j) * height + top
        for i in range(len(rows)):
            cell, weight = rows[i], row_weights[i]
            value = (one - weight) * line[cell] + weight * line[min(cell + 1, last)]
            if (value > half) != foreground:
                runs[count] = place + i - begin
                begin, count, foreground = place + i, count + 1, not foreground
        place += len(rows)
        if foreground and len(rows) < height:  # else the run may continue in the next column
            runs[count] = place - begin
            begin, count, foreground = place, count + 1, False
    if begin < height * width:
        runs[count] = height * width - begin
        count += 1
    return runs[:count].copy()
