#!/usr/bin/env python
"""Draws the pictures of README.md and docs/operators.md.

python tools/docs_pictures.py    # docs/images/finding.png, from results/pooling_nuclei, and docs/images/operators/*.png
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Polygon
from torch import Tensor

from detpool import ops
from detpool.visualization import footprint, plot_footprints
from detpool.visualization.style import COLOURS, WIDTH, Operator, save

ROOT = Path(__file__).resolve().parents[1]
IMAGES, SUMMARY = ROOT / "docs/images", ROOT / "results/pooling_nuclei/summary.csv"

METRIC = "mask_AP75"
POOLINGS = {
    "pooler=roi_warp": ("RoIWarp", True),
    "pooler=roi_pool": ("RoIPool", True),
    "pooler=roi_align, pooler.reduction=max": ("RoIAlign, maximum", False),
    "pooler=roi_align, pooler.reduction=mean": ("RoIAlign", False),
    "pooler=pr_roi_pool": ("Precise RoI pooling", False),
}
"""Configurations of the study: their names in the picture, and whether the box is rounded."""
ROUNDED, EXACT = COLOURS[1], COLOURS[0]

BOX, STRIDE, BINS, CELLS = (13.2, 9.7, 61.4, 50.1), 8.0, (3, 3), (10, 11)
ANGLE = 25.0
"""Angle of the rotated box in degrees."""
OPERATORS = ("roi_pool", "roi_align", "roi_warp", "pr_roi_pool", "ps_roi_pool", "ps_roi_align")
"""Operators that are drawn with default arguments, except `aligned=True` and four points per bin if they have these."""
ROTATED = ("roi_align_rotated", "roi_pool_rotated")


def finding(summary: Path = SUMMARY) -> Figure:
    """Draws mask AP75 of the study of poolings on nuclei, mean and standard deviation over seeds, at each stride."""
    rows = pd.read_csv(summary)
    rows = rows[rows["metric"] == METRIC]
    figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
    panels = figure.subplots(1, rows["data"].nunique(), sharex=True, sharey=True, squeeze=False)[0]
    for panel, (data, found) in zip(panels, rows.groupby("data"), strict=True):
        by_name = found.set_index("configuration")
        for place, (name, (_, rounded)) in enumerate(POOLINGS.items()):
            mean, std = 100 * by_name.loc[name, ["mean", "std"]]
            panel.barh(place, mean, xerr=std, capsize=3, color=ROUNDED if rounded else EXACT)
            panel.text(1, place, f"{mean:.1f} ± {std:.1f}", va="center", color="white", fontsize=10)
        stride = data.partition("output_stride=")[2].rstrip(")")
        panel.set_title(f"features of stride {stride}", fontsize=11)
        panel.set_xlabel(f"mask AP75 of nuclei, {found['seeds'].max()} seeds", fontsize=10)
        panel.set_yticks(range(len(POOLINGS)), [label for label, _ in POOLINGS.values()])
        panel.spines[["top", "right"]].set_visible(False)
    handles = [Patch(color=ROUNDED, label="box rounded to cells"), Patch(color=EXACT, label="box not rounded")]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, frameon=False)
    return figure


def operators() -> dict[str, Figure]:
    """Draws what the bins of a box read, one picture per operator."""
    draw = partial(plot_footprints, width=WIDTH / 2)
    shown = {name: draw(_read({name: _as_shown(name)})) for name in OPERATORS}

    offsets = torch.randn(1, 2, *BINS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def deform(features: Tensor, rois: Tensor, size: tuple[int, int], scale: float) -> Tensor:
        return ops.deform_roi_pool(features, rois, offsets, size, scale, sampling_ratio=2)

    def deform_ps(features: Tensor, rois: Tensor, size: tuple[int, int], scale: float) -> Tensor:
        return ops.deform_ps_roi_pool(features, rois, offsets, size, scale)

    shown["deform_roi_pool"] = draw(_read({"deform_roi_pool": deform}))
    shown["deform_ps_roi_pool"] = draw(_read({"deform_ps_roi_pool": deform_ps}))
    shown |= {name: rotated(name) for name in ROTATED}
    grids = {
        f"spp, grid of {grid} x {grid}": footprint(ops.roi_pool, BOX, (grid, grid), CELLS, STRIDE) for grid in (1, 2, 3)
    }
    shown["spp"] = plot_footprints(grids)
    return shown


def _as_shown(name: str) -> Operator:
    arguments: dict[str, bool | int] = {}
    if name == "roi_align":
        arguments["aligned"] = True
    if name.endswith(("align", "warp", "align_rotated")):
        arguments["sampling_ratio"] = 2
    return partial(getattr(ops, name), **arguments)


def _read(operators: Mapping[str, Operator]) -> dict:
    return {name: footprint(operator, BOX, BINS, CELLS, STRIDE) for name, operator in operators.items()}


def rotated(name: str) -> Figure:
    """Draws what the bins of a rotated box read."""
    x1, y1, x2, y2 = BOX
    centre, size = torch.tensor([(x1 + x2) / 2, (y1 + y2) / 2]), torch.tensor([x2 - x1, y2 - y1])
    turned = torch.tensor([[0, *centre, *size, ANGLE]], dtype=torch.float64)

    def operator(features: Tensor, rois: Tensor, size: tuple[int, int], scale: float) -> Tensor:
        return _as_shown(name)(features * 1, turned, size, scale)  # a copy: there are no upright bins to record

    figure = plot_footprints(_read({name: operator}), width=WIDTH / 2)
    panel = figure.axes[0]
    angle = torch.deg2rad(torch.tensor(-ANGLE))  # y points down
    turn = torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]])
    rows, columns = BINS
    for i in range(rows):
        for j in range(columns):
            corners = (
                torch.tensor([[j, i], [j + 1, i], [j + 1, i + 1], [j, i + 1]]) / torch.tensor([columns, rows]) - 0.5
            )
            middle = (i, j) == (rows // 2, columns // 2)
            place = (corners * size) @ turn.T + centre
            panel.add_patch(
                Polygon(place.numpy(), fill=False, edgecolor=COLOURS[0], linewidth=2.2 if middle else 1, zorder=3)
            )
    panel.set_xlabel(panel.get_xlabel().partition(", off by")[0], fontsize=10)  # that part is about the upright box
    panel.set_xlim(0, 76)
    panel.set_ylim(62, 0)
    figure.set_figheight(5)
    return figure


def main() -> None:
    save(finding(), IMAGES / "finding.png")
    for name, figure in operators().items():
        save(figure, IMAGES / f"operators/{name}.png")


if __name__ == "__main__":
    main()
