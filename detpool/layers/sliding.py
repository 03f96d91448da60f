"""Sliding windows over a feature map: their geometry, and averages of functions of their values.

Padded cells are not there: they neither count in an average nor win a maximum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from detpool.ops.inputs import check_features, pair

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


def fitted(
    input: Tensor, kernel_size: Size, stride: Size | None = None, padding: Size = 0
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """:func:`geometry`, for a map (N, C, H, W) into which at least one window fits.

    Raises:
        TypeError, ValueError: the input is no such map, or smaller than a window.
    """
    check_features(input)
    kernel, steps, border = geometry(kernel_size, stride, padding)
    if any(k > length + 2 * b for k, length, b in zip(kernel, input.shape[2:], border, strict=True)):
        raise ValueError(
            f"kernel_size {kernel} does not fit into the input's {input.shape[2]} x {input.shape[3]} cells with "
            f"padding {border}: no window would be left"
        )
    return kernel, steps, border


class Windows:
    """The windows of a map, as one strided view of it for each cell of the kernel, (N, C, OH, OW).

    ``kernel_size`` cells are visited one after the other. Unlike an average of a transformed map, each window can be
    scaled by its own maximum; unlike unfolding, no copy of all windows is made.
    """

    def __init__(self, input: Tensor, kernel_size: Size, stride: Size | None = None, padding: Size = 0) -> None:
        kernel, (down, right), (top, left) = fitted(input, kernel_size, stride, padding)
        height = (input.shape[2] + 2 * top - kernel[0]) // down + 1
        width = (input.shape[3] + 2 * left - kernel[1]) // right + 1
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
        """The averages over each window of what ``function`` makes of its values (a :data:`formulas.Means`)."""
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
