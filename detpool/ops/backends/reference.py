"""The two primitives in plain PyTorch, for any device and dtype: the oracle of every test and the last resort.

These are compositions of differentiable operations, so gradients of any order are PyTorch's own. Cells are gathered,
not multiplied by weights of zero: what a bin does not read, NaN and infinity included, has no part in its result or in
any gradient. Work goes in chunks of RoIs so that intermediates stay small.
"""

from __future__ import annotations  # which the compiler of PyTorch 2.9 would otherwise evaluate, and refuse

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ..bins import BINS, Bins, ceil, floor, make_bins
from ..inputs import checked, checks_values, is_ordered
from ..layout import is_channels_last, memory_format, sum_dtype
from ..sampling import SAMPLING, Points, Taps, bilinear_taps, call_taps, check_index
from ..spec import ROTATED, Spec

SumTaps = Callable[[Tensor, Tensor, Taps, Taps, tuple[int, int]], Tensor]
CHUNK_ELEMENTS = 1 << 23
POINT_BITS = 15
"""A point's number is its row shifted by so many bits, plus its column."""
MOST_ROTATED_POINTS = 64
"""Points per bin and axis that adaptive sampling of rotated boxes may take: they are not separable, so memory grows
with their square."""


def reasons_against(primitive: str, features: Tensor, spec: Spec) -> list[str]:
    """The reference serves every call."""
    return []


def weighted_sum(
    maps: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    offsets: Tensor | None,
    spec: Spec,
    sum_taps: SumTaps | None = None,
) -> Tensor:
    """See :func:`detpool.ops.weighted_sum.weighted_sum`.

    ``sum_taps(features, image, y, x, groups)`` sums taps (y, x) of bins, if not as it is done here.
    """
    sum_taps = sum_taps or _sum_taps

    def pool(features: Tensor, scale: float, rois: Tensor, offsets: Tensor | None, _: None) -> Tensor:
        image = rois[:, 0].to(torch.int64)
        if spec.bins == ROTATED:
            return _rotated_sum(features, image, rois[:, 1:], spec, scale, sum_taps)
        lengths = (features.shape[2], features.shape[3])
        rule = SAMPLING[spec.sampling]
        taps = []
        for axis, length in zip(bins_of(spec, rois, offsets, scale, lengths), lengths, strict=True):
            taps.append(call_taps(rule, axis, length, spec.ratio))
            if checks_values(features.device) and not torch.compiler.is_compiling() and not features.is_meta:
                check_index(taps[-1].index, length)
        return sum_taps(features, image, taps[0], taps[1], spec.groups)

    return _by_level(pool, maps, rois, levels, spec, offsets)


def window_max(maps: Sequence[Tensor], rois: Tensor, levels: Tensor | None, spec: Spec) -> Tensor:
    """See :func:`detpool.ops.window_max.window_max`."""

    def pool(features: Tensor, scale: float, rois: Tensor, offsets: None, argmax: None) -> Tensor:
        image = rois[:, 0].to(torch.int64)
        if spec.bins == ROTATED:
            return _rotated_max(features, image, rois[:, 1:], spec, scale)
        lengths = (features.shape[2], features.shape[3])
        y, x = bins_of(spec, rois, None, scale, lengths)
        windows = SAMPLING[spec.sampling].windows
        if windows is None:
            return _max_of_points(features, image, *points_of(spec, y, x, lengths), spec.groups)
        cells = [windows(axis, length, spec.ratio)[:, :, 0] for axis, length in zip((y, x), lengths, strict=True)]
        return _max_of_cells(features, image, cells[0], cells[1], spec.groups)

    return _by_level(pool, _widened(maps), rois, levels, spec).to(maps[0].dtype)


