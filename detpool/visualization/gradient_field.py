"""The direction in which gradients move a box, from positions around a target, for a loss on the pooled features.

A box of fixed size is placed at offsets d from the target box. The loss is half the mean squared difference between the
features pooled there and those pooled at the target,

    L(d) = 1/2 mean (op(F, box + d) - op(F, box))^2,

over bins and channels, with the waves F of :class:`detpool.visualization.features.Waves` or the features of an image.
It is 0 at the target, and its gradient with respect to the box would move a box that is refined through its pooled
features. The gradient of a shift is the sum of the gradients of both edges along an axis.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from detpool.visualization.features import CHANNELS, ImageFeatures, Waves
from detpool.visualization.style import COLOURS, WIDTH, Operator, title_of

_MARGIN = 4  # cells of the map around all positions
_ARROWS = 13  # along each axis of a picture


@dataclass(frozen=True)
class GradientField:
    """Loss and gradient at n x n positions."""

    offsets: Tensor
    """(n,), offsets from the target in pixels, of rows and of columns"""
    loss: Tensor
    """(n, n), squared standard deviations of the features"""
    gradient: Tensor
    """(n, n, 2): d loss / d (right, down), per pixel"""

    @property
    def _cosine(self) -> Tensor:
        """Cosine of the angle between the negative gradient and the direction to the target, except at the target."""
        down, right = torch.meshgrid(-self.offsets, -self.offsets, indexing="ij")
        way = torch.stack([right, down], dim=2)
        away = way.norm(dim=2) > 0
        return torch.cosine_similarity(-self.gradient[away], way[away], dim=1)

    @property
    def alignment(self) -> float:
        """Mean cosine of the angle between the negative gradient and the direction to the target; 1 is ideal."""
        return float(self._cosine.mean())

    @property
    def astray(self) -> float:
        """Fraction of positions where the negative gradient points away from the target or is zero."""
        return float((self._cosine <= 0).double().mean())


def gradient_field(
    operator: Operator,
    box: tuple[float, float, float, float],
    output_size: tuple[int, int],
    stride: float,
    *,
    reach: float = 3.0,
    positions: int = 49,
    position_sensitive: bool = False,
    seed: int = 0,
    features: Waves | ImageFeatures | None = None,
) -> GradientField:
    """Compute loss and gradient of a box at positions around a target.

    Args:
        operator: ``op(features, rois, output_size, spatial_scale)``.
        box: the target, x1, y1, x2, y2 in pixels. Only for an image must it keep a distance from the border.
        output_size: number of bins, (height, width).
        stride: pixels per cell.
        reach: largest offset on each side of the target, in cells.
        positions: n, the number of positions along each axis; an odd number includes the target.
        position_sensitive: whether each bin reads its own channels.
        seed: seed of the waves.
        features: the features to pool. Default: waves.

    Raises:
        ValueError: If the operator has no gradient with respect to boxes, ``positions`` is less than 2, or the box is
            too close to the border of an image.
    """
    if positions < 2:
        raise ValueError(f"positions must be at least 2, got {positions}")
    margin = _MARGIN + math.ceil(reach)
    content = Waves(CHANNELS, seed=seed) if features is None else features
    place, size = content.frame(box, stride, margin, margin)
    copies = output_size[0] * output_size[1] if position_sensitive else 1
    still = content.map(size).repeat_interleave(copies, dim=1)

    target = torch.tensor([0.0, *place], dtype=torch.float64)
    # Not linspace: its middle is not exactly 0.
    offsets = (2 * torch.arange(positions, dtype=torch.float64) - (positions - 1)) / (positions - 1) * reach * stride
    down, right = torch.meshgrid(offsets, offsets, indexing="ij")
    moves = torch.stack([right, down], dim=2).flatten(0, 1).requires_grad_()
    rois = target + torch.cat([torch.zeros(len(moves), 1, dtype=torch.float64), moves, moves], dim=1)
    pooled = operator(still, rois, output_size, 1 / stride)
    if not pooled.requires_grad:
        raise ValueError("the operator gives boxes no gradient: it rounds them")
    difference = pooled - operator(still, target[None], output_size, 1 / stride)
    loss = 0.5 * difference.square().mean((1, 2, 3))
    (gradient,) = torch.autograd.grad(loss.sum(), moves)
    return GradientField(offsets, loss.detach().unflatten(0, (positions, -1)), gradient.unflatten(0, (positions, -1)))


def plot_gradient_fields(fields: Mapping[str, GradientField]) -> Figure:
    """Plot one panel per operator: the loss as shades, the negative gradient as arrows, the target as a cross.

    Args:
        fields: fields by the operator's name; all with the same positions.

    Raises:
        ValueError: If `fields` is empty.
    """
    if not fields:
        raise ValueError("fields: got none")
    columns = min(3, len(fields))
    rows = -(-len(fields) // columns)
    figure = Figure(figsize=(WIDTH, 0.3 + rows * (0.95 + (WIDTH - 1.9) / columns)), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    levels = MaxNLocator(10).tick_values(0, max(float(field.loss.max()) for field in fields.values()))
    longest = max(float(field.gradient.norm(dim=2).max()) for field in fields.values())
    for panel, (name, field) in zip(panels.flat, fields.items(), strict=False):
        x = field.offsets
        # The dark end of the scale would hide the arrows.
        shades = panel.contourf(x, x, field.loss, levels=levels, cmap="Blues", vmin=0, vmax=1.6 * levels[-1])
        every = slice(0, None, max(1, round((len(x) - 1) / (_ARROWS - 1))))
        steps = -field.gradient[every, every]
        # The longest arrow is twice the distance between neighboring arrows.
        spacing = float(x[every][1] - x[every][0])
        scale = longest / (2 * spacing)
        panel.quiver(
            x[every], x[every], *steps.unbind(2), angles="xy", scale_units="xy", scale=scale, width=0.006, zorder=3
        )
        panel.plot(0, 0, "+", color=COLOURS[1], markersize=12, markeredgewidth=2.5, zorder=4)
        panel.set_title(title_of(name), fontsize=12)
        panel.set_xlabel(f"alignment {field.alignment:.3f}, astray {100 * field.astray:.1f} %", fontsize=10)
        panel.set_aspect("equal")
        end = float(x[-1]) + spacing
        panel.set_xlim(-end, end)
        panel.set_ylim(end, -end)
        panel.tick_params(labelsize=9)
    for panel in panels.flat[len(fields) :]:
        panel.remove()
    for panel in panels[:, 0]:
        panel.set_ylabel("box below the target, pixels", fontsize=10)
    figure.supxlabel("box right of the target, pixels", fontsize=10)
    figure.colorbar(shades, ax=panels, label="loss, squared sd", shrink=0.8)
    return figure
