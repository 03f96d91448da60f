"""Anti-aliased downsampling: a low-pass filter before cells are dropped."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, max_pool2d, pad

from detpool.ops.inputs import check_features, pair

from .sliding import Size, SlidingPool2d, fitted


def blur_pool2d(input: Tensor, filter_size: int = 3, stride: Size = 2) -> Tensor:
    """Binomial filter and subsampling: see :class:`BlurPool2d`."""
    check_features(input)
    filter_size = _checked_size(filter_size)
    before, after = (filter_size - 1) // 2, filter_size // 2
    row = torch.tensor(_binomial(filter_size), dtype=input.dtype, device=input.device)
    kernel = (row[:, None] * row).expand(input.shape[1], 1, filter_size, filter_size)
    padded = pad(input, (before, after, before, after), mode="replicate")
    return conv2d(padded, kernel, None, pair(stride, "stride"), groups=input.shape[1])


class BlurPool2d(nn.Module):
    """``Y = (f * b)`` at every ``stride``-th cell, b the binomial filter of ``filter_size`` cells along each axis.

    Size 3 is (1, 2, 1) / 4, size 5 (1, 4, 6, 4, 1) / 16; size 1 merely subsamples. Beyond its
    border the map continues as its last cell does (the paper's code mirrors it, which needs a second cell).
    No parameters; training and evaluation are the same.

    Source: Zhang, Making Convolutional Networks Shift-Invariant Again, arXiv:1904.11486, 2019, section 3.2.

    Args:
        filter_size: cells of the filter, 1 or more.
        stride: cells between outputs, an integer or (height, width).

    Raises:
        ValueError: one of them is no such size.
    """

    def __init__(self, filter_size: int = 3, stride: Size = 2) -> None:
        super().__init__()
        self.filter_size = _checked_size(filter_size)
        self.stride = pair(stride, "stride")

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, ceil(H / stride), ceil(W / stride))."""
        return blur_pool2d(input, self.filter_size, self.stride)

    def extra_repr(self) -> str:
        return f"filter_size={self.filter_size}, stride={self.stride}"


class MaxBlurPool2d(SlidingPool2d):
    """Max pooling without aliasing: the maximum of every window, at stride 1, then :class:`BlurPool2d`.

    ``Y = BlurPool(max over window)``, of ``OH = ceil((H + 2 padding - kernel + 1) / stride)`` rows.
    No parameters; training and evaluation are the same.

    Source: Zhang, arXiv:1904.11486, 2019, section 3.2.

    Args:
        kernel_size: cells of a window, an integer or (height, width).
        stride: cells between outputs; default: ``kernel_size``.
        padding: cells around the map that windows may reach into; they are never the maximum.
        filter_size: cells of the binomial filter.

    Raises:
        ValueError: a size that is none; in ``forward``, no window fits into the map.
    """

    def __init__(self, kernel_size: Size, stride: Size | None = None, padding: Size = 0, filter_size: int = 3) -> None:
        super().__init__(kernel_size, stride, padding)
        self.blur = BlurPool2d(filter_size, self.stride)

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, OH, OW)."""
        return self.blur(max_pool2d(input, *fitted(input, self.kernel_size, 1, self.padding)))


def _checked_size(filter_size: int) -> int:
    if isinstance(filter_size, bool) or not isinstance(filter_size, int) or filter_size < 1:
        raise ValueError(f"filter_size must be a positive integer, got {filter_size!r}")
    return filter_size


def _binomial(size: int) -> list[float]:
    return [math.comb(size - 1, i) / 2 ** (size - 1) for i in range(size)]