def value_at(maps: Sequence[Tensor], rois: Tensor, levels: Tensor | None, argmax: Tensor, spec: Spec) -> Tensor:
    """(K, C, PH, PW): the values at the places of maxima that a backend has found; 0 for -1."""

    def pool(features: Tensor, scale: float, rois: Tensor, offsets: None, argmax: Tensor) -> Tensor:
        image = rois[:, 0].to(torch.int64)
        if SAMPLING[spec.sampling].windows is not None:
            channel = _input_channels(argmax.shape[1], spec.output_size, spec.groups, argmax.device)
            cell = argmax.clamp(min=0).to(torch.int64)
            values = features.flatten(2)[image[:, None, None, None], channel, cell]
            return torch.where(argmax >= 0, values, 0.0)
        lengths = (features.shape[2], features.shape[3])
        y, x = bins_of(spec, rois, None, scale, lengths)
        return _value_at_points(features, image, *points_of(spec, y, x, lengths), argmax, spec.groups)

    return _by_level(pool, _widened(maps), rois, levels, spec, argmax=argmax).to(maps[0].dtype)


def _widened(maps: Sequence[Tensor]) -> list[Tensor]:
    """Maps in the dtype of sums, in which their gradients add up."""
    return [features.to(sum_dtype(features.dtype)) for features in maps]


def bins_of(
    spec: Spec, rois: Tensor, offsets: Tensor | None, scale: float, lengths: tuple[int, int]
) -> tuple[Bins, Bins]:
    """The bins (y, x) of RoIs, in the dtype that the sampling rule asks for."""
    dtype = SAMPLING[spec.sampling].dtype
    rois = rois if dtype is None else rois.to(dtype)
    return make_bins(BINS[spec.bins], rois, scale, spec.output_size, lengths, offsets)


def points_of(spec: Spec, y: Bins, x: Bins, lengths: tuple[int, int]) -> tuple[Points, Points]:
    """The single points of both axes, as (y, x).

    Raises:
        ValueError: If the sampling rule has none.
    """
    points = SAMPLING[spec.sampling].points
    if points is None:
        raise ValueError(
            "this reduction needs the single values of a bin (sampling 'points'; the maximum also takes 'cells'), and "
            "this sampling rule yields only their mean"
        )
    return points(y, lengths[0], spec.ratio), points(x, lengths[1], spec.ratio)


def grid_of_points(features: Tensor, image: Tensor, y: Points, x: Points, groups: tuple[int, int]) -> Tensor:
    """(K, C, PH, PW, GY GX): the values of the points of each bin, 0 for one that does not exist."""
    rows = [
        _sum_taps(features, image, *_single(y, x, row), groups).unflatten(3, (x.index.shape[1], -1))
        for row in range(y.index.shape[3])
    ]
    return torch.cat(rows, dim=4)


def _by_level(
    pool: Callable[..., Tensor],
    maps: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    spec: Spec,
    offsets: Tensor | None = None,
    argmax: Tensor | None = None,
) -> Tensor:
    """``pool(features, scale, rois, offsets, argmax)`` of the RoIs of each map, in their order.

    NaN for a RoI that is not valid where values are not checked.
    """
    if torch.jit.is_tracing():
        raise RuntimeError(
            "torch.jit.trace cannot record the reference backend, whose sizes depend on the values of boxes: use "
            "torch.export, or the other backends"
        )
    first, valid = maps[0], None
    if checks_values(first.device):
        rois = checked(rois, offsets, first.shape[0])
    else:
        valid = _valid(rois, first.shape[0])
        if offsets is not None:
            valid = valid & offsets.detach().isfinite().flatten(1).all(dim=1)
            offsets = torch.where(valid[:, None, None, None], offsets, 0.0)
        rois = torch.where(valid[:, None], rois, 0.0)
    each = (rois, offsets, argmax)
    if levels is None:
        output = pool(first, spec.scales[0], *each)
    elif torch.compiler.is_compiling():
        # how many RoIs a level has is not known here: all are pooled from every level
        output = pool(first, spec.scales[0], *each)
        for level, (features, scale) in enumerate(zip(maps[1:], spec.scales[1:], strict=True), start=1):
            output = torch.where((levels == level)[:, None, None, None], pool(features, scale, *each), output)
    else:
        rows = [(levels == level).nonzero()[:, 0] for level in range(len(maps))]
        parts = [
            pool(features, scale, *(None if t is None else t[k] for t in each))
            for features, k, scale in zip(maps, rows, spec.scales, strict=True)
        ]
        output = torch.cat(parts)[torch.cat(rows).argsort()]
    output = output.contiguous(memory_format=memory_format(is_channels_last(first)))
    return output if valid is None else torch.where(valid[:, None, None, None], output, torch.nan)


