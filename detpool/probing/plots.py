"""Plots of metrics and box errors of trained weights with other poolers and proposals."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from detpool.evaluation.box_errors import ERRORS
from detpool.visualization.style import COLOURS, WIDTH

_SIZES = {"all": "all objects", "s": "small: area < 32²", "m": "medium", "l": "large: area > 96²"}
_MARKERS = "osD^vPX*"


def plot_probe(table: pd.DataFrame) -> Figure:
    """Plots AP and mean signed errors, with one row of panels per object size and one color per pooler.

    Error bars show one standard error of the mean on each side. The x axis is the distance of the proposals if there
    are several distances, otherwise the pooler.

    Args:
        table: rows of `summarize`, each with `pooler`, `measure` ("noise", "iou" or "") and `distance`.

    Raises:
        ValueError: If the table is empty.
    """
    if table.empty:
        raise ValueError("table: got no row")
    sizes = [size for size in _SIZES if (table["size"] == size).any()]
    names = list(dict.fromkeys(table["pooler"]))
    several = table["distance"].nunique() > 1
    figure = Figure(figsize=(1.3 * WIDTH, 0.6 + 2.2 * len(sizes)), layout="constrained")
    panels = figure.subplots(len(sizes), 1 + len(ERRORS), sharex=True, squeeze=False)
    for row, size in zip(panels, sizes, strict=True):
        for number, name in enumerate(names):
            part = table[(table["size"] == size) & (table["pooler"] == name)].sort_values("distance")
            x = part["distance"] if several else [number] * len(part)
            look: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)], "marker": _MARKERS[number % len(_MARKERS)]}
            look |= {"markersize": 4, "linewidth": 1.4, "linestyle": "-" if several else "none"}
            row[0].plot(x, 100 * part["AP"], label=name, **look)
            for panel, error in zip(row[1:], ERRORS, strict=True):
                deviation = part[f"{error}_std"] / part["found"] ** 0.5
                panel.errorbar(x, part[error], deviation, capsize=2, **look)
        row[0].set_ylabel(_SIZES[size], fontsize=10)
        for panel, title in zip(row, ["AP, %", *(f"{error}, pixels" for error in ERRORS)], strict=True):
            _finish(panel, title if size == sizes[0] else "", zero=panel is not row[0])
    for panel in panels[-1]:
        if several:
            panel.set_xlabel(
                {"noise": "noise, in sides", "iou": "IoU of proposals"}[table["measure"].iloc[0]], fontsize=10
            )
        else:
            panel.set_xticks([])
            panel.set_xlim(-0.5, len(names) - 0.5)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False, fontsize=10)
    return figure


def _finish(panel: Axes, title: str, zero: bool) -> None:
    panel.set_title(title, fontsize=10)
    panel.grid(color="0.92")
    panel.set_axisbelow(True)
    panel.tick_params(labelsize=9)
    if zero:
        panel.axhline(0, color="0.5", linewidth=0.8)
