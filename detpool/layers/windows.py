"""Windows other than a sliding kernel: tiles, the whole map, a pyramid of grids.

PyTorch's own layers are in :mod:`detpool.layers` too, as they are: sliding windows ``MaxPool2d`` and ``AvgPool2d``
(overlapping where the stride is less than the kernel), and adaptive ones ``AdaptiveMaxPool2d`` and
``AdaptiveAvgPool2d``, where bin i of P takes rows ``floor(i H / P) .. ceil((i + 1) H / P)``, never none.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import (
    adaptive_avg_pool2d,
    adaptive_max_pool2d,
    avg_pool2d,
    max_pool2d,
)

from detpool.ops import formulas
from detpool.ops.inputs import check_features, pair
from detpool.ops.layout import is_channels_last
from detpool.ops.spp import grids_of

from . import fused
from .reductions import checked_power, lp_pool, power_for
from .sliding import Size


def tiled_pool2d(input: Tensor, tile_size: Size, reduction: str = "mean") -> Tensor:
    """One value for each tile: see :class:`TiledPool2d`."""
    tile = pair(tile_size, "tile_size")
    check_features(input)
    # A tile beyond the map is the map; PyTorch would refuse it.
    tile = (min(tile[0], input.shape[2]), min(tile[1], input.shape[3]))
    if _of(("mean", "max"), reduction) == "max":
        return max_pool2d(input, tile, ceil_mode=True)
    return avg_pool2d(input, tile, ceil_mode=True, count_include_pad=False)


class TiledPool2d(nn.Module):
    """Tiles of h x w cells side by side, those at the far border smaller: ``ceil(H / h) x ceil(W / w)`` of them.

    ``Y[i, j]`` is the mean (or maximum) over rows ``i h .. min((i + 1) h, H)`` and columns ``j w .. min((j + 1) w,
    W)``, ends excluded: the rule that textbooks print. Training and evaluation are the same.

    Args:
        tile_size: h x w in cells, an integer or (height, width).
        reduction: "mean" or "max".

    Raises:
        ValueError: If the tile size or the reduction is invalid.
    """

    def __init__(self, tile_size: Size, reduction: str = "mean") -> None:
        super().__init__()
        self.tile_size = pair(tile_size, "tile_size")
        self.reduction = _of(("mean", "max"), reduction)

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, ceil(H / h), ceil(W / w))."""
        return tiled_pool2d(input, self.tile_size, self.reduction)

    def extra_repr(self) -> str:
        return f"tile_size={self.tile_size}, reduction={self.reduction!r}"


class AdaptiveTiledPool2d(nn.Module):
    """A fixed number P x Q of tiles, of ``h = ceil(H / P)`` by ``w = ceil(W / Q)`` cells, as in :class:`TiledPool2d`.

    Unlike PyTorch's adaptive layers, tiles do not overlap; but there are maps that P tiles of h rows do not need: 4
    tiles of 2 rows leave none for the last when H = 5. That is an error. Training and evaluation are the same.

    Args:
        output_size: P x Q, an integer or (height, width).
        reduction: "mean" or "max".

    Raises:
        ValueError: If the output size or the reduction is invalid or, in ``forward``, a tile has no cells.
    """

    def __init__(self, output_size: Size, reduction: str = "mean") -> None:
        super().__init__()
        self.output_size = pair(output_size, "output_size")
        self.reduction = _of(("mean", "max"), reduction)

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, P, Q)."""
        check_features(input)
        tile = []
        for name, length, bins in zip(("rows", "columns"), input.shape[2:], self.output_size, strict=True):
            tile.append(-(-length // bins))
            needed = -(-length // tile[-1])
            if needed < bins:
                raise ValueError(
                    f"window {needed} of {bins} would be empty: the input's {length} {name} are used up by {needed} "
                    f"tiles of {tile[-1]}; output_size must divide them more evenly"
                )
        return tiled_pool2d(input, tile, self.reduction)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}, reduction={self.reduction!r}"


class GlobalPool2d(nn.Module):
    """The whole map of a channel is one window: ``Y = mean``, ``max`` or ``sum`` of ``f`` over all rows and columns.

    Training and evaluation are the same. Source: Lin, Chen and Yan, Network in Network, arXiv:1312.4400, 2013,
    section 3.2 (mean); Oquab et al., CVPR 2015 (max); Babenko and Lempitsky, arXiv:1510.07493, 2015 (sum, SPoC).

    Args:
        reduction: "mean", "max" or "sum".

    Raises:
        ValueError: If the reduction is unknown.
    """

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = _of(tuple(_GLOBAL), reduction)

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, 1, 1)."""
        check_features(input)
        return _GLOBAL[self.reduction](input)

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}"


