"""Metrics as tables for a terminal or a log file."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rich.box import SIMPLE_HEAD
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

_SUMMARY = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_KINDS = {"": "box", "mask_": "mask", "boundary_": "boundary"}  # prefix of the COCO metrics -> what they compare
_CLASS_COLUMNS = {
    "AP": "AP",
    "mask_AP": "mask AP",
    "boundary_AP": "boundary AP",
    "voc_AP": "VOC AP",
    "voc_AP11": "VOC AP11",
    "ECE": "ECE",
    "iou_ECE": "ECE of IoU",
}
_ROWS = 20  # classes per table; further tables are placed beside the first


def metrics_table(metrics: Mapping[str, float], title: str | None = None) -> RenderableType:
    """Format metrics such as those of `DetectionEvaluator.compute` as tables, in percent; `-` where undefined.

    The classes come first and the means last, so that the means remain visible at the end of a run.

    Args:
        metrics: numbers in 0 .. 1 by name; names that the evaluator does not use are left out.
        title: a line above the tables.
    """
    parts: list[RenderableType] = [Text(title, style="bold")] if title else []
    tables = (_class_tables, _costs_table, _calibration_table, _coco_table, _voc_table)
    parts += [table for make in tables if (table := make(metrics))]
    return Group(*parts)


def print_metrics(metrics: Mapping[str, float], title: str | None = None, console: Console | None = None) -> None:
    """Print `metrics_table`; in a file or pipe it has no colors and, unless COLUMNS is set, 80 columns."""
    (console or Console()).print(metrics_table(metrics, title))


def _coco_table(metrics: Mapping[str, float]) -> Table | None:
    limits = sorted(int(name[2:]) for name in metrics if name.startswith("AR") and name[2:].isdigit())
    columns = [*_SUMMARY, *(f"AR{limit}" for limit in limits)]
    rows = {kind: prefix for prefix, kind in _KINDS.items() if f"{prefix}AP" in metrics}
    if not rows:
        return None
    table = _table("COCO, %", *columns)
    for kind, prefix in rows.items():
        table.add_row(kind, *(_percent(metrics.get(prefix + column)) for column in columns))
    return table


def _costs_table(metrics: Mapping[str, float]) -> Table | None:
    rows = {kind: f"{prefix}dAP50/" for prefix, kind in _KINDS.items() if f"{prefix}dAP50/missed" in metrics}
    if not rows:
        return None
    table = _table("mended error", *(f"{kind} AP50 gained, %" for kind in rows))
    for name in (name.partition("/")[2] for name in metrics if name.startswith("dAP50/")):
        table.add_row(name.replace("_", " "), *(_percent(metrics.get(prefix + name)) for prefix in rows.values()))
    return table


def _calibration_table(metrics: Mapping[str, float]) -> Table | None:
    names = [name for name in ("ECE", "iou_ECE") if name in metrics]
    if not names:
        return None
    table = _table("calibration error, %", *(_CLASS_COLUMNS[name] for name in names))
    table.add_row("all classes", *(_percent(metrics[name]) for name in names))
    return table


def _voc_table(metrics: Mapping[str, float]) -> Table | None:
    if "voc_AP" not in metrics:
        return None
    table = _table("VOC, %", "AP (area)", "AP (11-point)")
    table.add_row("box", _percent(metrics["voc_AP"]), _percent(metrics["voc_AP11"]))
    return table


def _class_tables(metrics: Mapping[str, float]) -> RenderableType | None:
    columns = [column for column in _CLASS_COLUMNS if any(name.startswith(f"{column}/") for name in metrics)]
    names = [name.partition("/")[2] for name in metrics if columns and name.startswith(f"{columns[0]}/")]
    if not names:
        return None
    tables = []
    for start in range(0, len(names), _ROWS):
        table = _table("class", *(f"{_CLASS_COLUMNS[column]}, %" for column in columns))
        for name in names[start : start + _ROWS]:
            table.add_row(Text(name), *(_percent(metrics.get(f"{column}/{name}")) for column in columns))
        tables.append(table)
    return tables[0] if len(tables) == 1 else Columns(tables)


def _table(first: str, *others: str) -> Table:
    table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _percent(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{100 * value:.1f}"
