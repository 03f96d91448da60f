"""Gradients over box positions: of losses that are known, and against differences of the loss."""

import pytest
import torch

from detpool import ops
from detpool.visualization import gradient_field, plot_gradient_fields

BOX = (13.2, 9.7, 61.4, 50.1)


def field(operator, **options):
    return gradient_field(operator, BOX, (3, 3), 8.0, **options)


def test_a_bowl():
    """An operator that gives the box's corner: loss (dx^2 + dy^2) / 4, gradient d / 2, everywhere from the target."""
    found = field(lambda features, rois, size, scale: rois[:, 1:3, None, None], reach=2.0, positions=5)
    assert found.offsets.tolist() == [-16, -8, 0, 8, 16]
    down, right = torch.meshgrid(found.offsets, found.offsets, indexing="ij")
    torch.testing.assert_close(found.loss, (right**2 + down**2) / 4)
    torch.testing.assert_close(found.gradient, torch.stack([right, down], dim=2) / 2)
    assert found.alignment == pytest.approx(1)
    assert found.astray == 0


def test_nowhere_to_go():
    """A loss that knows nothing of y: half of the positions' directions are right, those above and below are lost."""
    found = field(lambda features, rois, size, scale: rois[:, 1, None, None, None], positions=3)
    # Of 8 neighbours: two at the sides go straight, four corners at 45 degrees, two above and below do not move.
    assert found.alignment == pytest.approx((2 + 4 * 0.5**0.5) / 8)
    assert found.astray == pytest.approx(2 / 8)


@pytest.mark.parametrize("operator", [ops.pr_roi_pool, ops.ps_roi_align])
def test_gradients_are_slopes_of_the_loss(operator):
    """Central differences over 1/48 of a cell on each side; RoIAlign's kinks are averaged over by them."""
    smooth = operator is ops.pr_roi_pool
    found = field(operator, reach=1.0, positions=97, position_sensitive=not smooth)
    step = float(found.offsets[2] - found.offsets[0])
    right = (found.loss[1:-1, 2:] - found.loss[1:-1, :-2]) / step
    down = (found.loss[2:, 1:-1] - found.loss[:-2, 1:-1]) / step
    error = (torch.stack([right, down], dim=2) - found.gradient[1:-1, 1:-1]).norm(dim=2)
    scale = float(found.gradient.norm(dim=2).max())
    assert float(error.median()) < 1e-3 * scale
    assert float(error.max()) < (0.01 if smooth else 0.2) * scale
    assert float(found.loss[48, 48]) == 0


@pytest.mark.parametrize("operator", [ops.roi_pool, ops.roi_warp])
def test_rounded_boxes_have_no_gradient(operator):
    with pytest.raises(ValueError, match="gives boxes no gradient"):
        field(operator)


def test_one_position_is_no_field():
    with pytest.raises(ValueError, match="positions must be at least 2, got 1"):
        field(ops.pr_roi_pool, positions=1)


def test_the_figure():
    found = field(ops.pr_roi_pool)
    figure = plot_gradient_fields({"pr_roi_pool": found})
    assert f"alignment {found.alignment:.3f}" in figure.axes[0].get_xlabel()
    with pytest.raises(ValueError, match="got none"):
        plot_gradient_fields({})
