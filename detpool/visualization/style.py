"""What all plots share: colours, and figures that need no display."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

Operator = Callable[[Tensor, Tensor, tuple[int, int], float], Tensor]
"""``op(features, rois, output_size, spatial_scale)``, as in ``docs/design.md``."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
"""Distinct to the colour-blind (Okabe and Ito's)."""

WIDTH = 10.0
"""Inches; with `save` they are half again as wide as a README, in which 10 points are then easily read."""


def title_of(name: str, width: int = 28) -> str:
    """An operator's name such as `roi_align:aligned=True,sampling_ratio=1` as a title, in lines of `width` letters."""
    return textwrap.fill(name.replace(",", ", ").replace(":", ": "), width)


def save(figure: Figure, path: str | Path) -> None:
    """Write a PNG file and the folders above it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, pil_kwargs={"optimize": True})