def _valid(rois: Tensor, images: int) -> Tensor:
    rois = rois.detach()
    image = rois[:, 0]
    exists = (image >= 0) & (image < images) & (image == image.floor())
    return exists & rois.isfinite().all(dim=1) & is_ordered(rois[:, 1:])


def _sum_taps(features: Tensor, image: Tensor, y: Taps, x: Taps, groups: tuple[int, int]) -> Tensor:
    """(K, C, PH, PW): the weighted sum of the taps of each bin; x (K, PW, J, T)."""
    dtype = sum_dtype(features.dtype)
    joint = y.index.shape[2] > 1 or x.index.shape[2] > 1
    bins = (y.index.shape[1], x.index.shape[1])
    blocks = []
    for rows, columns, source in _blocks(features.to(dtype), bins, groups):
        y_block = Taps(*(_part(t, rows, columns) for t in (y.index, y.weight.to(dtype))))
        x_block = Taps(*(_part(t.transpose(1, 2), rows, columns) for t in (x.index, x.weight.to(dtype))))
        if not joint:
            taps = (*(t[:, :, 0] for t in (y_block.index, y_block.weight)), x_block.index[:, 0], x_block.weight[:, 0])
            blocks.append(_separable(source, image, *taps))
            continue
        # every bin becomes a RoI of one bin
        size = (rows.stop - rows.start, columns.stop - columns.start)
        each = [
            t.expand(-1, *size, -1).reshape(-1, 1, t.shape[3])
            for t in (y_block.index, y_block.weight, x_block.index, x_block.weight)
        ]
        pooled = _separable(source, image.repeat_interleave(size[0] * size[1]), *each)
        blocks.append(pooled.view(-1, *size, source.shape[1]).permute(0, 3, 1, 2))
    return _assemble(blocks, groups).to(features.dtype)


def _separable(source: Tensor, image: Tensor, iy: Tensor, wy: Tensor, ix: Tensor, wx: Tensor) -> Tensor:
    """(K, C, PH, PW): rows first, then columns; taps (K, P, T)."""
    channels, width = source.shape[1], source.shape[3]
    elements = channels * max(iy[0].numel() * width, iy.shape[1] * ix[0].numel()) if len(iy) else 1
    parts = []
    for k in _chunks(len(iy), elements):
        index = iy[k].flatten(1)
        rows = source[image[k][:, None], :, index.clamp(min=0).to(torch.int64)]  # (k, PH TY, C, W)
        rows = torch.where((index >= 0)[:, :, None, None], rows, 0.0).unflatten(1, iy.shape[1:])
        rows = (rows * wy[k][..., None, None]).sum(dim=2)  # (k, PH, C, W)
        index = ix[k].flatten(1)
        at = index.clamp(min=0).to(torch.int64)[:, None, None].expand(-1, *rows.shape[1:3], -1)
        cells = torch.where((index >= 0)[:, None, None], rows.gather(3, at), 0.0).unflatten(3, ix.shape[1:])
        parts.append((cells * wx[k][:, None, None]).sum(dim=4).transpose(1, 2))
    return torch.cat(parts) if parts else source.new_zeros((0, channels, iy.shape[1], ix.shape[1])) + source.sum() * 0


def _rotated_sum(
    features: Tensor, image: Tensor, coords: Tensor, spec: Spec, scale: float, sum_taps: SumTaps
) -> Tensor:
    """RoIAlign of rotated boxes (K, 5): the bins and points of an aligned box, turned about its centre."""
    y, x, _, count = rotated_taps(coords, spec, scale, (features.shape[2], features.shape[3]))
    values = sum_taps(features.to(sum_dtype(features.dtype)), image, y, x, (1, 1))
    return (_by_bin(values, spec).sum(dim=4) / count).to(features.dtype)


