"""Results as pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from detpool.visualization.style import COLOURS

from .run import Row
from .scaling import BIN_AREA, BINS, CHANNELS, ROIS

STYLES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)))
MARKERS = ("o", "D", "s", "^", "v", "P", "X", "*")


def plot_times(path: Path, rows: Sequence[Row]) -> None:
    """Median times, a line for each operator of each workload and a panel for each direction.

    Bars reach from the 20th to the 80th percentile; on the right stands the speed-up of the first series of ours.

    Args:
        path: PNG file.
        rows: those not timed are left out; each number of threads and dtype gets panels of its own.
    """
    timed = [row for row in rows if row.status == "timed"]
    groups = _unique((row.dtype, row.threads) for row in timed)
    directions = _unique(row.direction for row in timed)
    series = _unique(_series(row) for row in timed)
    lines = _unique((row.workload, row.operator) for row in timed)
    figure, panels = plt.subplots(
        len(groups),
        len(directions),
        figsize=(2 + 5.2 * len(directions), 1.3 + len(groups) * (0.6 + 0.42 * len(lines))),
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    for panel_row, group in zip(panels, groups, strict=True):
        for panel, direction in zip(panel_row, directions, strict=True):
            here = [r for r in timed if (r.dtype, r.threads) == group and r.direction == direction]
            _times_panel(panel, here, lines, series)
            panel.set_title(f"{direction}, {group[0]}, {group[1]} thread{'s' if group[1] > 1 else ''}", fontsize=10)
    for panel in panels[-1]:
        panel.set_xlabel("ms (median, bar: p20 to p80)")
    handles = [
        Line2D([], [], linestyle="", marker=MARKERS[i % 8], color=COLOURS[i % 8], label=name)
        for i, name in enumerate(series)
    ]
    own = next((name for name in series if name.startswith("detpool")), None)
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(len(series), 3),
        frameon=False,
        title=f"right of the panels: speed of {own}, in multiples of the named baseline's" if own else None,
    )
    _save(figure, path)


def _times_panel(panel: Axes, rows: Sequence[Row], lines: Sequence[tuple[str, str]], series: Sequence[str]) -> None:
    for number, line in enumerate(lines):
        here = [row for row in rows if (row.workload, row.operator) == line]
        for row in here:
            assert row.median_ms is not None
            assert row.p20_ms is not None
            assert row.p80_ms is not None
            index = series.index(_series(row))
            # Side by side a little, so that equal times do not hide each other.
            y = number + 0.5 * (index / max(len(series) - 1, 1) - 0.5)
            spread = [[max(row.median_ms - row.p20_ms, 0)], [max(row.p80_ms - row.median_ms, 0)]]
            panel.errorbar(
                row.median_ms,
                y,
                xerr=spread,
                linestyle="",
                elinewidth=1,
                color=COLOURS[index % 8],
                marker=MARKERS[index % 8],
                markersize=5,
            )
        first = next(
            (row for row in here if row.speedup is not None and row.implementation.startswith("detpool")), None
        )
        if first is not None:
            text = f"{first.speedup:.2g}x {first.baseline.split()[-1]}"
            panel.annotate(
                text,
                (1, number),
                (4, 0),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
        if number and line[0] != lines[number - 1][0]:
            panel.axhline(number - 0.5, color="0.6", linewidth=0.8)
    panel.set_xscale("log")
    _plain_numbers(panel.xaxis)
    panel.set_yticks(range(len(lines)), [f"{workload}  {operator}" for workload, operator in lines])
    panel.set_ylim(len(lines) - 0.5, -0.5)
    panel.grid(axis="x", which="both", color="0.9")
    panel.set_axisbelow(True)


def plot_scaling(path: Path, rows: Sequence[Row], values: Sequence[float], direction: str) -> None:
    """Median time against the number of RoIs, channels and bins and the area of a bin, 2 x 2 panels, both axes log.

    Args:
        path: PNG file.
        rows: of all points.
        values: for each row, that of the quantity which its workload is named for.
        direction: only its rows are drawn.
    """
    figure, panels = plt.subplots(2, 2, figsize=(10, 7.5), sharey=True, layout="constrained")
    pairs = zip(rows, values, strict=True)
    timed = [(row, value) for row, value in pairs if row.direction == direction and row.status == "timed"]
    operators = _unique(row.operator for row, _ in timed)
    series = _unique(_series(row) for row, _ in timed)
    for panel, quantity in zip(panels.flat, (ROIS, CHANNELS, BINS, BIN_AREA), strict=True):
        for i, operator in enumerate(operators):
            for j, name in enumerate(series):
                curve = sorted(
                    (value, row.median_ms, row.p20_ms, row.p80_ms)
                    for row, value in timed
                    if row.workload == quantity and row.operator == operator and _series(row) == name
                )
                if not curve:
                    continue
                x, median, p20, p80 = zip(*curve, strict=True)
                panel.plot(
                    x, median, linestyle=STYLES[j % 5], color=COLOURS[i % 8], marker=MARKERS[i % 8], markersize=4
                )
                panel.fill_between(x, p20, p80, color=COLOURS[i % 8], alpha=0.15, linewidth=0)
        panel.set_xscale("log")
        panel.set_yscale("log")
        _proportional(panel)
        panel.set_xlabel(quantity)
        _plain_numbers(panel.yaxis)
        measured = sorted({value for row, value in timed if row.workload == quantity})
        panel.set_xticks(measured, [f"{value:g}" for value in measured])
        panel.xaxis.set_minor_locator(NullLocator())
        panel.grid(which="both", color="0.92")
    for panel in panels[:, 0]:
        panel.set_ylabel("ms (median, band: p20 to p80)")
    handles = [
        Line2D([], [], color=COLOURS[i % 8], marker=MARKERS[i % 8], markersize=4, label=operator)
        for i, operator in enumerate(operators)
    ]
    handles += [Line2D([], [], color="0.3", linestyle=STYLES[j % 5], label=name) for j, name in enumerate(series)]
    handles.append(Line2D([], [], color="0.75", linewidth=3, label="proportional"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 4), frameon=False)
    figure.suptitle(f"{direction}, {rows[0].dtype}, {rows[0].threads} thread{'s' if rows[0].threads > 1 else ''}")
    _save(figure, path)


def _plain_numbers(axis: Axis) -> None:
    """1, 2, 5, 10, 20... instead of powers of ten."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _proportional(panel: Axes) -> None:
    """A guide of slope 1 through the middle of the panel."""
    (x0, x1), (y0, y1) = panel.get_xlim(), panel.get_ylim()
    slope = (y0 * y1) ** 0.5 / (x0 * x1) ** 0.5
    panel.plot((x0, x1), (slope * x0, slope * x1), color="0.85", linewidth=3, zorder=0)
    panel.set_xlim(x0, x1)
    panel.set_ylim(y0, y1)


def _series(row: Row) -> str:
    return f"{row.implementation}, {row.layout}" if row.implementation.startswith("detpool") else row.implementation


def _unique(values: Iterable) -> list:
    return list(dict.fromkeys(values))


def _save(figure: plt.Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
