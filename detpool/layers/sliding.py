"""Sliding windows over maps of one to three dimensions: their geometry, and averages of functions of their values.

Padded cells are ignored: they do not count in averages or maxima.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from detpool.ops.inputs import INTEGERS, check_features, each_axis

Size = int | Sequence[int]
Padding = Size | str
"""Cells, "valid" (none), or "same": ``ceil(H / stride)`` windows."""
Sizes = tuple[int, ...]
Settings = tuple[Sizes, Sizes, Sizes | str, Sizes, bool]
"""Kernel, stride, padding (cells, or "same"), dilation, and whether the last window may reach beyond the padding."""


def geometry(
    kernel_size: Size,
    stride: Size | None = None,
    padding: Padding = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    dimensions: int = 2,
) -> Settings:
    """All of them, one number for each dimension: see :class:`SlidingPool`.

    Raises:
        ValueError: a size that is not positive, or a padding of more than half of the kernel, beyond which windows
            would lie in it entirely.
    """
    kernel = each_axis(kernel_size, "kernel_size", dimensions)
    steps = kernel if stride is None else each_axis(stride, "stride", dimensions)
    apart = each_axis(dilation, "dilation", dimensions)
    if padding == "same":
        if ceil_mode:
            raise ValueError("ceil_mode is for a padding in cells: with padding='same' windows reach to the end anyway")
        return kernel, steps, "same", apart, False
    cells: Any = 0 if padding == "valid" else padding
    border: Sizes = tuple(cells) if isinstance(cells, Sequence) else (cells,) * dimensions
    whole = all(isinstance(cells, INTEGERS) and not isinstance(cells, bool) for cells in border)
    if len(border) != dimensions or not whole or not all(0 <= 2 * b <= k for b, k in zip(border, kernel, strict=True)):
        raise ValueError(
            f"padding must be 0 to half of kernel_size {kernel}, in cells, 'same' or 'valid', got {padding!r}"
        )
    return kernel, steps, border, apart, ceil_mode


class Fitted(NamedTuple):
    """Sliding windows on a map of known size; each field has one number for each dimension."""

    kernel: Sizes
    stride: Sizes
    dilation: Sizes
    before: Sizes
    """Number of cells before the map that windows cover."""
    after: Sizes
    """Number of cells after the map that windows cover."""
    windows: Sizes
    """Number of windows."""
    same: bool
    """whether padding is "same", which PyTorch's pools, that pad both sides alike, do not know"""
    ceil_mode: bool
    plain: tuple[Sizes, Sizes, Sizes] | None
    """kernel, stride and padding, if they say all, and dimensions are two"""

    def pad(self, input: Tensor, **how: Any) -> Tensor:
        """The map with the cells around it that windows reach into, zeros or as ``torch.nn.functional.pad`` has it."""
        both = zip(self.before[::-1], self.after[::-1], strict=True)
        return pad(input, [cells for sides in both for cells in sides], **how)


def fitted(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Padding = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
) -> Fitted:
    """The windows of a map (N, C, L), (N, C, H, W) or (N, C, D, H, W), into which at least one fits.

    Raises:
        TypeError, ValueError: the input is no such map, or smaller than a window, or a window would have no cell of it.
    """
    if isinstance(kernel_size, Sequence):
        dimensions = len(kernel_size)
    else:
        dimensions = min(max(input.dim() - 2, 1), 3) if isinstance(input, Tensor) else 2
    check_features(input, dimensions=dimensions)
    kernel, steps, border, apart, ceil_mode = geometry(kernel_size, stride, padding, dilation, ceil_mode, dimensions)
    borders = [None] * dimensions if isinstance(border, str) else border
    axes = zip(input.shape[2:], kernel, steps, apart, borders, strict=True)
    before, after, windows = zip(*(_place(*axis, ceil_mode) for axis in axes), strict=True)
    if min(windows) < 1:
        spread = "" if set(apart) == {1} else f" with dilation {apart}"
        raise ValueError(
            f"kernel_size {kernel}{spread} does not fit into the input's {' x '.join(map(str, input.shape[2:]))} "
            f"cells with padding {border}: no window would be left"
        )
    same = border == "same"
    plain = (kernel, steps, before) if dimensions == 2 and not same and not ceil_mode and set(apart) == {1} else None
    return Fitted(kernel, steps, apart, before, after, windows, same, ceil_mode, plain)