def _rotated_max(features: Tensor, image: Tensor, coords: Tensor, spec: Spec, scale: float) -> Tensor:
    """(K, C, PH, PW): the maximum over the same points, the first of equals; 0 for a bin without any."""
    outputs = []
    y, x, exists, _ = rotated_taps(coords, spec, scale, (features.shape[2], features.shape[3]))
    for k in _chunks(len(image), 4 * features.shape[1] * exists[0].numel() if len(image) else 1):
        some_y, some_x = (Taps(taps.index[k], taps.weight[k]) for taps in (y, x))
        values = _sum_taps(features, image[k], some_y, some_x, (1, 1))
        values = _by_bin(values, spec).masked_fill(~_by_bin(exists[k, None], spec), -torch.inf)
        largest = values.max(dim=4).values
        outputs.append(torch.where(_by_bin(exists[k, None], spec).any(dim=4), largest, 0.0))
    nothing = features.new_zeros((0, features.shape[1], *spec.output_size)) + features.sum() * 0
    return torch.cat(outputs) if outputs else nothing


def _by_bin(values: Tensor, spec: Spec) -> Tensor:
    """Values of points (K, C, PH GY, PW GX) as (K, C, PH, PW, GY GX)."""
    rows, columns = spec.output_size
    return values.unflatten(3, (columns, -1)).unflatten(2, (rows, -1)).transpose(3, 4).flatten(4)


def rotated_taps(
    coords: Tensor, spec: Spec, scale: float, lengths: tuple[int, int]
) -> tuple[Taps, Taps, Tensor, Tensor]:
    """The points of rotated boxes (K, 5), each a bin of its own.

    Returns:
        their taps (y, x); which of them exist, (K, PH GY, PW GX); how many a bin has, (K, 1, PH or 1, PW or 1).

    A point of sampling "cells" reads the cell that it lies in, and does not exist outside the image.
    """
    centre, extent = coords[:, :2] * scale - 0.5, coords[:, 2:4] * scale
    y, y_exists, y_count = _centred_positions(extent[:, 1], spec.output_size[0], spec.ratio)
    x, x_exists, x_count = _centred_positions(extent[:, 0], spec.output_size[1], spec.ratio)
    angle = coords[:, 4, None, None] * (math.pi / 180)
    along_y, along_x = y.flatten(1)[:, :, None], x.flatten(1)[:, None]
    rows = along_y * angle.cos() - along_x * angle.sin() + centre[:, 1, None, None]
    columns = along_y * angle.sin() + along_x * angle.cos() + centre[:, 0, None, None]
    exists = y_exists.flatten(1)[:, :, None] & x_exists.flatten(1)[:, None]
    reads, margin = exists, 1
    if spec.sampling == "cells":
        rows, columns, margin = floor(rows + 0.5), floor(columns + 0.5), 0
    for positions, length in zip((rows, columns), lengths, strict=True):
        reads = reads & (positions >= -margin) & (positions <= length - 1 + margin)
    y_taps, x_taps = bilinear_taps(rows, reads, lengths[0]), bilinear_taps(columns, reads, lengths[1])
    x_taps = Taps(*(t.transpose(1, 2) for t in (x_taps.index, x_taps.weight)))
    if spec.sampling == "cells":
        return y_taps, x_taps, reads, _by_bin(reads[:, None], spec).sum(dim=4).clamp(min=1)
    return y_taps, x_taps, exists, (y_count * x_count)[:, None, None, None]


def _centred_positions(extent: Tensor, bins: int, ratio: int) -> tuple[Tensor, Tensor, Tensor]:
    """(K, P, G) points relative to the centre, which of them exist, and (K,) how many a bin has."""
    step = extent / bins
    if ratio > 0:
        count, most = torch.full_like(step, ratio), ratio
    else:
        count = ceil(step)
        most = rotated_points(step)
    number = torch.arange(most, dtype=step.dtype, device=step.device)
    exists = (number < count[:, None])[:, None].expand(-1, bins, -1)
    count = count.clamp(min=1)
    lower = (-extent / 2)[:, None] + torch.arange(bins, dtype=step.dtype, device=step.device) * step[:, None]
    return lower[:, :, None] + ((number + 0.5) * step[:, None] / count[:, None])[:, None], exists, count


def rotated_points(step: Tensor) -> int:
    """The most points that a bin of size ``step`` (K,) takes along an axis with adaptive sampling.

    Raises:
        ValueError: If they are too many, or where values are not known since a graph is traced.
    """
    if torch.compiler.is_compiling() or step.is_meta:
        raise ValueError("sampling_ratio must be positive where rotated boxes are pooled in a traced graph")
    most = max(1, int(ceil(step).max())) if step.numel() else 1
    if most > MOST_ROTATED_POINTS:
        raise ValueError(
            f"boxes need {most} points per bin along one axis, more than {MOST_ROTATED_POINTS}: set a positive "
            f"sampling_ratio, where the operator takes one"
        )
    return most


