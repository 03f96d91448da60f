"""RoIs as the kernels read them: their numbers by map and image, and tables of what their bins read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...inputs import check_values
from ...sampling import SAMPLING, call_taps, check_index, warn_of_whole_axis
from ...spec import ROTATED, Spec
from .. import reference
from . import SAMPLING_RULES
from . import tap_kernels as kernels
from .bin_kernels import BIN_RULES, Geometry, finish_roi_grads, first_invalid, span_rois
from .tap_kernels import Points, Taps
from .threads import run

BLOCK = 16
"""RoIs of one task."""
_NO_OFFSETS = {np.dtype(dtype): np.empty((0, 2, 0, 0), dtype) for dtype in (np.float32, np.float64)}


@dataclass(frozen=True)
class Rois:
    """The RoIs of one map, their values inspected."""

    values: Any
    """(K, 5), or (K, 6) for rotated ones: those of all maps"""
    offsets: Any
    """(K, 2, PH, PW), empty if there are none"""
    numbers: Any
    """int64: the RoIs of this map, image after image"""
    g: Geometry
    joint: bool
    """whether bins depend on both axes"""
    bounded: bool
    """whether bins read no further than a cell beyond their RoI"""

    def over_blocks(self, kernel: Callable[..., None], before: tuple[Any, ...], after: tuple[Any, ...]) -> None:
        """Call ``kernel(*before, rois, numbers, span, *after)`` with spans of ``numbers`` that cover all."""
        values, numbers, count = self.values, self.numbers, len(self.numbers)
        if count <= BLOCK:
            kernel(*before, values, numbers, (0, count), *after)
            return

        def task(block: int) -> None:
            kernel(*before, values, numbers, (block * BLOCK, min((block + 1) * BLOCK, count)), *after)

        run(-(-count // BLOCK), task)

    def split_by_image(self, images: int) -> list[tuple[int, int]]:
        """The span of ``numbers`` of each image."""
        bounds = np.searchsorted(self.values[self.numbers, 0], np.arange(images + 1)).tolist()
        return list(pairwise(bounds))

    def find_spans(self, images: int) -> Any:
        """(N, H, 2) int32: the first and last + 1 column of each row of each of N images that bins may read."""
        spans = np.empty((images, self.g.height, 2), np.int32)
        if self.bounded:
            span_rois(self.values, self.numbers, self.g, spans)
        else:
            spans[:] = 0, self.g.width
        return spans


def read_rois(
    rois: Tensor, levels: Tensor | None, offsets: Tensor | None, spec: Spec, shapes: Sequence[Sequence[int]]
) -> list[Rois]:
    """The RoIs of each map.

    Args:
        rois, levels, offsets, spec: as :func:`detpool.ops.weighted_sum.weighted_sum`.
        shapes: (N, C, H, W) of each map.

    Raises:
        ValueError: If a value of RoIs, levels or offsets is not valid; says which.
    """
    values = rois.detach().contiguous().numpy()
    shifts = _NO_OFFSETS[values.dtype] if offsets is None else offsets.detach().contiguous().numpy()
    images = shapes[0][0]
    if first_invalid(values, images) >= 0 or (offsets is not None and not np.isfinite(shifts).all()):
        check_values(rois, offsets, images)
    joint = offsets is not None
    bounded = spec.sampling in SAMPLING_RULES and spec.bins != ROTATED and not joint
    order = np.arange(len(values)) if images == 1 else np.argsort(values[:, 0], kind="stable")
    if levels is None:
        return [Rois(values, shifts, order, _describe(spec, 0, *shapes[0][2:]), joint, bounded)]
    level = levels.numpy()
    if len(level) and (level.min() < 0 or level.max() >= len(shapes)):
        raise ValueError(f"levels must be from 0 to {len(shapes) - 1}, got {level.min()} to {level.max()}")
    level = level[order]
    geometries = [_describe(spec, n, *shape[2:]) for n, shape in enumerate(shapes)]
    return [Rois(values, shifts, order[level == n], g, joint, bounded) for n, g in enumerate(geometries)]


@lru_cache(maxsize=1024)
def _describe(spec: Spec, level: int, height: int, width: int) -> Geometry:
    rule = BIN_RULES.index(spec.bins) if spec.bins in BIN_RULES else -1
    sampling = SAMPLING_RULES.index(spec.sampling) if spec.sampling in SAMPLING_RULES else -1
    return Geometry(rule, sampling, spec.ratio, spec.scales[level], height, width, *spec.output_size, *spec.groups)


def make_taps(rois: Rois, spec: Spec, slopes: bool, dtype: Any) -> tuple[Taps, Taps]:
    """The taps (y, x) of RoIs.

    Args:
        rois: of one map.
        spec: the sampling rule; one of a user's own says its taps in PyTorch.
        slopes: whether to make the derivatives of the weights too.
        dtype: NumPy's, of the weights.
    """
    if spec.sampling not in SAMPLING_RULES:
        return _taps_of_rule(rois, spec, dtype)
    g, count = rois.g, len(rois.numbers)
    rows = (count * g.rows * g.columns,) * 2 if rois.joint else (count * g.rows, count * g.columns)
    if g.ratio > 0 and SAMPLING[spec.sampling].bilinear:
        most = min(2 * g.ratio, g.height), min(2 * g.ratio, g.width)
    else:
        most = kernels.most_taps(rois.values, rois.numbers, g)
    y, x = _empty_taps(rows, most, slopes, dtype)
    tabulate = kernels.tabulate_integrals if g.sampling == kernels.INTEGRAL else kernels.tabulate_taps
    rois.over_blocks(tabulate, (), (g, rois.offsets, y, x))
    return y, x


def make_points(rois: Rois, dtype: Any) -> tuple[Points, Points]:
    """The points (y, x) of RoIs, their shares in NumPy's ``dtype``."""
    values, numbers, g = rois.values, rois.numbers, rois.g
    tables = []
    for bins, most in zip((g.rows, g.columns), kernels.most_points(values, numbers, g), strict=True):
        shape = len(numbers) * bins, most
        tables.append(
            Points(
                np.empty(shape, np.int32), np.empty(shape, dtype), np.empty(shape[0], np.int32), np.empty(shape, dtype)
            )
        )
    rois.over_blocks(kernels.tabulate_points, (), (g, *tables))
    return tables[0], tables[1]


