"""What an operator reads for a box: its bins, its sample points, and the cells that contribute to each bin.

The code does not depend on an operator's rules. Bins and points are recorded from the operator itself
(:func:`detpool.ops.record_samples`), if it is a form of :func:`detpool.ops.pool`; the weights are its outputs for maps
that are 1 in one cell and 0 elsewhere.

All coordinates are in pixels of the image. Cell i of an axis covers the pixels ``i stride .. (i + 1) stride``. Rules
that read whole cells count positions from the edge of cell 0, rules that interpolate count them from its center:
position p is the pixel ``p stride`` for the former and ``(p + 0.5) stride`` for the latter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MultipleLocator
from torch import Tensor

from detpool.ops import Points, Samples, record_samples
from detpool.ops.bins import BINS
from detpool.ops.sampling import SAMPLING
from detpool.visualization.style import COLOURS, WIDTH, Operator, title_of

_CHANNELS = 512
"""Maximum number of channels of one call: one per cell, or for position-sensitive operators one per cell and bin."""
_MARGIN = 0.7
"""Margin of a picture in cells."""


@dataclass(frozen=True)
class Footprint:
    """What the PH x PW bins of one box read from a map of H x W cells."""

    box: tuple[float, float, float, float]
    """x1, y1, x2, y2 in pixels."""
    stride: float
    """Pixels per cell."""
    bins: Tensor | None
    """(PH, PW, 4): x1, y1, x2, y2 in pixels, before any rounding to cells. None if they are unknown, because the
    operator is not a form of :func:`detpool.ops.pool` or calls it with other bins."""
    points: Tensor | None
    """(PH, PW, G, 2): x, y in pixels of bilinear sample points, moved into the map if they lay outside; NaN for a point
    that reads nothing. None for rules without points."""
    weights: Tensor
    """(PH, PW, H, W): the output of each bin for a map that is 1 in one cell. For a mean, this is the cell's weight;
    for a maximum over cells, 1 for each cell of the bin; for a maximum over points, the largest bilinear weight."""

    @property
    def cells(self) -> float:
        """Mean number of cells that a bin reads."""
        return float((self.weights > 0).sum((2, 3)).double().mean())

    @property
    def offset(self) -> tuple[float, float]:
        """Mean offset right and down, in pixels, of what bins read from where they should read.

        Bin (i, j) should read the center of part (i, j) of the box, divided into PH x PW equal parts without rounding;
        it reads the centroid of its weights. The mean is over the bins that read anything; NaN if none does.
        """
        rows, columns, height, width = self.weights.shape
        total = self.weights.sum((2, 3))
        offsets = []
        for axis, (low, high, bins, cells) in enumerate(
            ((self.box[0], self.box[2], columns, width), (self.box[1], self.box[3], rows, height))
        ):
            marginal = self.weights.sum(2 + axis)
            centre = (torch.arange(cells, dtype=marginal.dtype) + 0.5) * self.stride
            centroid = (marginal * centre).sum(2) / total
            ideal = low + (torch.arange(bins, dtype=marginal.dtype) + 0.5) * (high - low) / bins
            offsets.append(float((centroid - (ideal if axis == 0 else ideal[:, None]))[total > 0].mean()))
        return offsets[0], offsets[1]


def footprint(
    operator: Operator,
    box: tuple[float, float, float, float],
    output_size: tuple[int, int],
    map_size: tuple[int, int],
    stride: float,
) -> Footprint:
    """Measure what an operator reads for one box.

    Args:
        operator: ``op(features, rois, output_size, spatial_scale)``.
        box: x1, y1, x2, y2 in pixels.
        output_size: number of bins, (height, width).
        map_size: size of the feature map in cells, (height, width).
        stride: pixels per cell.

    Raises:
        ValueError: If the operator's bins are not axis-aligned, or it rejects its arguments.
    """
    rois = torch.tensor([[0.0, *box]], dtype=torch.float64)
    bins = output_size[0] * output_size[1]
    # With one channel per bin, position-sensitive operators work as well as others.
    features = torch.zeros(1, bins, *map_size, dtype=torch.float64)
    try:
        made = record_samples(operator, features, rois, output_size, 1 / stride)
    except (AttributeError, TypeError):  # it uses the features in other ways than passing them on
        made = []
    made = [samples for samples in made if samples.spec.output_size == tuple(output_size)]  # not finer ones, averaged
    edges, points = _bins_and_points(made[0], output_size, map_size, stride) if made else (None, None)

    weights = torch.zeros(*output_size, map_size[0] * map_size[1], dtype=torch.float64)
    channels_a_cell = bins // operator(features, rois, output_size, 1 / stride).shape[1]
    for cells in torch.arange(weights.shape[2]).split(max(1, _CHANNELS // channels_a_cell)):
        features = torch.zeros(len(cells), weights.shape[2], dtype=torch.float64)
        features[torch.arange(len(cells)), cells] = 1
        features = features.repeat_interleave(channels_a_cell, dim=0).unflatten(1, map_size)[None]
        weights[..., cells] = operator(features, rois, output_size, 1 / stride)[0].permute(1, 2, 0)
    return Footprint(box, stride, edges, points, weights.unflatten(2, map_size))


def _bins_and_points(
    samples: Samples, output_size: tuple[int, int], map_size: tuple[int, int], stride: float
) -> tuple[Tensor, Tensor | None]:
    """Return `bins` and `points` of a `Footprint`.

    Raises:
        ValueError: If the bins are not axis-aligned.
    """
    if samples.spec.bins not in BINS:
        raise ValueError("the operator has no upright bins to show")
    rule = SAMPLING[samples.spec.sampling]
    origin = 0.0 if rule.windows is not None else 0.5
    y1, y2, x1, x2 = (
        ((edge + origin) * stride).detach()
        for axis in samples.bins
        for edge in ((axis.origin + axis.lower)[0], (axis.origin + axis.upper)[0])
    )
    edges = torch.stack([edge.expand(output_size) for edge in (x1.T, y1, x2.T, y2)], dim=2)

    points = None
    if rule.points is not None:
        y, x = (
            (_positions(rule.points(axis, length, samples.spec.ratio)) + origin) * stride
            for axis, length in zip(samples.bins, map_size, strict=True)
        )
        grid = (*output_size, y.shape[2], x.shape[2])
        x, y = x.transpose(0, 1)[:, :, None].expand(grid), y[..., None].expand(grid)
        points = torch.stack([x, y], dim=4).flatten(2, 3)
        points = points.where(points.isfinite().all(3, keepdim=True), torch.nan)
    return edges, points


def _positions(points: Points) -> Tensor:
    """Return positions (P, J, G) of one RoI's points in cells, as weighted means of the cells that each point reads.

    Points that read nothing are NaN.
    """
    index, weight = points.index[0].to(points.weight.dtype), points.weight[0].detach()
    total = weight.sum(3)
    return torch.where(total > 0, (index * weight).sum(3) / total, torch.nan)


def plot_footprints(
    footprints: Mapping[str, Footprint], image: Tensor | None = None, *, width: float = WIDTH
) -> Figure:
    """Plot one panel per operator: the box, all bins and points, and the cells and points of the middle bin.

    Args:
        footprints: footprints by the operator's name; all of the same box, map size and stride.
        image: uint8 (3, height, width), drawn under the map.
        width: width of the figure in inches.

    Raises:
        ValueError: If `footprints` is empty.
    """
    if not footprints:
        raise ValueError("footprints: got none")
    columns = min(3, len(footprints))
    rows = -(-len(footprints) // columns)
    x1, y1, x2, y2 = _extent(list(footprints.values()))
    panel_height = (width / columns - 0.4) * (y2 - y1) / (x2 - x1)
    lines = 1 if width >= WIDTH else 3  # of the legend
    figure = Figure(figsize=(width, rows * (panel_height + 0.75) + 0.5 + 0.2 * lines), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for panel, (name, found) in zip(panels.flat, footprints.items(), strict=False):
        _draw(panel, found, image)
        panel.set_title(title_of(name), fontsize=12)
        right, down = found.offset
        shift = ", ".join(f"{round(value, 1) + 0.0:+.1f}" for value in (right, down))  # + 0.0: no "-0.0"
        unknown = "\nbins not known" if found.bins is None else ""
        panel.set_xlabel(f"{found.cells:.3g} cells per bin, off by ({shift}) px{unknown}", fontsize=10)
    panels[0, 0].set_xlim(x1, x2)
    panels[0, 0].set_ylim(y2, y1)
    for locate in (panels[0, 0].xaxis, panels[0, 0].yaxis):
        locate.set_major_locator(MultipleLocator(2 * found.stride))
    for panel in panels.flat[len(footprints) :]:
        panel.remove()
    for panel in panels[:, 0]:
        panel.set_ylabel("y, pixels", fontsize=10)
    figure.supxlabel("x, pixels", fontsize=10)
    figure.legend(handles=_legend(), loc="outside upper center", ncols=-(-5 // lines), frameon=False, fontsize=10)
    return figure


def _extent(footprints: list[Footprint]) -> tuple[float, float, float, float]:
    """Return x1, y1, x2, y2 in pixels of the area around boxes and bins, with a margin."""
    bins = [found.bins.flatten(0, 1) for found in footprints if found.bins is not None]
    boxes = torch.cat([torch.tensor([found.box for found in footprints]), *bins])
    margin = _MARGIN * footprints[0].stride
    x1, y1 = (boxes[:, :2].amin(0) - margin).tolist()
    x2, y2 = (boxes[:, 2:].amax(0) + margin).tolist()
    return x1, y1, x2, y2


def _draw(panel: Axes, found: Footprint, image: Tensor | None) -> None:
    rows, columns, height, width = found.weights.shape
    stride = found.stride
    if image is not None:
        panel.imshow(image.permute(1, 2, 0), extent=(0, image.shape[2], image.shape[1], 0), alpha=0.6)
    for lines, count, other in ((panel.vlines, width, height), (panel.hlines, height, width)):
        lines([i * stride for i in range(count + 1)], 0, other * stride, color="0.8", linewidth=0.7, zorder=1)

    middle = (rows // 2, columns // 2)
    weights = found.weights[middle]
    for row, column in weights.nonzero().tolist():
        share = float(weights[row, column] / weights.max())
        place = (column * stride, row * stride)
        panel.add_patch(Rectangle(place, stride, stride, color=COLOURS[4], alpha=0.8 * share, linewidth=0, zorder=2))
    if found.bins is not None:
        for i in range(rows):
            for j in range(columns):
                _outline(panel, found.bins[i, j], COLOURS[0], 1.0, zorder=3)
        _outline(panel, found.bins[middle], COLOURS[0], 2.2, zorder=4)
    _outline(panel, torch.tensor(found.box), COLOURS[6], 1.8, linestyle=(0, (4, 2)), zorder=5)
    if found.points is not None:
        others = found.points.flatten(0, 2)
        panel.plot(others[:, 0], others[:, 1], ".", color="0.45", markersize=4, zorder=6)
        own = found.points[middle]
        panel.plot(own[:, 0], own[:, 1], "o", color=COLOURS[1], markersize=5, zorder=7)

    panel.set_aspect("equal")
    panel.tick_params(labelsize=9)


def _outline(panel: Axes, box: Tensor, color: str, width: float, **style: Any) -> None:
    x1, y1, x2, y2 = box.tolist()
    panel.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=color, linewidth=width, **style))


def _legend() -> list[Line2D | Patch]:
    return [
        Line2D([], [], color=COLOURS[6], linewidth=1.8, linestyle=(0, (4, 2)), label="box"),
        Line2D([], [], color=COLOURS[0], linewidth=1.0, label="bins"),
        Line2D([], [], color=COLOURS[0], linewidth=2.2, label="middle bin"),
        Patch(color=COLOURS[4], alpha=0.8, linewidth=0, label="cells it reads, by weight"),
        Line2D([], [], color=COLOURS[1], marker="o", markersize=5, linestyle="", label="its sample points"),
    ]