def _max_of_cells(
    features: Tensor, image: Tensor, y_windows: Tensor, x_windows: Tensor, groups: tuple[int, int]
) -> Tensor:
    """(K, C, PH, PW): the value of the first maximum in row-major order, 0 for a bin without cells."""
    channels, (height, width) = features.shape[1] // (groups[0] * groups[1]), features.shape[2:]
    y, y_inside = _window_cells(y_windows, height)
    x, x_inside = _window_cells(x_windows, width)
    maxima = []
    for rows, columns, planes in _blocks(features, (y.shape[1], x.shape[1]), groups):
        source = planes.flatten(2)
        # (K, rows, columns, TH TW), row-major within a window so that ties go to the first cell
        cell = (y[:, rows, None, :, None] * width + x[:, None, columns, None, :]).flatten(3)
        inside = (y_inside[:, rows, None, :, None] & x_inside[:, None, columns, None, :]).flatten(3)
        outputs = []
        for k in _chunks(len(cell), channels * cell[0].numel() if len(cell) else 1):
            with torch.no_grad():
                values = source[image[k][:, None, None, None], :, cell[k]]
                values = values.masked_fill(~inside[k][..., None], -torch.inf)
                # An invalid cell must not win a tie of -inf: NaN apart, the first *valid* maximum is the answer.
                maximum = values.amax(dim=3, keepdim=True)
                first = (((values == maximum) | values.isnan()) & inside[k][..., None]).to(torch.uint8).argmax(dim=3)
                at = cell[k].gather(3, first)  # (k, rows, columns, C)
            some = inside[k].any(dim=3)[..., None]
            number = torch.arange(channels, device=at.device)
            value = source[image[k][:, None, None, None], number, at]
            outputs.append(torch.where(some, value, 0.0).permute(0, 3, 1, 2))
        nothing = source.new_zeros((0, channels, *cell.shape[1:3])) + source.sum() * 0
        maxima.append(torch.cat(outputs) if outputs else nothing)
    return _assemble(maxima, groups)


def _max_of_points(features: Tensor, image: Tensor, y: Points, x: Points, groups: tuple[int, int]) -> Tensor:
    """(K, C, PH, PW): the value of the first maximum in row-major order, 0 for a bin without points.

    Row of points after row of points, so that memory does not grow with the points of all bins.
    """
    wide = features.to(sum_dtype(features.dtype))  # or values would tie that only rounding makes equal
    x_exists = x.exists[:, :, 0][:, None, None]  # (K, 1, 1, PW, GX)
    best = where = None
    with torch.no_grad():
        for row in range(y.index.shape[3]):
            values = _sum_taps(wide, image, *_single(y, x, row), groups).unflatten(3, (x.index.shape[1], -1))
            exists = y.exists[:, :, 0, row][:, None, :, None, None] & x_exists
            values = values.masked_fill(~exists, -torch.inf)
            maximum = values.amax(dim=4, keepdim=True)
            first = (((values == maximum) | values.isnan()) & exists).to(torch.uint8).argmax(dim=4)
            maximum, some = maximum[..., 0], exists.any(dim=4).expand_as(first)
            number = torch.where(some, (row << POINT_BITS) + first, -1)
            if best is None or where is None:
                best, where = maximum, number
                continue
            wins = some & ((where < 0) | (maximum > best) | (maximum.isnan() & ~best.isnan()))
            best, where = torch.where(wins, maximum, best), torch.where(wins, number, where)
    assert where is not None
    return _value_at_points(features, image, y, x, where, groups)


