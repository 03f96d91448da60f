"""Pooling with weights: strided convolution, LeNet's subsampling, and Lee's mixed, gated and tree pooling.

All take maps (N, C, H, W) to (N, C, OH, OW), of as many windows as sliding pools have
(:class:`~detpool.layers.sliding.SlidingPool`), and are the same in training and evaluation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from detpool.ops.inputs import positive

from .reductions import max_pool, mean_pool, sum_pool
from .sliding import Padding, Size, SlidingPool, fitted, geometry


class StridedConv2d(nn.Conv2d):
    """A convolution in place of a pooling layer: ``Y[d] = bias[d] + sum over c and window of W[d, c] f[c]``.

    Add an activation after it if the network has one after its convolutions; padding counts as zeros. Source:
    Springenberg, Dosovitskiy, Brox and Riedmiller, All-CNN, arXiv:1412.6806, 2014, section 2.

    Args:
        channels: C, of input and output.
        kernel_size, stride, padding, dilation, ceil_mode: as for :class:`~detpool.layers.sliding.SlidingPool`.

    Raises:
        ValueError: If a size is not positive or, in ``forward``, no window fits into the map.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Padding = 0,
        *,
        dilation: Size = 1,
        ceil_mode: bool = False,
    ) -> None:
        windows: Any = geometry(kernel_size, stride, padding, dilation, ceil_mode)
        super().__init__(positive(channels, "channels"), channels, windows[0])
        self.windows = windows
        self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode = windows

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, OH, OW)."""
        return convolved(input, self.weight, self.bias, *self.windows)


class LeNetSubsampling(SlidingPool):
    """LeNet's trainable subsampling: ``Y[c] = sigmoid(scale[c] sum f[c] + bias[c])`` over each window.

    Two parameters a channel; the scale begins as 1 / cells of the window (an average), the bias as 0. Source: LeCun,
    Bottou, Bengio and Haffner, Proceedings of the IEEE 1998, section II.B (layers S2 and S4).

    Args:
        channels: C.
        kernel_size, stride, padding, dilation, ceil_mode: as for :class:`~detpool.layers.sliding.SlidingPool`; LeNet's
            kernel is 2.

    Raises:
        ValueError: If a size is not positive or, in ``forward``, no window fits into the map.
    """

    def __init__(
        self, channels: int, kernel_size: Size, stride: Size | None = None, padding: Padding = 0, **further: Any
    ) -> None:
        super().__init__(kernel_size, stride, padding, **further)
        channels = positive(channels, "channels")
        self.scale = nn.Parameter(torch.full((channels,), 1 / (self.kernel_size[0] * self.kernel_size[1])))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, OH, OW)."""
        total = sum_pool(input, *self.windows)
        return torch.sigmoid(self.scale[:, None, None] * total + self.bias[:, None, None])


