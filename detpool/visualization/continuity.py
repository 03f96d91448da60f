"""How the pooled output changes as the box moves: jumps, kinks, and the error if the content moves with the box.

Features are waves of at least four cells (:class:`detpool.visualization.features.Waves`), or those of an image in a
trained run. They have variance 1, so all numbers are in standard deviations of the features. Computed in float64; the
box moves in steps of 2^-13 and 2^-9 cells.
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
"""The change of (x1, y1, x2, y2) as the box slides to the right by one pixel."""
GROW = (0.0, 0.0, 1.0, 0.0)
"""The change of (x1, y1, x2, y2) as the box grows to the right by one pixel."""

_FINE = 2**-13  # step in cells
_RATIO = 16
_CELLS = 3  # cells that the box moves: roundings repeat after one
_MARGIN = 4  # cells of the map on each side of the box; no operator reads beyond
_BATCH = 2048
_RANDOM_SHIFTS = 64
_DASHES = (0, (2, 2))
_JUMP = 10 * _FINE
"""16 waves of amplitude ``sqrt(2 / 16)`` and four cells long change by at most ``8.9 _FINE`` a step: more is a jump."""


@dataclass(frozen=True)
class Continuity:
    """One operator's output as a box moves by three cells.

    Let J(d) be the largest change of any output (bin and channel) from one position to the next in steps of d pixels.
    As d tends to 0, J tends to j if an output jumps by j, and otherwise to 0. J is measured at a fine step and at one
    16 times as large, and extrapolated linearly to d = 0, which is exact for ``J(d) = j + slope d``.
    """

    shifts: Tensor
    """(T,), shifts of the box in pixels, in fine steps."""
    values: Tensor
    """(T, C, PH, PW), the output at each shift."""
    jumps: tuple[float, float]
    """J at the coarse and at the fine step."""
    discontinuity: float
    """J extrapolated to d = 0."""
    kink: float
    """The jump of the output's derivative with respect to the shift, per pixel, measured likewise over two steps;
    infinite if the output itself jumps."""
    shift_error: float
    """Mean of ``|op(features moved by u, box moved by u) - op(features, box)|`` over bins, channels and shifts u right
    and down within a cell (64 for waves, 16 for an image). Waves are moved exactly, by sampling them elsewhere: an
    operator that read the waves themselves would have an error of 0."""


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
    """Move a box in small steps and measure how the output changes.

    Args:
        operator: ``op(features, rois, output_size, spatial_scale)``.
        box: x1, y1, x2, y2 in pixels. Only for an image must it keep a distance from the border.
        output_size: number of bins, (height, width).
        stride: pixels per cell.
        motion: the change of the box per pixel of shift, `SLIDE` or `GROW`.
        position_sensitive: whether each bin reads its own channels.
        seed: seed of the waves and of the shifts of the content.
        features: the features to pool. Default: waves.

    Raises:
        ValueError: If the box is too close to the border of an image.
    """
    content = Waves(CHANNELS, seed=seed) if features is None else features
    place, size = content.frame(box, stride, _MARGIN, _MARGIN + _CELLS)
    start = torch.tensor([0.0, *place], dtype=torch.float64)
    # All bins get equal channels, so that position-sensitive operators see the same content as others.
    copies = output_size[0] * output_size[1] if position_sensitive else 1
    still = content.map(size).repeat_interleave(copies, dim=1)

    shifts = torch.arange(int(_CELLS / _FINE) + 1, dtype=torch.float64) * (_FINE * stride)
    rois = start + shifts[:, None] * torch.tensor([0.0, *motion], dtype=torch.float64)
    values = torch.cat([operator(still, some, output_size, 1 / stride) for some in rois.split(_BATCH)])
    coarse, fine = values[::_RATIO].diff(dim=0), values.diff(dim=0)
    jumps = float(coarse.abs().max()), float(fine.abs().max())
    discontinuity = _at_zero(*jumps)
    kink = _at_zero(*(_largest_bend(c) / (r * _FINE * stride) for c, r in ((coarse, _RATIO), (fine, 1))))
    # Without a jump, J(fine) is a 16th of J(coarse); with a jump, both are about equal.
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
    """Return the largest difference between changes two steps apart; a kink may lie anywhere in the step between."""
    return float((changes[2:] - changes[:-2]).abs().max())


def _at_zero(coarse: float, fine: float) -> float:
    """Extrapolate J linearly from two steps to a step of 0; a negative result becomes 0."""
    return max(0.0, (_RATIO * fine - coarse) / (_RATIO - 1))


def plot_continuity(results: Mapping[str, Continuity]) -> Figure:
    """Plot an output against the shift (top row) and its derivative (bottom row), with one column per operator.

    All columns show the middle bin and the same channel, the one with the largest total variation over all operators.

    Args:
        results: results by the operator's name.

    Raises:
        ValueError: If `results` is empty.
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
