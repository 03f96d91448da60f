"""Fractional max pooling (Graham, arXiv:1412.6071, 2014): windows with a fractional average step.

``FractionalMaxPool2d`` is PyTorch's version, with windows of equal size. ``FractionalRegionPool2d`` is the paper's,
with regions that tile the map or overlap by one cell. Both have an attribute ``factor``, the number of input cells per
output cell along each axis, from which networks compute the strides of their maps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import fractional_max_pool2d

from detpool.ops.inputs import check_features, pair, positive
from detpool.ops.layout import is_channels_last, memory_format

from .sliding import Size


class FractionalMaxPool2d(nn.Module):
    """PyTorch's fractional max pooling, made deterministic in evaluation.

    Of P windows of k rows, window i begins at ``floor((i + u) a) - floor(u a)`` with ``a = (H - k) / (P - 1)``, the
    last at H - k, and columns likewise: pseudorandom steps near a. In training u is drawn for each image, channel and
    axis; in evaluation it is 1/2. ``torch.manual_seed`` repeats the draws. Source: Graham, arXiv:1412.6071, 2014.

    Args:
        kernel_size: cells of a window, an integer or (height, width).
        output_size: number of windows, an integer or (height, width).
        output_ratio: in place of ``output_size``, windows per cell along each axis, between 0 and 1, a number or
            (height, width).

    Raises:
        ValueError: If both or neither of the last two are given, or values are out of range; in ``forward``, if the map
            is too small.
    """

    def __init__(
        self,
        kernel_size: Size,
        output_size: Size | None = None,
        output_ratio: float | Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.kernel_size = pair(kernel_size, "kernel_size")
        if (output_size is None) == (output_ratio is None):
            raise ValueError(
                f"give one of output_size and output_ratio, got output_size={output_size!r} and "
                f"output_ratio={output_ratio!r}"
            )
        self.output_size = None if output_size is None else pair(output_size, "output_size")
        self.output_ratio: tuple[float, float] | None = None
        if output_ratio is not None:
            ratios = tuple(output_ratio) if isinstance(output_ratio, Sequence) else (output_ratio, output_ratio)
            if len(ratios) != 2 or not all(0 < ratio < 1 for ratio in ratios):
                raise ValueError(f"output_ratio must lie between 0 and 1, got {output_ratio!r}")
            self.output_ratio = (ratios[0], ratios[1])

    @property
    def factor(self) -> float:
        """Input cells per output cell; 2 if ``output_ratio`` is not the same number for both axes."""
        height, width = self.output_ratio or (0.5, 0.5)
        return 1 / height if height == width else 2.0

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, OH, OW)."""
        check_features(input)
        size = self.output_size
        if size is None:
            assert self.output_ratio is not None
            height, width = (int(n * ratio) for n, ratio in zip(input.shape[2:], self.output_ratio, strict=True))
            size = (height, width)
        for length, kernel, windows in zip(input.shape[2:], self.kernel_size, size, strict=True):
            if not 1 <= windows <= length - kernel + 1:
                raise ValueError(
                    f"{windows} windows of {kernel} cells do not fit into {length}: kernel_size {self.kernel_size}, "
                    f"output {size[0]} x {size[1]}, input {input.shape[2]} x {input.shape[3]}"
                )
        samples = input.new_full((*input.shape[:2], 2), 0.5) if not self.training else None
        pooled = fractional_max_pool2d(input, self.kernel_size, size, _random_samples=samples)
        return pooled.contiguous(memory_format=memory_format(is_channels_last(input)))

    def extra_repr(self) -> str:
        size = f"output_size={self.output_size}" if self.output_size else f"output_ratio={self.output_ratio}"
        return f"kernel_size={self.kernel_size}, {size}"


