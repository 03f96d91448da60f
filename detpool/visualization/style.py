"""Colors, sizes and file output that all plots share. Figures need no display."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

Operator = Callable[[Tensor, Tensor, tuple[int, int], float], Tensor]
"""``op(features, rois, output_size, spatial_scale)``, as in ``docs/design.md``."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
"""Distinguishable with color blindness (by Okabe and Ito)."""

WIDTH = 10.0
"""Width of a figure in inches. Saved with `save`, it is 1.5 times as wide as a README, where 10 points are readable."""


def title_of(name: str, width: int = 28) -> str:
    """Wrap an operator's name such as `roi_align:aligned=True,sampling_ratio=1` to lines of `width` letters."""
    return textwrap.fill(name.replace(",", ", ").replace(":", ": "), width)


def save(figure: Figure, path: str | Path) -> None:
    """Write a PNG file. Missing parent folders are created."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, pil_kwargs={"optimize": True})
