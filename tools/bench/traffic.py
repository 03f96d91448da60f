"""The bytes that a pooling call cannot avoid to move."""

from __future__ import annotations

import torch
from torch import Tensor

from detpool.poolers import assign_levels

from .workloads import Workload


def bytes_moved(workload: Workload, dtype: torch.dtype, *, backward: bool, box_gradients: bool) -> int:
    """Each number read or written once; boxes and weights, which are small, left out.

    Forward: the cells under any RoI (position-sensitive: under bin (i, j) of any RoI, in the channels of that bin) are
    read, the output is written. Backward: the gradient of the output is read, that of the features is written, zeros
    included. Gradients of boxes: the cells are read again.

    Returns:
        Bytes.
    """
    touched = sum(_touched(workload, level) for level in range(len(workload.features)))
    rois = sum(len(boxes) for boxes in workload.boxes)
    output = rois * workload.output_channels * workload.output_size[0] * workload.output_size[1]
    numbers = touched + output
    if backward:
        numbers += output + sum(features.numel() for features in workload.features)
    if box_gradients:
        numbers += touched
    return numbers * dtype.itemsize


def _touched(workload: Workload, level: int) -> int:
    """Numbers of a feature map that some bin reads."""
    images, channels, height, width = workload.features[level].shape
    rois = workload.rois
    if workload.is_pyramid:
        number = len(workload.strides)
        finest = torch.tensor(float(workload.strides[0])).log2().item()
        rois = rois[assign_levels(rois[:, 1:], number, finest) == level]
    rows, columns = workload.output_size if workload.position_sensitive else (1, 1)
    x = _edges(rois[:, 1], rois[:, 3], workload.strides[level], columns, width)
    y = _edges(rois[:, 2], rois[:, 4], workload.strides[level], rows, height)
    image = rois[:, 0].long()
    cells = 0
    for i in range(rows):
        for j in range(columns):
            # The corners of each window in a map of differences, whose running sums count the windows over a cell.
            corners = torch.zeros(images, height + 1, width + 1)
            for vertical, sign_y in ((y[0][:, i], 1.0), (y[1][:, i], -1.0)):
                for horizontal, sign_x in ((x[0][:, j], 1.0), (x[1][:, j], -1.0)):
                    value = torch.tensor(sign_y * sign_x).expand(len(rois))
                    corners.index_put_((image, vertical, horizontal), value, accumulate=True)
            cells += int((corners.cumsum(1).cumsum(2)[:, :height, :width] > 0.5).sum())
    return cells * (channels // (rows * columns))


def _edges(start: Tensor, end: Tensor, stride: int, bins: int, length: int) -> tuple[Tensor, Tensor]:
    """First and last + 1 cell of each bin along an axis: two (K, bins) int64."""
    step = ((end - start) / bins)[:, None]
    number = torch.arange(bins)
    first = ((start[:, None] + number * step) / stride).floor().clamp(0, length)
    last = ((start[:, None] + (number + 1) * step) / stride).ceil().clamp(0, length)
    return first.long(), last.long()
