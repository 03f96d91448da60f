"""What the kernels read of RoIs: their numbers by level, and the taps, windows or points of their bins."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...bins import LARGEST
from ...inputs import check_values
from ...sampling import SAMPLING, call_taps, check_index
from ...spec import Spec
from .. import reference
from . import SAMPLING_RULES
from . import tap_kernels as kernels
from .threads import run

BLOCK = 128
"""RoIs of one task."""
_SAMPLING = {name: number for number, name in enumerate(SAMPLING_RULES)}
_BINS = {name: number for number, name in enumerate(kernels.BIN_RULES)}
_NOTHING = {dtype: (np.empty((0, 0), dtype), np.empty((0, 2, 0, 0), dtype)) for dtype in (np.float32, np.float64)}


@dataclass(frozen=True)
class Rois:
    """RoIs whose values have been inspected."""

    values: Any
    """(K, 5), or (K, 6) for rotated ones"""
    images: Any
    """(K,) int64"""
    numbers: list[Any]
    """for each level the RoIs that it has, int64"""


@dataclass(frozen=True)
class Taps:
    """The taps of both axes, as ``tap_kernels`` has them."""

    y: tuple[Any, Any, Any]
    """index, weight, count"""
    x: tuple[Any, Any, Any]
    slopes_y: tuple[Any, ...]
    """derivatives of the weights with respect to start and extent of the box; empty unless asked for"""
    slopes_x: tuple[Any, ...]
    joint: bool


def read_rois(rois: Tensor, levels: Tensor | None, offsets: Tensor | None, images: int, maps: int) -> Rois:
    """RoIs for the kernels.

    Raises:
        ValueError: If a value of RoIs, levels or offsets is not valid; says which.
    """
    values = rois.detach().contiguous().numpy()
    if kernels.first_invalid(values, images) >= 0 or (offsets is not None and not np.isfinite(offsets.numpy()).all()):
        check_values(rois, offsets, images)
    if levels is None:
        numbers = [np.arange(len(values))]
    else:
        level = levels.numpy()
        if len(level) and (level.min() < 0 or level.max() >= maps):
            raise ValueError(f"levels must be from 0 to {maps - 1}, got {level.min()} to {level.max()}")
        numbers = [np.flatnonzero(level == n) for n in range(maps)]
    return Rois(values, values[:, 0].astype(np.int64), numbers)


def make_taps(
    rois: Rois, offsets: Tensor | None, spec: Spec, sizes: Sequence[Sequence[int]], slopes: bool, dtype: torch.dtype
) -> Taps:
    """The taps of all RoIs.

    Args:
        rois: from :func:`read_rois`.
        offsets: (K, 2, PH, PW) or None.
        spec: bin and sampling rule.
        sizes: (rows, columns) of each map.
        slopes: whether to make the derivatives too.
        dtype: of the weights.
    """
    if spec.sampling not in _SAMPLING:
        return _taps_of_rule(rois, offsets, spec, sizes, dtype)
    kind = np.float64 if dtype == torch.float64 else np.float32
    values = rois.values.astype(np.float64) if SAMPLING[spec.sampling].dtype == torch.float64 else rois.values
    nothing = _NOTHING[kind]
    shifts = nothing[1] if offsets is None else offsets.detach().contiguous().numpy()
    rule, sampling = _BINS[spec.bins], _SAMPLING[spec.sampling]
    limit = LARGEST[torch.float64 if values.dtype == np.float64 else torch.float32]
    tables = []
    for axis in (0, 1):
        bins = spec.output_size[axis]
        widths = []
        for numbers, size, scale in zip(rois.numbers, sizes, spec.scales, strict=True):
            most = 2 * spec.ratio
            if spec.ratio <= 0 or sampling in (kernels.CELLS, kernels.INTEGRAL):
                most = kernels.most_cells(values, numbers, axis, rule, scale, limit, bins) + 3
            widths.append(min(most, size[axis]))
        rows = len(values) * (bins if offsets is None else spec.output_size[0] * spec.output_size[1])
        shape = (rows, max(widths))
        index, weight, count = np.empty(shape, np.int32), np.empty(shape, kind), np.empty(rows, np.int32)
        by_start, by_extent = (np.empty(shape, kind), np.empty(shape, kind)) if slopes else (nothing[0], nothing[0])
        tables.append(((index, weight, count), (by_start, by_extent)))

    def fill(axis: int, level: int, numbers: Any) -> None:
        taps, derivatives = tables[axis]
        kernels.make_taps(
            values,
            numbers,
            axis,
            rule,
            sampling,
            spec.ratio,
            spec.scales[level],
            limit,
            sizes[level][axis],
            spec.output_size[axis],
            shifts,
            *taps,
            *derivatives,
        )

    _each_block(rois, fill)
    return Taps(tables[0][0], tables[1][0], tables[0][1], tables[1][1], offsets is not None)


def make_windows(rois: Rois, spec: Spec, sizes: Sequence[Sequence[int]]) -> tuple[Any, Any]:
    """(K, PH, 2) and (K, PW, 2) int32: the first and last + 1 cell of each bin along y and x."""
    tables = tuple(np.empty((len(rois.values), bins, 2), np.int32) for bins in spec.output_size)
    rule = SAMPLING[spec.sampling]
    if spec.sampling not in _SAMPLING:
        assert rule.windows is not None
        for numbers, size, scale in zip(rois.numbers, sizes, spec.scales, strict=True):
            bins = reference.bins_of(spec, torch.from_numpy(rois.values[numbers]), None, scale, (size[0], size[1]))
            for axis in (0, 1):
                windows = rule.windows(bins[axis], size[axis], spec.ratio)[:, :, 0].clamp(0, size[axis])
                tables[axis][numbers] = windows.to(torch.int32).numpy()
        return tables[0], tables[1]
    limit = LARGEST[torch.float64 if rois.values.dtype == np.float64 else torch.float32]

    def fill(axis: int, level: int, numbers: Any) -> None:
        rule, bins = _BINS[spec.bins], spec.output_size[axis]
        kernels.make_windows(
            rois.values, numbers, axis, rule, spec.scales[level], limit, sizes[level][axis], bins, tables[axis]
        )

    _each_block(rois, fill)
    return tables[0], tables[1]


def make_points(rois: Rois, spec: Spec, sizes: Sequence[Sequence[int]], dtype: torch.dtype) -> list[tuple[Any, ...]]:
    """For y and x the tables ``cell``, ``share``, ``count`` and ``by_extent`` of ``tap_kernels.make_points``."""
    kind = np.float64 if dtype == torch.float64 else np.float32
    rule = _BINS[spec.bins]
    limit = LARGEST[torch.float64 if rois.values.dtype == np.float64 else torch.float32]
    tables: list[tuple[Any, ...]] = []
    for axis in (0, 1):
        bins, most = spec.output_size[axis], max(spec.ratio, 1)
        if spec.ratio <= 0:
            for numbers, size, scale in zip(rois.numbers, sizes, spec.scales, strict=True):
                points = kernels.most_cells(rois.values, numbers, axis, rule, scale, limit, bins)
                most = max(most, min(points, 2 * size[axis] + 6))
        shape = (len(rois.values) * bins, most)
        tables.append(
            (np.empty(shape, np.int32), np.empty(shape, kind), np.empty(shape[0], np.int32), np.empty(shape, kind))
        )

    def fill(axis: int, level: int, numbers: Any) -> None:
        cell, share, count, by_extent = tables[axis]
        kernels.make_points(
            rois.values,
            numbers,
            axis,
            rule,
            spec.ratio,
            spec.scales[level],
            limit,
            sizes[level][axis],
            spec.output_size[axis],
            cell,
            share,
            by_extent,
            count,
        )

    _each_block(rois, fill)
    return tables


def roi_grads(rois: Rois, spec: Spec, by_start: Any, by_extent: Any, by_shift: Any) -> tuple[Tensor, Tensor]:
    """Gradients of RoIs in pixels and of offsets, from those of start, extent and shifts of bins in cells."""
    out = np.zeros_like(rois.values)
    rule = _BINS[spec.bins]
    limit = LARGEST[torch.float64 if rois.values.dtype == np.float64 else torch.float32]
    for numbers, scale in zip(rois.numbers, spec.scales, strict=True):
        for axis in (0, 1):
            kernels.finish_roi_grads(rois.values, numbers, axis, rule, scale, limit, by_start, by_extent, out)
            if by_shift.size:
                kernels.finish_offset_grads(rois.values, numbers, axis, rule, scale, limit, by_shift)
    return torch.from_numpy(out), torch.from_numpy(by_shift)


def _taps_of_rule(
    rois: Rois, offsets: Tensor | None, spec: Spec, sizes: Sequence[Sequence[int]], dtype: torch.dtype
) -> Taps:
    """The taps of a rule of a user's own, which says them in PyTorch."""
    found: list[list[tuple[Any, ...]]] = [[], []]
    for numbers, size, scale in zip(rois.numbers, sizes, spec.scales, strict=True):
        some = torch.from_numpy(rois.values[numbers])
        shift = None if offsets is None else offsets[torch.from_numpy(numbers)]
        bins = reference.bins_of(spec, some, shift, scale, (size[0], size[1]))
        for axis in (0, 1):
            taps = call_taps(SAMPLING[spec.sampling], bins[axis], size[axis], spec.ratio)
            check_index(taps.index, size[axis])
            arrays = [taps.index.to(torch.int32), taps.weight.detach().to(dtype)]
            if axis == 1:
                arrays = [t.transpose(1, 2) for t in arrays]
            found[axis].append(tuple(t.flatten(1, 2).contiguous().numpy() for t in arrays))
    merged = []
    for axis in (0, 1):
        width = max(1, *(index.shape[2] for index, _ in found[axis]))
        per_roi = found[axis][0][0].shape[1]
        shape = (len(rois.values) * per_roi, width)
        index, weight = np.full(shape, -1, np.int32), np.zeros(shape, found[axis][0][1].dtype)
        for numbers, (some_index, some_weight) in zip(rois.numbers, found[axis], strict=True):
            index.reshape(-1, per_roi, width)[numbers, :, : some_index.shape[2]] = some_index
            weight.reshape(-1, per_roi, width)[numbers, :, : some_index.shape[2]] = some_weight
        out = np.empty_like(index), np.empty_like(weight), np.empty(shape[0], np.int32)
        kernels.merge_taps(index, weight, *out)
        merged.append(out)
    return Taps(merged[0], merged[1], (), (), offsets is not None)


def _each_block(rois: Rois, fill: Any) -> None:
    """Call ``fill(axis, level, numbers)`` for blocks of the RoIs of every level, on both axes."""
    tasks = [
        (axis, level, numbers[first : first + BLOCK])
        for level, numbers in enumerate(rois.numbers)
        for first in range(0, len(numbers), BLOCK)
        for axis in (0, 1)
    ]
    run(len(tasks), lambda n: fill(*tasks[n]), threads=1 if len(rois.values) <= BLOCK else None)
