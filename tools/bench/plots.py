"""Results as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from detpool.visualization.style import COLOURS, save

from .output import in_words
from .run import Row
from .workloads import BIN_AREA, BINS, CHANNELS, ROIS

STYLES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)))
MARKERS = ("o", "D", "s", "^", "v", "P", "X", "*")


def plot_times(path: Path, rows: Sequence[Row]) -> None:
    """Median times, a line for each operator of each workload and a panel for each direction.

    Bars reach from the 20th to the 80th percentile; on the right stands the speed-up of the first series of ours.

    Args:
        path: PNG file.
        rows: Those not timed are left out; each number of threads and dtype gets panels of its own.
    """
    timed = [row for row in rows if row.status == "timed"]
    groups = list(dict.fromkeys((row.dtype, row.threads) for row in timed))
    directions = list(dict.fromkeys(row.direction for row in timed))
    series = list(dict.fromkeys(map(_series, timed)))
    lines = list(dict.fromkeys((row.workload, row.operator) for row in timed))
    size = (2 + 5.2 * len(directions), 1.3 + len(groups) * (0.6 + 0.42 * len(lines)))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(groups), len(directions), sharey="row", squeeze=False)
    for panel_row, (dtype, threads) in zip(panels, groups, strict=True):
        for panel, direction in zip(panel_row, directions, strict=True):
            panel.set_title(f"{direction}, {dtype}, {in_words(threads, 'thread')}", fontsize=10)
            here = [row for row in timed if (row.dtype, row.threads, row.direction) == (dtype, threads, direction)]
            for index, name in enumerate(series):
                # Side by side a little, so that equal times do not hide each other.
                beside = 0.5 * (index / max(len(series) - 1, 1) - 0.5)
                rows = [row for row in here if _series(row) == name]
                y = [lines.index((row.workload, row.operator)) + beside for row in rows]
                times = np.array([(row.p20_ms, row.median_ms, row.p80_ms) for row in rows], float).reshape(-1, 3)
                spread = np.diff(times).clip(min=0).T
                panel.errorbar(times[:, 1], y, xerr=spread, linestyle="", elinewidth=1, markersize=5, **_look(index))
            _finish_panel(panel, here, lines)
    for panel in panels[-1]:
        panel.set_xlabel("ms (median, bar: p20 to p80)")
    handles = [Line2D([], [], linestyle="", label=name, **_look(index)) for index, name in enumerate(series)]
    own = next((name for name in series if name.startswith("detpool")), None)
    title = f"right of the panels: speed of {own}, in multiples of the named baseline's" if own else None
    columns = min(len(series), 3)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, title=title)
    save(figure, path)


def _finish_panel(panel: Axes, rows: Sequence[Row], lines: Sequence[tuple[str, str]]) -> None:
    """Axes, names of the lines, and for each the speed-up of the first row of ours."""
    ours: dict[int, Row] = {}
    for row in rows:
        if row.implementation.startswith("detpool") and row.speedup:
            ours.setdefault(lines.index((row.workload, row.operator)), row)
    for place, row in ours.items():
        text, axes = f"{row.speedup:.2g}x {row.baseline.split()[-1]}", ("axes fraction", "data")
        panel.annotate(text, (1, place), (4, 0), axes, "offset points", va="center", fontsize=8)
    for number in range(1, len(lines)):
        if lines[number][0] != lines[number - 1][0]:
            panel.axhline(number - 0.5, color="0.6", linewidth=0.8)
    panel.set_xscale("log")
    _plain_numbers(panel.xaxis)
    panel.set_yticks(range(len(lines)), ["  ".join(line) for line in lines])
    panel.set_ylim(len(lines) - 0.5, -0.5)
    panel.grid(axis="x", which="both", color="0.9")
    panel.set_axisbelow(True)


def plot_scaling(path: Path, found: Sequence[tuple[float, Row]], direction: str) -> None:
    """Median time against the number of RoIs, channels and bins and the area of a bin, 2 x 2 panels, both axes log.

    Args:
        path: PNG file.
        found: Of all points, the value of the quantity that the row's workload is named for, and the row.
        direction: Only its rows are drawn.
    """
    figure = Figure(figsize=(10, 7.5), layout="constrained")
    timed = [(value, row) for value, row in found if row.direction == direction and row.status == "timed"]
    operators = list(dict.fromkeys(row.operator for _, row in timed))
    series = list(dict.fromkeys(_series(row) for _, row in timed))
    panels = list(figure.subplots(2, 2, sharey=True).flat)
    for panel, quantity in zip(panels, (ROIS, CHANNELS, BINS, BIN_AREA), strict=True):
        here = [(value, row) for value, row in timed if row.workload == quantity]
        for (i, operator), (j, name) in product(enumerate(operators), enumerate(series)):
            rows = [(value, row) for value, row in here if (row.operator, _series(row)) == (operator, name)]
            curve = sorted((value, row.median_ms, row.p20_ms, row.p80_ms) for value, row in rows)
            x, median, p20, p80 = np.array(curve, float).reshape(-1, 4).T
            panel.plot(x, median, linestyle=STYLES[j % 5], markersize=4, **_look(i))
            panel.fill_between(x, p20, p80, color=COLOURS[i % 8], alpha=0.15, linewidth=0)
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_xlabel(quantity)
        _plain_numbers(panel.yaxis)
        measured = sorted({value for value, _ in here})
        panel.set_xticks(measured, [f"{value:g}" for value in measured])
        panel.xaxis.set_minor_locator(NullLocator())
        panel.grid(which="both", color="0.92")
        if panel.get_subplotspec().is_first_col():
            panel.set_ylabel("ms (median, band: p20 to p80)")
    for panel in panels:  # whose common limits are known now: a guide of slope 1 through the middle
        x, y = np.prod(panel.get_xlim()) ** 0.5, np.prod(panel.get_ylim()) ** 0.5
        panel.axline((x, y), (1.01 * x, 1.01 * y), color="0.85", linewidth=3, zorder=0)
    handles = [Line2D([], [], markersize=4, label=operator, **_look(i)) for i, operator in enumerate(operators)]
    handles += [Line2D([], [], color="0.3", linestyle=STYLES[j % 5], label=name) for j, name in enumerate(series)]
    handles.append(Line2D([], [], color="0.75", linewidth=3, label="proportional"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 4), frameon=False)
    figure.suptitle(f"{direction}, {timed[0][1].dtype}, {in_words(timed[0][1].threads, 'thread')}")
    save(figure, path)


def _look(index: int) -> dict[str, Any]:
    return {"color": COLOURS[index % 8], "marker": MARKERS[index % 8]}


def _plain_numbers(axis: Axis) -> None:
    """1, 2, 5, 10, 20... instead of powers of ten."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _series(row: Row) -> str:
    return f"{row.implementation}, {row.layout}" if row.implementation.startswith("detpool") else row.implementation
