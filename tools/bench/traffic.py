"""The minimum number of bytes that a pooling call has to move."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from detpool.poolers import assign_levels

from .workloads import Workload


def bytes_moved(workload: Workload, dtype: torch.dtype, *, backward: bool, box_gradients: bool) -> int:
    """Bytes moved if each number is read or written once, without boxes and weights, which are small.

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
    """Number of values of a feature map that are read by some bin."""
    images, channels, height, width = workload.features[level].shape
    rois = workload.rois
    if workload.is_pyramid:
        number = len(workload.strides)
        finest = torch.tensor(float(workload.strides[0])).log2().item()
        rois = rois[assign_levels(rois[:, 1:], number, finest) == level]
    rows, columns = workload.output_size if workload.position_sensitive else (1, 1)
    left, right = _edges(rois[:, 1], rois[:, 3], workload.strides[level], columns, width)
    top, bottom = _edges(rois[:, 2], rois[:, 4], workload.strides[level], rows, height)
    touched = np.zeros((rows, columns, images, height, width), bool)
    for roi, image in enumerate(rois[:, 0].int().tolist()):
        for i, j in np.ndindex(rows, columns):
            touched[i, j, image, top[roi, i] : bottom[roi, i], left[roi, j] : right[roi, j]] = True
    return int(touched.sum()) * (channels // (rows * columns))


def _edges(start: Tensor, end: Tensor, stride: int, bins: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """First cell, and last cell + 1, of each bin along an axis: two arrays (K, bins)."""
    edges = (start[:, None] + torch.arange(bins + 1) * ((end - start) / bins)[:, None]) / stride
    first, last = edges[:, :-1].floor().clamp(0, length), edges[:, 1:].ceil().clamp(0, length)
    return first.int().numpy(), last.int().numpy()