def make_windows(rois: Rois, spec: Spec) -> tuple[Any, Any]:
    """The first and last + 1 cell of the bins of RoIs along y and x: (rows, 2) int32, rows as those of taps."""
    numbers, g = rois.numbers, rois.g
    if spec.sampling not in SAMPLING_RULES:
        tables = []
        for bins, length in zip(_bins_of_rule(rois, spec), (g.height, g.width), strict=True):
            windows = SAMPLING[spec.sampling].windows(bins, length, spec.ratio)[:, :, 0]  # type: ignore[misc]
            tables.append(windows.clamp(0, length).to(torch.int32).flatten(0, 1).contiguous().numpy())
        return tables[0], tables[1]
    y, x = (np.empty((len(numbers) * bins, 2), np.int32) for bins in (g.rows, g.columns))
    rois.over_blocks(kernels.tabulate_windows, (), (g, y, x))
    return y, x


def finish_grads(maps: Sequence[Rois], by_start: Any, by_extent: Any, by_shift: Any) -> tuple[Tensor, Tensor]:
    """Gradients of RoIs in pixels and of offsets, from those of start, extent and shifts of bins in cells."""
    out = np.zeros_like(maps[0].values)
    for rois in maps:
        finish_roi_grads(rois.values, rois.numbers, rois.g, by_start, by_extent, by_shift, out)
    return torch.from_numpy(out), torch.from_numpy(by_shift)


def rows_of(values: Tensor, along_x: bool) -> Any:
    """What a sampling rule of a user's own says of an axis, (K, P, J, T), as the rows (rows, T) of a table."""
    values = values.detach().transpose(1, 2) if along_x else values.detach()
    return values.flatten(0, 2).contiguous().numpy()


def _empty_taps(rows: Sequence[int], most: Sequence[int], slopes: bool, dtype: Any) -> list[Taps]:
    """Tables of each axis for ``rows`` bins of ``most`` taps."""
    tables = []
    for n, m in zip(rows, most, strict=True):
        by_start, by_extent = np.empty((n if slopes else 0, m), dtype), np.empty((n if slopes else 0, m), dtype)
        tables.append(
            Taps(np.empty((n, m), np.int32), np.empty((n, m), dtype), np.empty(n, np.int32), by_start, by_extent)
        )
    return tables


def _bins_of_rule(rois: Rois, spec: Spec) -> Any:
    """The bins (y, x) that a sampling rule of a user's own takes."""
    shifts = torch.from_numpy(rois.offsets[rois.numbers]) if rois.joint else None
    some, lengths = torch.from_numpy(rois.values[rois.numbers]), (rois.g.height, rois.g.width)
    return reference.bins_of(spec, some, shifts, rois.g.scale, lengths)


def _taps_of_rule(rois: Rois, spec: Spec, dtype: Any) -> tuple[Taps, Taps]:
    tables = []
    for axis, (bins, length) in enumerate(zip(_bins_of_rule(rois, spec), (rois.g.height, rois.g.width), strict=True)):
        taps = call_taps(SAMPLING[spec.sampling], bins, length, spec.ratio)
        check_index(taps.index, length)
        cells, weights = rows_of(taps.index, axis == 1).astype(np.int32), rows_of(taps.weight, axis == 1)
        tables += _empty_taps([len(cells)], [max(1, cells.shape[1])], False, dtype)
        kernels.merge_taps(cells, weights.astype(dtype), tables[-1])
        if len(cells):
            on_average = float(tables[-1].number.mean())
            warn_of_whole_axis(spec.sampling, len(rois.numbers), on_average, length, ("rows", "columns")[axis])
    return tables[0], tables[1]