def _value_at_points(
    features: Tensor, image: Tensor, y: Points, x: Points, number: Tensor, groups: tuple[int, int]
) -> Tensor:
    """(K, C, PH, PW): the value of point ``number`` (of the same shape) of each bin and channel, 0 for -1."""
    dtype = sum_dtype(features.dtype)
    bins = number.shape[2:]
    source = features.flatten(2)
    channel = _input_channels(number.shape[1], bins, groups, number.device)
    chosen = number.clamp(min=0).to(torch.int64)
    taps = []
    for axis, points, point in ((2, y, chosen >> POINT_BITS), (3, x, chosen & ((1 << POINT_BITS) - 1))):
        # (K, P, G, 2) as (K, C, PH, PW, G, 2)
        for values in (points.index[:, :, 0].to(torch.int64), points.weight[:, :, 0].to(dtype)):
            values = values.unsqueeze(4 - axis)[:, None].expand(*number.shape, -1, -1)
            taps.append(values.gather(4, point[..., None, None].expand(*number.shape, 1, 2))[:, :, :, :, 0])
    iy, wy, ix, wx = taps
    index = iy[..., :, None] * features.shape[3] + ix[..., None, :]
    reads = (iy[..., :, None] >= 0) & (ix[..., None, :] >= 0) & (number >= 0)[..., None, None]
    cells = source[image[:, None, None, None, None, None], channel[..., None, None], torch.where(reads, index, 0)]
    cells = torch.where(reads, cells.to(dtype), 0.0)
    return (cells * (wy[..., :, None] * wx[..., None, :])).sum(dim=(4, 5)).to(features.dtype)


def _single(y: Points, x: Points, row: int) -> tuple[Taps, Taps]:
    """Taps of point ``row`` of each bin along y, and of each point of each bin along x as a bin of its own."""
    if y.index.shape[2] > 1 or x.index.shape[2] > 1:
        raise ValueError("single points of deformable bins are not supported")
    y_taps = Taps(y.index[:, :, :, row], y.weight[:, :, :, row])
    return y_taps, Taps(*(t.transpose(2, 3).flatten(1, 2) for t in (x.index, x.weight)))


def _blocks(features: Tensor, bins: tuple[int, int], groups: tuple[int, int]) -> Iterator[tuple[slice, slice, Tensor]]:
    """Rows and columns of output bins that read the same channels, with a view of those channels."""
    height, width = bins[0] // groups[0], bins[1] // groups[1]
    for i in range(groups[0]):
        for j in range(groups[1]):
            rows, columns = slice(i * height, (i + 1) * height), slice(j * width, (j + 1) * width)
            yield rows, columns, features[:, i * groups[1] + j :: groups[0] * groups[1]]


def _assemble(blocks: list[Tensor], groups: tuple[int, int]) -> Tensor:
    """The inverse of :func:`_blocks`, for outputs."""
    rows = [torch.cat(blocks[i : i + groups[1]], dim=3) for i in range(0, len(blocks), groups[1])]
    return torch.cat(rows, dim=2)


def _part(taps: Tensor, rows: slice, columns: slice) -> Tensor:
    """A block's taps of an axis, (K, bins of y or 1, bins of x or 1, T)."""
    return taps[:, rows if taps.shape[1] > 1 else slice(None), columns if taps.shape[2] > 1 else slice(None)]


def _chunks(rois: int, elements: int) -> Iterator[slice]:
    """Slices of RoIs whose intermediates, ``elements`` of each, stay small."""
    if torch.compiler.is_compiling():
        return iter((slice(0, rois),))
    size = max(1, CHUNK_ELEMENTS // max(1, elements))
    return (slice(first, first + size) for first in range(0, rois, size))


def _window_cells(windows: Tensor, length: int) -> tuple[Tensor, Tensor]:
    first = windows[..., :1].to(torch.int64).clamp(0, length)
    last = windows[..., 1:].to(torch.int64).clamp(0, length)
    if torch.compiler.is_compiling() or windows.is_meta:
        most = length
    else:
        most = max(1, int((last - first).max())) if windows.numel() else 1
    cells = first + torch.arange(most, device=windows.device)
    inside = cells < last
    return torch.where(inside, cells, 0), inside


def _input_channels(
    channels: int, bins: tuple[int, int] | torch.Size, groups: tuple[int, int], device: torch.device
) -> Tensor:
    """(C, PH, PW): the input channel that each output channel of each bin reads."""
    c = torch.arange(channels, device=device)[:, None, None]
    i = torch.arange(bins[0], device=device)[:, None] * groups[0] // bins[0]
    j = torch.arange(bins[1], device=device) * groups[1] // bins[1]
    return (c * groups[0] + i) * groups[1] + j