class FractionalRegionPool2d(nn.Module):
    """Graham's fractional max pooling: maxima over regions of one or two cells a side, or of two or three that overlap.

    H rows become ``P = floor(H / factor + 1/2)`` regions. They are bounded by integers ``a_0 = 0 < a_1 < ... < a_P``
    with steps of 1 or 2. Disjoint region i is rows ``a_i .. a_(i+1) - 1``, and a_P = H; overlapping region i is rows
    ``a_i .. a_(i+1)``, both included, and a_P = H - 1: no row is left out (of the paper's disjoint regions, which end
    at H - 1 too, the last one is). Columns likewise. With T = a_P the steps are

    - "random": as many twos as are needed, ``T - P``, at random places;
    - "pseudorandom": ``a_i = floor(i T / P + u)``, steps as even as can be, u uniform in 0 .. 1.

    They are drawn for each image and axis, in training; in evaluation they are pseudorandom with u = 1/2 unless
    ``test_passes`` says otherwise. ``torch.manual_seed`` repeats the draws. Source: Graham, arXiv:1412.6071, 2014,
    section 2, where random regions do better than pseudorandom ones without augmentation, and overlapping better than
    disjoint.

    Args:
        factor: H / P, more than 1 and at most 2; the paper uses the square root of 2.
        overlapping: whether regions overlap.
        sequence: "random" or "pseudorandom".
        test_passes: if at least 2, regions are random in evaluation too, and a body with this layer averages its maps
            over so many passes. The layer itself makes one pass.

    Raises:
        ValueError: If the factor, the sequence or the number of passes is invalid.
    """

    def __init__(
        self,
        factor: float = math.sqrt(2),
        overlapping: bool = True,
        sequence: str = "random",
        test_passes: int = 1,
    ) -> None:
        super().__init__()
        if not 1 < factor <= 2:
            raise ValueError(f"factor must be more than 1 and at most 2, got {factor!r}")
        if sequence not in ("random", "pseudorandom"):
            raise ValueError(f"sequence must be 'random' or 'pseudorandom', got {sequence!r}")
        self.factor, self.overlapping, self.sequence = factor, overlapping, sequence
        self.test_passes = positive(test_passes, "test_passes")

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, P, Q)."""
        check_features(input)
        pooled = input
        for axis in (2, 3):
            first, last = self._regions(input, input.shape[axis])
            shape = [len(input), 1, 1, 1]
            shape[axis] = first.shape[1]
            size = [*pooled.shape[:axis], first.shape[1], *pooled.shape[axis + 1 :]]
            # Beyond a region, repeat its last cell, which does not change the maximum.
            cells = [torch.minimum(first + t, last) for t in range(3 if self.overlapping else 2)]
            values = [pooled.gather(axis, cell.view(shape).expand(size)) for cell in cells]
            pooled = torch.stack(values).amax(0)
        return pooled.contiguous(memory_format=memory_format(is_channels_last(input)))

    def _regions(self, input: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """The first and the last cell (N, P) of each region along an axis."""
        images, device = len(input), input.device
        total = length - self.overlapping
        count = max(1, min(max(math.floor(length / self.factor + 0.5), -(-total // 2)), total))
        draws = self.training or self.test_passes > 1
        if draws and self.sequence == "random":
            twos = torch.rand(images, count, device=device).argsort(dim=1) < total - count
            bounds = nn.functional.pad((1 + twos.long()).cumsum(1), (1, 0))
        else:
            # u in steps of 1 / P, between which the sequence stays the same.
            start = torch.randint(count, (images, 1), device=device) if draws else count // 2
            bounds = (torch.arange(count + 1, device=device) * total + start) // count
        bounds = bounds.clamp(max=total).expand(images, -1)  # clamped: a map of one cell is its one region
        return bounds[:, :-1], bounds[:, 1:] - (0 if self.overlapping else 1)

    def extra_repr(self) -> str:
        return (
            f"factor={self.factor:g}, overlapping={self.overlapping}, sequence={self.sequence!r}, "
            f"test_passes={self.test_passes}"
        )