class GlobalLpPool2d(nn.Module):
    """Generalized mean pooling (GeM): ``Y = mean(|f|^p)^(1/p)`` over the whole map.

    Computed in float32 (float64 for float64), relative to the largest magnitude of the map. Training and evaluation are
    the same. Source: Radenović, Tolias and Chum, arXiv:1711.02512, 2017 (whose features are not negative).

    Args:
        p: the power, at least 1 and finite.
        learnable: whether p is a parameter (``2 - p`` is used if training moves it below 1).

    Raises:
        ValueError: If p is invalid.
    """

    def __init__(self, p: float = 3.0, learnable: bool = False) -> None:
        super().__init__()
        self.p = checked_power(p, learnable)

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, 1, 1)."""
        check_features(input)
        features = formulas.widened(input)
        p = power_for(self.p, input)
        pooled = _global_lp(features, p) if fused.serves(features, p) and len(input) else _lp_formula(features, p)
        return pooled.to(input.dtype)

    def extra_repr(self) -> str:
        return "" if isinstance(self.p, nn.Parameter) else f"p={self.p:g}"


class SpatialPyramidPool2d(nn.Module):
    """Pools maps of any size to vectors of a fixed size: the concatenated values of several grids of adaptive bins.

    256 channels and grids of 1, 2 and 4 give 256 (1 + 4 + 16) = 5,376 values. Grid after grid, each (C, P, P) in
    row-major order. Bin i of P takes rows ``floor(i H / P) .. ceil((i + 1) H / P)``: none is empty. Training and
    evaluation are the same. Source: He et al., SPP-Net, arXiv:1406.4729, 2014, section 2.2.

    Args:
        levels: the grids, each an integer or (height, width).
        reduction: "max" or "mean".

    Raises:
        ValueError: If there are no levels, or the reduction is unknown.
    """

    def __init__(self, levels: Sequence[Size] = (1, 2, 4), reduction: str = "max") -> None:
        super().__init__()
        self.levels = grids_of(levels)
        self.reduction = _of(("mean", "max"), reduction)

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C x bins of all grids)."""
        check_features(input)
        pool = adaptive_max_pool2d if self.reduction == "max" else adaptive_avg_pool2d
        return torch.cat([pool(input, level).flatten(1) for level in self.levels], dim=1)

    def extra_repr(self) -> str:
        return f"levels={self.levels}, reduction={self.reduction!r}"


def _global_lp(features: Tensor, p: float | Tensor) -> Tensor:
    """The layer by compiled kernels, which want neighboring numbers to be of different windows."""
    images, channels, rows, columns = features.shape
    if is_channels_last(features):
        return lp_pool(features, p, (rows, columns))
    # The mean of the means of columns: the maps one below the other are a map whose channels are their columns.
    means = lp_pool(features.flatten(0, 2).t()[None, ..., None], p, (rows, 1))
    return lp_pool(means.transpose(1, 2), p, (columns, 1)).view(images, channels, 1, 1)


def _lp_formula(features: Tensor, p: float | Tensor) -> Tensor:
    def means(function: Callable[[Tensor], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        return tuple(values.mean((2, 3), keepdim=True) for values in function(features))

    scale = formulas.scale_of(features.detach().abs().amax((2, 3), keepdim=True))
    return formulas.lp(means, p, scale, scale)


_GLOBAL: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": functools.partial(adaptive_avg_pool2d, output_size=1),
    "max": functools.partial(adaptive_max_pool2d, output_size=1),
    "sum": functools.partial(torch.sum, dim=(2, 3), keepdim=True),
}


def _of(choices: Sequence[str], reduction: str) -> str:
    if reduction not in choices:
        raise ValueError(f"reduction must be one of {', '.join(map(repr, choices))}, got {reduction!r}")
    return reduction
