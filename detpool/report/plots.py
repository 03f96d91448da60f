"""The report's plots: vector graphics, one colour and marker a configuration in all of them."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from detpool.evaluation.errors import ERRORS
from detpool.report.groups import Group
from detpool.report.statistics import paired_difference, summarize

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
"""Distinct to the colour-blind (Okabe and Ito's, the yellow replaced)."""
MARKERS = ("o", "D", "s", "^", "v", "P", "X", "*")
STYLES: tuple[Any, ...] = ("-", "--", ":", "-.")
"""Beyond eight configurations colours come again, with another style of line."""

_KINDS = {
    "correct": ("#009E73", ""),
    "localisation": ("#0072B2", "//"),
    "classification": ("#D55E00", "\\\\"),
    "both": ("#CC79A7", "xx"),
    "duplicate": ("#E69F00", ".."),
    "background": ("#999999", ""),
}
"""Colour and hatch of what a detection can be."""

IOUS = tuple(f"{0.5 + 0.05 * i:.2f}" for i in range(10))


@dataclass(frozen=True)
class Picture:
    """A picture of a report.

    Attributes:
        name: of its files, without a suffix.
        title: what it shows.
        files: its content by suffix (svg, pdf, png), the one for the page first.
        note: how to read it; may be empty.
    """

    name: str
    title: str
    files: Mapping[str, bytes]
    note: str = ""


def plot_metric(groups: Sequence[Group], baseline: Group, metric: str) -> Figure:
    """The metric of every seed and its mean; beside it the differences from the baseline with their intervals."""
    panels = 2 if len(groups) > 1 else 1
    figure = _figure(_labels_width(groups) + 3.7 * panels, 1.3 + _rows_height(groups))
    left, *others = figure.subplots(1, panels, sharey=True, squeeze=False)[0]
    _seeds(left, groups, metric)
    for right in others:
        for number, group in enumerate(groups):
            if group is baseline:
                right.text(0.5, number, "baseline", transform=right.get_yaxis_transform(), ha="center", va="center")
                continue
            difference = paired_difference(group.values(metric), baseline.values(metric))
            ends = [100 * difference.low, 100 * difference.high]
            right.plot(ends, [number, number], color=_colour(number), linewidth=2)
            right.plot([100 * difference.mean], [number], color=_colour(number), marker=_marker(number))
        right.axvline(0, color="0.5", linewidth=1)
        right.set_xlabel("points above the baseline (line: 95 % interval)")
        right.grid(axis="x", color="0.92")
    return figure


def plot_iou(groups: Sequence[Group], baseline: Group, prefix: str) -> Figure:
    """AP over IoU thresholds, and its difference from the baseline, where what happens at high IoU can be seen."""
    panels = 2 if len(groups) > 1 else 1
    figure = _figure(1 + 4 * panels, 3.2)
    left, *others = figure.subplots(1, panels, squeeze=False)[0]
    x = [float(iou) for iou in IOUS]
    base = [baseline.values(f"{prefix}AP@{iou}") for iou in IOUS]
    for number, group in enumerate(groups):
        values = [group.values(f"{prefix}AP@{iou}") for iou in IOUS]
        summaries = [summarize(v.values()) for v in values]
        _band(left, x, [(s.mean, s.mean - s.std, s.mean + s.std) for s in summaries], number)
        for right in others if group is not baseline else ():
            found = [paired_difference(v, b) for v, b in zip(values, base, strict=True)]
            _band(right, x, [(d.mean, d.low, d.high) for d in found], number)
    left.set_ylabel(f"{prefix}AP, %\n(band: standard deviation)")
    left.set_ylim(bottom=0)
    for right in others:
        right.axhline(0, color="0.5", linewidth=1)
        right.set_ylabel("points above the baseline\n(band: 95 % interval)")
    for panel in (left, *others):
        panel.set_xlabel("IoU threshold")
        panel.grid(color="0.92")
    _legend(figure, groups, baseline)
    return figure


def plot_sizes(groups: Sequence[Group], metrics: Mapping[str, str]) -> Figure:
    """Metrics by object size, a panel each; `metrics` maps their names to what they stand for."""
    figure = _figure(_labels_width(groups) + 2.5 * len(metrics), 1.3 + _rows_height(groups))
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for panel, (metric, title) in zip(panels, metrics.items(), strict=True):
        _seeds(panel, groups, metric)
        panel.set_title(title, fontsize=10)
    return figure


def plot_curves(groups: Sequence[Group], metric: str) -> Figure:
    """Training loss and the validation metric over epochs, where they were recorded, a line a seed."""
    shown = [
        (name, scale, label)
        for name, scale, label in (
            ("train/loss", 1, "training loss (mean of the epoch)"),
            (f"val/{metric}", 100, f"{metric} of the validation set, %"),
        )
        if any(name in run.curves for group in groups for run in group.runs.values())
    ]
    figure = _figure(1 + 4 * len(shown), 3.2)
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for panel, (name, scale, label) in zip(panels, shown, strict=True):
        for number, group in enumerate(groups):
            for run in group.runs.values():
                curve = run.curves.get(name, {})
                panel.plot(list(curve), [scale * v for v in curve.values()], **{**_line(number), "linewidth": 1})
        panel.set_xlabel("epoch")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(color="0.92")
        panel.set_ylim(bottom=0)
        panel.set_ylabel(label)
    _legend(figure, groups)
    return figure


def plot_cost(groups: Sequence[Group], metric: str) -> Figure:
    """What the metric costs: against the seconds and, where known, the memory of a training step; a point a run."""
    known = [run.peak_memory_bytes is not None for group in groups for run in group.runs.values()]
    panels = 2 if any(known) else 1
    figure = _figure(1 + 4 * panels, 3.2)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for panel, name, scale in zip(axes, ("step_seconds", "peak_memory_bytes"), (1e3, 2**-20), strict=False):
        for number, group in enumerate(groups):
            points = [
                (scale * getattr(run, name), 100 * run.metrics[metric])
                for run in group.runs.values()
                if getattr(run, name) is not None
            ]
            x, y = zip(*points, strict=True) if points else ((), ())
            panel.plot(x, y, color=_colour(number), marker=_marker(number), **_SEEDS)
        panel.set_ylabel(f"{metric}, %")
        panel.grid(color="0.92")
    axes[0].set_xlabel("milliseconds of a training step (median)")
    if panels == 2:
        axes[1].set_xlabel("MiB of a training step (peak)")
    _legend(figure, groups, lines=False)
    return figure


def plot_errors(groups: Sequence[Group]) -> Figure:
    """What the detections are, and how many objects were missed, per 100 objects; means over seeds."""
    figure = _figure(_labels_width(groups) + 8, 1.8 + _rows_height(groups))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    for number, group in enumerate(groups):
        start = 0.0
        for kind, (colour, hatch) in _KINDS.items():
            share = mean_share(group, kind)
            left.barh(number, share, left=start, color=colour, hatch=hatch, edgecolor="white", height=0.7)
            start += share
        right.barh(number, mean_share(group, ERRORS[-1]), color="0.3", height=0.7)
    left.set_yticks(range(len(groups)), [_wrap(group.label) for group in groups])
    left.set_ylim(len(groups) - 0.5, -0.5)
    left.set_xlabel("detections per 100 objects")
    right.set_xlabel("missed per 100 objects")
    left.set_xlim(0, 100)
    right.set_xlim(left=0)
    handles = [
        Patch(facecolor=colour, hatch=hatch, edgecolor="white", label=kind) for kind, (colour, hatch) in _KINDS.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


def mean_share(group: Group, kind: str) -> float:
    """Mean over the runs that recorded errors of a kind's count per 100 objects."""
    return 100 * summarize(error_shares(group, kind)).mean


def error_shares(group: Group, kind: str) -> list[float]:
    """A kind's count over the number of objects, for each run that recorded errors and has objects."""
    records = [run.errors for run in group.runs.values() if run.errors]
    return [errors[kind] / errors["objects"] for errors in records if errors["objects"]]


def to_picture(figure: Figure, name: str, title: str, note: str = "") -> Picture:
    """A figure as SVG, for the page, and PDF, for papers; the same figure gives the same bytes."""
    files = {}
    with matplotlib.rc_context({"svg.hashsalt": name, "pdf.fonttype": 42}):
        for suffix, metadata in (("svg", {"Date": None}), ("pdf", {"CreationDate": None})):
            content = io.BytesIO()
            figure.savefig(content, format=suffix, metadata=metadata)
            files[suffix] = content.getvalue()
    return Picture(name, title, files, note)


_SEEDS: dict[str, Any] = {"linestyle": "", "markersize": 6, "alpha": 0.7, "markeredgewidth": 0}
_MEAN: dict[str, Any] = {"color": "black", "linestyle": "", "marker": "|", "markersize": 14, "markeredgewidth": 1.5}


def _figure(width: float, height: float) -> Figure:
    """In inches. Not pyplot's: a program that shows figures of its own keeps them."""
    return Figure(figsize=(width, height), layout="constrained")


def _rows_height(groups: Sequence[Group]) -> float:
    """Inches for a row a configuration, so high that the longest label does not touch its neighbours'."""
    lines = max(_wrap(group.label).count("\n") + 1 for group in groups)
    return max(0.38, 0.08 + 0.17 * lines) * len(groups)


def _labels_width(groups: Sequence[Group]) -> float:
    """Inches for the labels of rows: a character is about 1/13 inch wide."""
    return 0.3 + max(len(line) for group in groups for line in _wrap(group.label).split("\n")) / 13


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _marker(number: int) -> str:
    return MARKERS[number % len(MARKERS)]


def _line(number: int) -> dict[str, Any]:
    style = STYLES[number // len(COLOURS) % len(STYLES)]
    return {"color": _colour(number), "marker": _marker(number), "markersize": 4, "linestyle": style}


def _seeds(panel: Axes, groups: Sequence[Group], metric: str) -> None:
    """A row a configuration: a point a seed, and a bar at their mean."""
    for number, group in enumerate(groups):
        values = [100 * value for value in group.values(metric).values()]
        panel.plot(values, [number] * len(values), color=_colour(number), marker=_marker(number), **_SEEDS)
        panel.plot([summarize(values).mean], [number], **_MEAN)
    panel.set_yticks(range(len(groups)), [_wrap(group.label) for group in groups])
    panel.set_ylim(len(groups) - 0.5, -0.5)
    panel.set_xlabel(f"{metric}, % (seeds; bar: mean)")
    panel.grid(axis="x", color="0.92")


def _band(panel: Axes, x: Sequence[float], y: Sequence[tuple[float, float, float]], number: int) -> None:
    """A line through the first of `y` and a band between the others, in percent."""
    middle, low, high = 100 * np.array(y).T
    panel.plot(x, middle, **_line(number))
    panel.fill_between(x, low, high, color=_colour(number), alpha=0.15, linewidth=0)


def _legend(figure: Figure, groups: Sequence[Group], baseline: Group | None = None, lines: bool = True) -> None:
    """Adds a legend below the panels, and to the figure the height that it takes."""
    # A character of the legend is about 1/11 inch wide, and a handle as wide as eight.
    room = int(11 * figure.get_figwidth())
    labels = [textwrap.fill(group.label + (" (baseline)" if group is baseline else ""), room - 8) for group in groups]
    handles = [
        Line2D([], [], label=label, **{**_line(number), **({} if lines else {"linestyle": ""})})
        for number, label in enumerate(labels)
    ]
    longest = max(len(line) for label in labels for line in label.split("\n"))
    columns = max(1, min(4, room // (8 + longest)))
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)
    height = legend.get_window_extent(FigureCanvasAgg(figure).get_renderer()).height / figure.dpi
    figure.set_figheight(figure.get_figheight() + height)


def _wrap(label: str) -> str:
    """A long label on several lines, one a setting."""
    return label.replace(", ", ",\n") if len(label) > 40 else label
