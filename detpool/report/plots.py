"""The plots of a report: vector graphics in which a configuration always has the same color and marker."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import pandas as pd
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from detpool.report.groups import Section
from detpool.report.statistics import Difference, compare
from detpool.report.tables import IOUS, error_shares, prefix_of
from detpool.visualization.style import COLOURS

Look = Mapping[str, Any]
"""Color, marker and line style."""
# Beyond eight configurations the colors repeat with another line style.
_LOOKS = cycler(linestyle=["-", "--", ":", "-."]) * cycler(color=COLOURS, marker=list("oDs^vPX*"))
_POINTS: Look = {"linestyle": "", "markersize": 6, "alpha": 0.7, "markeredgewidth": 0}
_MEAN: Look = {"color": "black", "linestyle": "", "marker": "|", "markersize": 14, "markeredgewidth": 1.5}
_SIZES = {"s": "small: below 32² pixels", "m": "medium", "l": "large: above 96² pixels"}
_COSTS = {
    "step_ms": "milliseconds per training step",
    "inference_ms": "milliseconds of inference per batch",
    "step_mib": "MiB per training step (peak)",
}
_ERRORS = {
    "correct": ("#009E73", ""),
    "localisation": ("#0072B2", "//"),
    "classification": ("#D55E00", "\\\\"),
    "both": ("#CC79A7", "xx"),
    "duplicate": ("#E69F00", ".."),
    "background": ("#999999", ""),
}
"""Color and hatch by the kind of a detection or error."""


@dataclass(frozen=True)
class Picture:
    """A picture of a report.

    Attributes:
        name: name of the files, without a suffix.
        title: what the picture shows.
        files: the content of the files by suffix (svg, pdf, png), first the one that the page shows.
        note: how to read the picture; may be empty.
    """

    name: str
    title: str
    files: Mapping[str, bytes]
    note: str = ""


def plot_metric(section: Section, metric: str) -> Picture:
    """Plots the metric of every seed and its mean, beside the differences from the baseline with intervals."""
    figure, (left, *others) = _panels(2 if section.others else 1, rows=section.drawn(metric))
    _seeds(left, section, metric)
    for right in others:
        for row, (label, look) in enumerate(_looks(section.drawn(metric)).items()):
            if label == section.baseline:
                right.text(0.5, row, "baseline", transform=right.get_yaxis_transform(), ha="center", va="center")
            else:
                _interval(right, row, compare(section.gains(label, metric)), look)
        right.axvline(0, color="0.5", linewidth=1)
        right.set_xlabel("points above the baseline (line: 95 % interval)")
    name = "".join(character if character.isalnum() else "_" for character in metric)
    return _picture(figure, name, f"{metric} of every seed")


def plot_across(sections: Sequence[Section], metric: str) -> Picture:
    """Plots the differences from the baseline with intervals, for each of several sections."""
    shown = [label for label in sections[0].drawn(metric) if label != sections[0].baseline]
    figure, (panel,) = _panels(1, rows=shown, height=0.2 + 0.18 * len(sections))
    looks = _looks(section.value for section in sections)
    for number, (section, look) in enumerate(zip(sections, looks.values(), strict=True)):
        for row, label in enumerate(shown):
            if label in section.runs:
                y = row + 0.6 * ((number + 0.5) / len(sections) - 0.5)
                _interval(panel, y, compare(section.gains(label, metric)), look)
    panel.axvline(0, color="0.5", linewidth=1)
    panel.set_xlabel("points above the baseline (line: 95 % interval)")
    _legend(figure, looks)
    return _picture(figure, "differences", f"{metric} above {sections[0].baseline}")


def plot_iou(section: Section, metric: str) -> Picture | None:
    """Plots AP over IoU thresholds, and its difference from the baseline."""
    prefix, names = prefix_of(metric), {f"{prefix_of(metric)}AP@{iou}": float(iou) for iou in IOUS}
    if not all(map(section.has, names)):
        return None
    figure, (left, *others) = _panels(2 if section.others else 1)
    for label, look in _looks(section.drawn(metric)).items():
        values = section.table.loc[label, list(names)]
        mean, std = values.mean(), values.std()
        _band(left, names.values(), pd.DataFrame([mean, mean - std, mean + std]), look)
        for right in others if label != section.baseline else ():
            found = {name: compare(section.gains(label, name)) for name in names}
            _band(
                right,
                names.values(),
                pd.DataFrame({n: (each.difference, *each.shown) for n, each in found.items()}),
                look,
            )
    left.set_ylabel(f"{prefix}AP, %\n(band: standard deviation)")
    left.set_ylim(bottom=0)
    for right in others:
        right.axhline(0, color="0.5", linewidth=1)
        right.set_ylabel("points above the baseline\n(band: 95 % interval)")
    for panel in (left, *others):
        panel.set_xlabel("IoU threshold")
    _legend(figure, _looks(section.drawn(metric)), section.baseline)
    note = "Where on the left lines lie on each other, the right shows what sets them apart at high IoU."
    return _picture(figure, "iou", "AP over IoU thresholds", note)


def plot_sizes(section: Section, metric: str) -> Picture | None:
    """Plots AP by object size, with one panel per size."""
    sizes = {f"{prefix_of(metric)}AP{size}": title for size, title in _SIZES.items()}
    shown = {name: title for name, title in sizes.items() if section.has(name)}
    if not shown:
        return None
    figure, panels = _panels(len(shown), rows=section.drawn(metric))
    for panel, (name, title) in zip(panels, shown.items(), strict=True):
        _seeds(panel, section, name)
        panel.set_title(title, fontsize=10)
    return _picture(figure, "sizes", "AP by size of the objects")


def plot_errors(section: Section, metric: str) -> Picture | None:
    """Plots correct detections, errors by kind and missed objects, per 100 objects; means over seeds."""
    if not section.has("errors/objects"):
        return None
    figure, (left, right) = _panels(2, rows=section.drawn(metric), widths=(3, 1))
    means = 100 * error_shares(section).groupby("configuration", sort=False).mean().loc[section.drawn(metric)]
    start, rows = 0 * means["correct"], range(len(means))
    for kind, (color, hatch) in _ERRORS.items():
        left.barh(rows, means[kind], left=start, color=color, hatch=hatch, edgecolor="white", height=0.7, label=kind)
        start = start + means[kind]
    right.barh(rows, means["missed"], color="0.3", height=0.7)
    left.set_xlabel("detections per 100 objects")
    right.set_xlabel("missed per 100 objects")
    left.set_xlim(0, 100)
    right.set_xlim(left=0)
    figure.legend(loc="upper center", bbox_to_anchor=(0.5, 0), ncols=len(_ERRORS), frameon=False)
    note = (
        "Of boxes; of each class the n best-scored detections, n being its number of objects. Correct: IoU >= 0.5 with "
        "an object of its class that no other has; duplicate: that another has; classification: with an object of "
        "another class; localisation: 0.1 <= IoU < 0.5 with one of its class; both: with one of another class; "
        "background: none. Missed: objects that no detection accounts for by being correct or nearly so."
    )
    return _picture(figure, "errors", "Kinds of errors of boxes", note)


def plot_curves(section: Section, metric: str) -> Picture | None:
    """Plots the training loss and the validation metric over epochs, if recorded, with one line per seed."""
    titles = {"train/loss": "training loss (mean of the epoch)", f"val/{metric}": f"{metric} of the validation set, %"}
    shown = [name for name in titles if any(name in run.curves for run in section.all_runs)]
    if not shown:
        return None
    figure, panels = _panels(len(shown))
    for panel, name in zip(panels, shown, strict=True):
        for label, look in _looks(section.drawn(metric)).items():
            for run in section.runs[label].values():
                curve = run.curves.get(name, pd.Series(dtype=float)).dropna() * (1 if name == "train/loss" else 100)
                panel.plot(curve.index, curve, markersize=4, linewidth=1, **look)
        panel.set_xlabel("epoch")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.set_ylim(bottom=0)
        panel.set_ylabel(titles[name])
    _legend(figure, _looks(section.drawn(metric)))
    return _picture(figure, "training", "Training, a line per seed")


def plot_cost(section: Section, metric: str, costs: pd.DataFrame) -> Picture | None:
    """Plots the metric over the time and memory of a training step and of inference, with one point per run.

    Args:
        costs: the table of `costs.compare`; configurations that are not in it are not shown.
    """
    drawn = {label: look for label, look in _looks(section.drawn(metric)).items() if label in costs.index}
    if not drawn:
        return None
    figure, panels = _panels(len(_COSTS))
    for panel, (name, title) in zip(panels, _COSTS.items(), strict=True):
        for label, look in drawn.items():
            values = 100 * section.values(label, metric)
            panel.plot([costs[name][label]] * len(values), values, **{**look, **_POINTS})
        panel.set_xlabel(title)
        panel.set_ylabel(f"{metric}, %")
    _legend(figure, {label: {**look, "linestyle": ""} for label, look in drawn.items()})
    return _picture(figure, "cost", f"{metric} and what it costs")


def _picture(figure: Figure, name: str, title: str, note: str = "") -> Picture:
    """Saves a figure as SVG, for the page, and PDF, for papers; the same figure gives the same bytes."""
    files = {}
    with matplotlib.rc_context({"svg.hashsalt": name, "pdf.fonttype": 42}):
        for suffix, metadata in (("svg", {"Date": None}), ("pdf", {"CreationDate": None})):
            content = io.BytesIO()
            # Tight: as large as labels and legends require.
            figure.savefig(content, format=suffix, metadata=metadata, bbox_inches="tight")
            files[suffix] = content.getvalue()
    return Picture(name, title, files, note)


def _panels(
    number: int, rows: Iterable[str] = (), height: float = 0.38, widths: Sequence[float] | None = None
) -> tuple[Figure, list[Axes]]:
    """Makes panels side by side; with `rows`, each has one row of at least `height` inches per label.

    The figure is not registered with pyplot, so that it does not interfere with figures of the calling program.
    """
    labels = [label.replace(", ", ",\n") if len(label) > 40 else label for label in rows]
    lines = max((label.count("\n") + 1 for label in labels), default=0)
    inside = max(height, 0.08 + 0.17 * lines) * len(labels) if labels else 2.6
    figure = Figure(figsize=(4.3 * number, inside + 0.5))
    grid = {"wspace": 0.08 if labels else 0.35, "width_ratios": widths}
    grid |= {"left": 0, "right": 1, "top": 1, "bottom": 0.5 / (inside + 0.5)}
    panels = list(figure.subplots(1, number, sharey=bool(labels), squeeze=False, gridspec_kw=grid)[0])
    for panel in panels:
        panel.grid(axis="x" if labels else "both", color="0.92")
        panel.set_axisbelow(True)
    if labels:
        panels[0].set_yticks(range(len(labels)), labels)
        panels[0].set_ylim(len(labels) - 0.5, -0.5)
    return figure, panels


def _looks(labels: Iterable[str]) -> dict[str, Look]:
    return dict(zip(labels, itertools.cycle(_LOOKS), strict=False))


def _seeds(panel: Axes, section: Section, metric: str) -> None:
    """Draws one row per configuration: a point per seed, and a bar at their mean."""
    for row, (label, look) in enumerate(_looks(section.drawn(metric)).items()):
        values = 100 * section.values(label, metric)
        panel.plot(values, [row] * len(values), **{**look, **_POINTS})
        panel.plot([values.mean()], [row], **_MEAN)
    panel.set_xlabel(f"{metric}, % (seeds; bar: mean)")


def _interval(panel: Axes, y: float, found: Difference, look: Look) -> None:
    """Draws a mean difference and its interval, in percentage points."""
    panel.plot([100 * end for end in found.shown], [y, y], color=look["color"], linewidth=2)
    panel.plot([100 * found.difference], [y], color=look["color"], marker=look["marker"])


def _band(panel: Axes, x: Iterable[float], rows: pd.DataFrame, look: Look) -> None:
    """Draws the first of three rows as a line and a band between the others, in percent."""
    middle, low, high = 100 * rows.to_numpy()
    panel.plot(list(x), middle, markersize=4, **look)
    panel.fill_between(list(x), low, high, color=look["color"], alpha=0.15, linewidth=0)


def _legend(figure: Figure, looks: Mapping[str, Look], baseline: str = "") -> None:
    """Draws a legend below the panels in as many columns as fit: 1/11 inch per character, a handle as wide as eight."""
    titles = [f"{label} (baseline)" if label == baseline else label for label in looks]
    handles = [
        Line2D([], [], markersize=4, label=title, **look) for title, look in zip(titles, looks.values(), strict=True)
    ]
    columns = min(4, int(11 * figure.get_figwidth()) // (8 + max(map(len, titles))))
    figure.legend(handles=handles, ncols=max(1, columns), loc="upper center", bbox_to_anchor=(0.5, 0), frameon=False)