class LearnedMixedPool2d(SlidingPool):
    """``Y = a max + (1 - a) mean`` over each window, a in 0 .. 1 learned: one for the layer.

    The parameter is the logit of a, initially 0. Padded cells are ignored. Source: Lee, Gallagher and Tu,
    arXiv:1509.08985, 2015, section 3.1.

    Args:
        kernel_size, stride, padding, dilation, ceil_mode: as for :class:`~detpool.layers.sliding.SlidingPool`.

    Raises:
        ValueError: If a size is not positive or, in ``forward``, no window fits into the map.
    """

    def __init__(self, kernel_size: Size, stride: Size | None = None, padding: Padding = 0, **further: Any) -> None:
        super().__init__(kernel_size, stride, padding, **further)
        self.logit = nn.Parameter(torch.zeros(()))

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, OH, OW)."""
        average = mean_pool(input, *self.windows)
        largest = max_pool(input, *self.windows)
        return torch.lerp(average, largest, self.logit.sigmoid().to(input.dtype))


class GatedPool2d(SlidingPool):
    """``Y = a max + (1 - a) mean`` over each window, with ``a = sigmoid(w . f)`` of the values of the window.

    One mask w of ``kernel_size`` for each channel, initially 0 (a = 1/2). Padded cells are ignored in maximum and mean,
    and are 0 for the mask. Source: Lee, Gallagher and Tu, arXiv:1509.08985, 2015, section 3.2.

    Args:
        channels: C.
        kernel_size, stride, padding, dilation, ceil_mode: as for :class:`~detpool.layers.sliding.SlidingPool`.

    Raises:
        ValueError: If a size is not positive or, in ``forward``, no window fits into the map.
    """

    def __init__(
        self, channels: int, kernel_size: Size, stride: Size | None = None, padding: Padding = 0, **further: Any
    ) -> None:
        super().__init__(kernel_size, stride, padding, **further)
        self.gate = nn.Parameter(torch.zeros(positive(channels, "channels"), 1, *self.kernel_size))

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, OH, OW)."""
        average = mean_pool(input, *self.windows)
        largest = max_pool(input, *self.windows)
        share = convolved(input, self.gate, None, *self.windows)
        return torch.lerp(average, largest, share.sigmoid().to(input.dtype))


class TreePool2d(SlidingPool):
    """A binary tree: leaves are learned filters ``v . f``, inner nodes blend their children, ``Y`` is the root.

    ``node = a left + (1 - a) right`` with ``a = sigmoid(w . f)``, v and w of ``kernel_size`` for each channel. Filters
    begin as the average, with noise of a tenth of it so that they part, gates as 1/2. Padding counts as zeros. Source:
    Lee, Gallagher and Tu, arXiv:1509.08985, 2015, section 3.3.

    Args:
        channels: C.
        kernel_size, stride, padding, dilation, ceil_mode: as for :class:`~detpool.layers.sliding.SlidingPool`.
        depth: levels of inner nodes, 1 or more: ``2^depth`` leaves. The paper's "2 level" tree has 1, its "3 level" 2.

    Raises:
        ValueError: If a size is not positive or, in ``forward``, no window fits into the map.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Padding = 0,
        depth: int = 1,
        **further: Any,
    ) -> None:
        super().__init__(kernel_size, stride, padding, **further)
        channels = positive(channels, "channels")
        self.depth = positive(depth, "depth")
        leaves = 2**depth
        average = 1 / (self.kernel_size[0] * self.kernel_size[1])
        # Nodes are concatenated in four dimensions: with five, a model could not be converted to channels_last.
        noise = torch.randn(leaves * channels, 1, *self.kernel_size)
        self.filters = nn.Parameter(average * (1 + 0.1 * noise))
        self.gates = nn.Parameter(torch.zeros((leaves - 1) * channels, 1, *self.kernel_size))

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, OH, OW)."""
        level = [self._responses(input, leaf) for leaf in self.filters.chunk(2**self.depth)]
        gates = iter(self.gates.chunk(2**self.depth - 1))  # lowest level first, each level from left to right
        while len(level) > 1:
            level = [
                torch.lerp(right, left, self._responses(input, next(gates)).sigmoid())
                for left, right in zip(level[::2], level[1::2], strict=True)
            ]
        return level[0]

    def _responses(self, input: Tensor, masks: Tensor) -> Tensor:
        return convolved(input, masks, None, *self.windows)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, depth={self.depth}"


def convolved(input: Tensor, weight: Tensor, bias: Tensor | None, *windows: Any) -> Tensor:
    """The correlation of each window with masks ``weight``, of all channels or of one each; padding counts as zeros."""
    place = fitted(input, *windows)
    groups = input.shape[1] // weight.shape[1]
    if place.same or place.ceil_mode:
        return conv2d(place.pad(input), weight, bias, place.stride, 0, place.dilation, groups)
    return conv2d(input, weight, bias, place.stride, place.before, place.dilation, groups)