def _place(
    length: int, kernel: int, stride: int, dilation: int, border: int | None, ceil_mode: bool
) -> tuple[int, int, int]:
    """Cells before and after an axis, and windows; border None: as many as "same" needs, more of them after."""
    reach = dilation * (kernel - 1) + 1
    if border is None:
        count = -(-length // stride)
        before = max((count - 1) * stride + reach - length, 0) // 2
    else:
        before = border
        count = (length + 2 * border - reach + (stride - 1) * ceil_mode) // stride + 1
        # As PyTorch has it: none begins behind the map.
        count -= ceil_mode and (count - 1) * stride >= length + border
    for start in range(-before, count * stride - before, stride) if dilation > 1 else ():
        if not any(0 <= start + place * dilation < length for place in range(kernel)):
            raise ValueError(
                f"window {(start + before) // stride} of {count} would be empty: none of the {kernel} cells, "
                f"{dilation} apart, from {start} on lies within the input's {length}"
            )
    return before, max((count - 1) * stride + reach - length - before, 0), count


def _every(offset: int, axis: tuple[int, int, int]) -> slice[int, int, int]:
    """The cells along an axis (dilation, stride, windows) that windows have in one place."""
    dilation, stride, windows = axis
    return slice(offset * dilation, offset * dilation + stride * (windows - 1) + 1, stride)


class Windows:
    """The windows of a map, as one strided view of it for each cell of the kernel, as large as the output.

    ``kernel_size`` cells are visited one after the other. Unlike an average of a transformed map, each window can be
    scaled by its own maximum; unlike unfolding, no copy of all windows is made.
    """

    def __init__(self, input: Tensor, place: Fitted) -> None:
        def views(cells: Tensor) -> list[Tensor]:
            axes = list(zip(place.dilation, place.stride, place.windows, strict=True))
            index: Iterator[tuple[Any, ...]] = (
                (..., *map(_every, offset, axes)) for offset in itertools.product(*map(range, place.kernel))
            )
            return [cells[each] for each in index]

        self.exists: list[Tensor] | None = None
        if any(place.before) or any(place.after):
            self.exists = views(place.pad(input.new_ones(1, 1, *input.shape[2:])))
            # Copies of the border are values of every window that sees them: whatever is computed of one, and
            # multiplied by 0 then, is finite.
            input = place.pad(input, mode="replicate")
        self.values = views(input)
        if self.exists is not None and set(place.dilation) != {1}:
            # A window with gaps need not see the border that was copied: a value of its own instead.
            own = self.values[0].detach()
            for values, there in zip(self.values, self.exists, strict=True):
                own = torch.where(there > 0, values.detach(), own)
            self.values = [torch.where(e > 0, v, own) for v, e in zip(self.values, self.exists, strict=True)]

    def sums(self, function: Callable[[Tensor], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """The sums over each window of what ``function`` makes of its values."""
        totals: tuple[Tensor, ...] = ()
        for position, values in enumerate(self.values):
            terms = function(values)
            if self.exists is not None:
                terms = tuple(term * self.exists[position] for term in terms)
            totals = tuple(total + term for total, term in zip(totals, terms, strict=True)) if totals else terms
        return totals

    def means(self, function: Callable[[Tensor], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """The averages over each window of what ``function`` makes of its values (a :data:`formulas.Means`)."""
        count = len(self.values) if self.exists is None else torch.stack(self.exists).sum(dim=0)
        return tuple(total / count for total in self.sums(function))

    def largest(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """The maximum over each window of ``function`` of its values, without gradient."""
        with torch.no_grad():
            largest = function(self.values[0])
            for values in self.values[1:]:
                largest = torch.maximum(largest, function(values))
        return largest


class SlidingPool(nn.Module):
    """What all layers of sliding windows have in common.

    Args:
        kernel_size: cells of a window, an integer or one for each dimension, (height, width).
        stride: cells between windows, likewise; default: ``kernel_size``, windows side by side.
        padding: cells around the map that windows may reach into, likewise; at most half of ``kernel_size``. "valid":
            none. "same": as many as give ``ceil(H / stride)`` windows, an odd one behind the map (Keras's rule).
        dilation: cells from one of a window to the next, likewise; default: 1, without gaps.
        ceil_mode: a last window that reaches beyond the padding counts too, unless it begins there (PyTorch's rule).

    Raises:
        ValueError: one of them is not such a size; in ``forward``, no window fits into the map, or one has no cell.
    """

    dimensions = 2

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Padding = 0,
        *,
        dilation: Size = 1,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__()
        self.windows = geometry(kernel_size, stride, padding, dilation, ceil_mode, self.dimensions)
        self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode = self.windows

    def extra_repr(self) -> str:
        text = f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding!r}"
        text += f", dilation={self.dilation}" if set(self.dilation) != {1} else ""
        return text + (", ceil_mode=True" if self.ceil_mode else "")
