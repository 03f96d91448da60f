"""Sliding windows over a feature map: their geometry, and averages of functions of their values.

Padded cells are not there: they neither count in an average nor win a maximum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from detpool.ops.boxes import check_features, pair

Size = int | Sequence[int]


def geometry(
    kernel_size: Size, stride: Size | None = None, padding: Size = 0
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Kernel, stride and padding as pairs (height, width).

    Raises:
        ValueError: a size that is not positive, or a padding of more than half of the kernel, beyond which windows
            would lie in it entirely.
    """
    kernel = pair(kernel_size, "kernel_size")
    steps = kernel if stride is None else pair(stride, "stride")
    border = (0, 0) if padding == 0 else tuple(padding) if isinstance(padding, Sequence) else (padding, padding)
    whole = all(isinstance(cells, int) and not isinstance(cells, bool) for cells in border)
    if len(border) != 2 or not whole or not all(0 <= 2 * b <= k for b, k in zip(border, kernel, strict=True)):
        raise ValueError(f"padding must be 0 to half of kernel_size {kernel}, in cells, got {padding!r}")
    return kernel, steps, (border[0], border[1])


def check_windows(input: Tensor, kernel_size: Size, stride: Size | None = None, padding: Size = 0) -> tuple[int, int]:
    """Check a map (N, C, H, W) and the windows over it; returns the output's (height, width).

    Raises:
        TypeError, ValueError: the input is no such map, or smaller than a window.
    """
    check_features(input)
    kernel, steps, border = geometry(kernel_size, stride, padding)
    height, width = (
        (length + 2 * b - k) // s + 1 for length, k, s, b in zip(input.shape[2:], kernel, steps, border, strict=True)
    )
    if height < 1 or width < 1:
        raise ValueError(
            f"kernel_size {kernel} with padding {border} does not fit into the input's {input.shape[2]} x "
            f"{input.shape[3]} cells: the output would be {max(height, 0)} x {max(width, 0)}"
        )
    return height, width


class Windows:
    """The windows of a map, as one strided view of it for each cell of the kernel, (N, C, OH, OW).

    ``kernel_size`` cells are visited one after the other. Unlike an average of a transformed map, each window can be
    scaled by its own maximum; unlike unfolding, no copy of all windows is made.
    """

    def __init__(self, input: Tensor, kernel_size: Size, stride: Size | None = None, padding: Size = 0) -> None:
        height, width = check_windows(input, kernel_size, stride, padding)
        kernel, (down, right), (top, left) = geometry(kernel_size, stride, padding)
        exists = None
        if top or left:
            exists = pad(input.new_ones(1, 1, *input.shape[2:]), (left, left, top, top))
            # Copies of the border are values of every window that sees them: whatever is computed of one, and
            # multiplied by 0 then, is finite.
            input = pad(input, (left, left, top, top), mode="replicate")

        def views(cells: Tensor) -> list[Tensor]:
            return [
                cells[:, :, i : i + down * (height - 1) + 1 : down, j : j + right * (width - 1) + 1 : right]
                for i in range(kernel[0])
                for j in range(kernel[1])
            ]

        self.values = views(input)
        self.exists = None if exists is None else views(exists)

    def means(self, function: Callable[[Tensor], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """The averages over each window of what ``function`` makes of its values: :data:`detpool.ops.formulas.Means`."""
        totals: tuple[Tensor, ...] = ()
        for position, values in enumerate(self.values):
            terms = function(values)
            if self.exists is not None:
                terms = tuple(term * self.exists[position] for term in terms)
            totals = tuple(total + term for total, term in zip(totals, terms, strict=True)) if totals else terms
        count = len(self.values) if self.exists is None else torch.stack(self.exists).sum(dim=0)
        return tuple(total / count for total in totals)

    def largest(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """The maximum over each window of ``function`` of its values, without gradient."""
        with torch.no_grad():
            largest = function(self.values[0])
            for values in self.values[1:]:
                largest = torch.maximum(largest, function(values))
        return largest


class SlidingPool2d(nn.Module):
    """What all layers of sliding windows have in common.

    Args:
        kernel_size: cells of a window, an integer or (height, width).
        stride: cells between windows, likewise; default: ``kernel_size``, windows side by side.
        padding: cells around the map that windows may reach into, likewise; at most half of ``kernel_size``.

    Raises:
        ValueError: one of them is not such a size; in ``forward``, no window fits into the map.
    """

    def __init__(self, kernel_size: Size, stride: Size | None = None, padding: Size = 0) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.padding = geometry(kernel_size, stride, padding)

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"
