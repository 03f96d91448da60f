"""How the pooled output moves with the box: steps, kinks, and what is left when the content moves along.

Features are waves of at least four cells (:class:`detpool.visualization.features.Waves`), or those of a trained run for
an image, of variance 1, so all numbers are in standard deviations of the features. In float64; the box moves in steps
that are powers of two of a cell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from torch import Tensor

from detpool.visualization.features import CHANNELS, ImageFeatures, Waves
from detpool.visualization.style import COLOURS, WIDTH, Operator, title_of

SLIDE = (1.0, 0.0, 1.0, 0.0)
"""The change of (x1, y1, x2, y2) as the box slides to the right by a pixel."""
GROW = (0.0, 0.0, 1.0, 0.0)
"""The same as it grows to the right."""

_FINE = 2**-13  # of a cell
_RATIO = 16
_CELLS = 3  # that the box moves: roundings repeat after one
_MARGIN = 4  # cells of the map on each side of the box, which no operator leaves
_BATCH = 2048
_RANDOM_SHIFTS = 64
_DASHES = (0, (2, 2))
_JUMP = 10 * _FINE
"""16 waves of amplitude ``sqrt(2 / 16)`` and four cells change by at most ``8.9 _FINE`` in a step: more is a jump."""


@dataclass(frozen=True)
class Continuity:
    """One operator's output as a box moves by three cells.

    Let J(d) be the largest change of any output (bin and channel) between neighbours in steps of d pixels. Where
    outputs jump by j it tends to j, else to 0 as d does. It is measured at a fine step and one 16 times as large, and
    the line through both continued to d = 0: for a slope and a jump, ``J(d) = j + slope d``, that is exact.
    """

    shifts: Tensor
    """(T,) pixels, in fine steps."""
    values: Tensor
    """(T, C, PH, PW)"""
    jumps: tuple[float, float]
    """J at the coarse and at the fine step."""
    discontinuity: float
    """J continued to d = 0."""
    kink: float
    """The same of the derivative by the shift, a pixel, in steps of two: infinite where the output itself jumps."""
    shift_error: float
    """Mean of ``|op(features moved by u, box moved by u) - op(features, box)|`` over bins, channels and 64 shifts u,
    both right and down, within a cell. The features are moved exactly, by sampling their waves elsewhere: for an
    operator that saw the waves themselves it would be 0."""


def measure_continuity(
    operator: Operator,
    box: tuple[float, float, float, float],
    output_size: tuple[int, int],
    stride: float,
    *,
    motion: tuple[float, float, float, float] = SLIDE,
    position_sensitive: bool = False,
    seed: int = 0,
    features: Waves | ImageFeatures | None = None,
) -> Continuity:
    """Move a box in small steps and look at the output.

    Args:
        operator: ``op(features, rois, output_size, spatial_scale)``.
        box: x1, y1, x2, y2 in pixels. On waves its distance from the border is of no account: they extend beyond it.
        output_size: bins, (height, width).
        stride: pixels a cell.
        motion: the change of the box a pixel, `SLIDE` or `GROW`.
        position_sensitive: whether each bin has channels of its own.
        seed: of the waves, and of the moves of the content.
        features: what is pooled; None: waves.

    Raises:
        ValueError: If the box is too near to the border of an image.
    """
    content = Waves(CHANNELS, seed=seed) if features is None else features
    place, size = content.frame(box, stride, _MARGIN, _MARGIN + _CELLS)
    start = torch.tensor([0.0, *place], dtype=torch.float64)
    # Each bin's own channels are the same, so that all operators see the same content.
    copies = output_size[0] * output_size[1] if position_sensitive else 1
    still = content.map(size).repeat_interleave(copies, dim=1)

    shifts = torch.arange(int(_CELLS / _FINE) + 1, dtype=torch.float64) * (_FINE * stride)
    rois = start + shifts[:, None] * torch.tensor([0.0, *motion], dtype=torch.float64)
    values = torch.cat([operator(still, some, output_size, 1 / stride) for some in rois.split(_BATCH)])
    coarse, fine = values[::_RATIO].diff(dim=0), values.diff(dim=0)
    jumps = float(coarse.abs().max()), float(fine.abs().max())
    discontinuity = _at_zero(*jumps)
    kink = _at_zero(*(_largest_bend(c) / (r * _FINE * stride) for c, r in ((coarse, _RATIO), (fine, 1))))
    # Without a jump J(fine) is a 16th of J(coarse), with one about the same.
    if jumps[1] > jumps[0] / math.sqrt(_RATIO):
        kink = math.inf

    here = operator(still, start[None], output_size, 1 / stride)
    errors = []
    for right, down in content.shifts(_RANDOM_SHIFTS, seed):
        moved = start + torch.tensor([0, right, down, right, down], dtype=torch.float64) * stride
        there = operator(
            content.map(size, (right, down)).repeat_interleave(copies, dim=1), moved[None], output_size, 1 / stride
        )
        errors.append((there - here).abs().mean())
    return Continuity(shifts, values, jumps, discontinuity, kink, float(torch.stack(errors).mean()))


def _largest_bend(changes: Tensor) -> float:
    """The largest difference of two changes with one between them, in which a kink may lie anywhere."""
    return float((changes[2:] - changes[:-2]).abs().max())


def _at_zero(coarse: float, fine: float) -> float:
    """The line through J at two steps, continued to a step of zero; not below it."""
    return max(0.0, (_RATIO * fine - coarse) / (_RATIO - 1))


def plot_continuity(results: Mapping[str, Continuity]) -> Figure:
    """An output against the shift, above, and its derivative, below, a column an operator.

    All show the middle bin, and the channel that goes the longest way in all of them together.

    Args:
        results: by the operator's name.

    Raises:
        ValueError: there is nothing to draw.
    """
    if not results:
        raise ValueError("results: got none")
    figure = Figure(figsize=(WIDTH, 5.2), layout="constrained")
    panels = figure.subplots(2, len(results), sharex=True, sharey="row", squeeze=False)
    ways = torch.stack([_middle(result).diff(dim=0).abs().sum(0) for result in results.values()])
    channel = int(ways.sum(0).argmax())
    for (above, below), (name, result) in zip(panels.T, results.items(), strict=True):
        _draw(above, below, result.shifts.numpy(), _middle(result)[:, channel].numpy())
        above.set_title(title_of(name, 90 // len(results)), fontsize=11)
        kink = "∞" if math.isinf(result.kink) else f"{result.kink:.3f} / px"
        above.set_xlabel(f"discontinuity {result.discontinuity:.3f}\nshift error {result.shift_error:.3f}", fontsize=10)
        below.set_xlabel(f"kink {kink}", fontsize=10)
    panels[0, 0].set_ylabel("pooled output, sd", fontsize=10)
    panels[1, 0].set_ylabel("its derivative, sd / px", fontsize=10)
    figure.supxlabel("shift of the box, pixels", fontsize=10)
    if any(math.isinf(result.kink) for result in results.values()):
        jump = Line2D([], [], color=COLOURS[1], linewidth=1.0, linestyle=_DASHES, label="the output jumps")
        figure.legend(handles=[jump], loc="outside lower right", frameon=False, fontsize=10)
    return figure


def _middle(result: Continuity) -> Tensor:
    rows, columns = result.values.shape[2:]
    return result.values[:, :, rows // 2, columns // 2]


def _draw(above: Axes, below: Axes, shifts: NDArray[np.float64], values: NDArray[np.float64]) -> None:
    change = np.diff(values)
    jumps = np.abs(change) > _JUMP
    above.plot(shifts, values, color=COLOURS[0], linewidth=1.6)
    below.plot(shifts[:-1], np.where(jumps, np.nan, change / shifts[1]), color=COLOURS[1], linewidth=1.6)
    for at in shifts[:-1][jumps]:
        below.axvline(at, color=COLOURS[1], linewidth=1.0, linestyle=_DASHES)
    for panel in (above, below):
        panel.grid(color="0.92")
        panel.set_axisbelow(True)
        panel.tick_params(labelsize=9)
