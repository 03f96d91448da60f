"""Anti-aliased downsampling: a low-pass filter before cells are dropped."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

from detpool.ops.inputs import check_features, pair, positive

from .reductions import max_pool
from .sliding import Padding, Size, SlidingPool


class BlurPool2d(nn.Module):
    """``Y = (f * b)`` at every ``stride``-th cell, b the binomial filter of ``filter_size`` cells along each axis.

    Size 3 is (1, 2, 1) / 4, size 5 is (1, 4, 6, 4, 1) / 16; size 1 only subsamples. Border cells are replicated beyond
    the map (the paper's code uses reflection, which requires at least two cells). No parameters; training and
    evaluation are the same.

    Source: Zhang, Making Convolutional Networks Shift-Invariant Again, arXiv:1904.11486, 2019, section 3.2.

    Args:
        filter_size: number of cells of the filter, at least 1.
        stride: cells between outputs, an integer or (height, width).

    Raises:
        ValueError: If ``filter_size`` or ``stride`` is not positive.
    """

    def __init__(self, filter_size: int = 3, stride: Size = 2) -> None:
        super().__init__()
        self.filter_size = positive(filter_size, "filter_size")
        self.stride = pair(stride, "stride")

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, ceil(H / stride), ceil(W / stride))."""
        check_features(input)
        size, channels = self.filter_size, input.shape[1]
        row = input.new_tensor([math.comb(size - 1, i) / 2 ** (size - 1) for i in range(size)])
        kernel = (row[:, None] * row).expand(channels, 1, size, size)
        before, after = (size - 1) // 2, size // 2
        padded = pad(input, (before, after, before, after), mode="replicate")
        return conv2d(padded, kernel, None, self.stride, groups=channels)

    def extra_repr(self) -> str:
        return f"filter_size={self.filter_size}, stride={self.stride}"


class MaxBlurPool2d(SlidingPool):
    """Max pooling without aliasing: the maximum of every window, at stride 1, then :class:`BlurPool2d`.

    ``Y = BlurPool(max over window)``, of ``OH = ceil((H + 2 padding - kernel + 1) / stride)`` rows.
    No parameters; training and evaluation are the same.

    Source: Zhang, arXiv:1904.11486, 2019, section 3.2.

    Args:
        kernel_size, stride, padding, dilation: the windows, as for :class:`~detpool.layers.sliding.SlidingPool`.
        filter_size: cells of the binomial filter.

    Raises:
        ValueError: If a size is not positive or, in ``forward``, no window fits into the map.
    """

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Padding = 0,
        filter_size: int = 3,
        *,
        dilation: Size = 1,
    ) -> None:
        super().__init__(kernel_size, stride, padding, dilation=dilation)
        self.blur = BlurPool2d(filter_size, self.stride)

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, OH, OW)."""
        return self.blur(max_pool(input, self.kernel_size, 1, self.padding, self.dilation))
