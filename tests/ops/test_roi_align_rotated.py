import math

import numpy as np
import pytest
import torch
from ops_cases import random_boxes
from scipy.ndimage import map_coordinates

from detpool import ops


def to_centre_form(boxes: torch.Tensor, angle: float) -> torch.Tensor:
    size = boxes[:, 3:] - boxes[:, 1:3]
    return torch.cat([boxes[:, :1], boxes[:, 1:3] + size / 2, size, torch.full_like(boxes[:, :1], angle)], dim=1)


@pytest.mark.parametrize("sampling_ratio", [2, 0])
def test_without_rotation_is_roi_align(sampling_ratio: int) -> None:
    torch.manual_seed(0)
    features, boxes = torch.randn(2, 3, 20, 25), random_boxes(200, (160, 200), 2, seed=0)
    boxes = boxes[(boxes[:, 1:].abs() < 300).all(dim=1)]
    expected = ops.roi_align(features, boxes, (3, 2), 1 / 8, sampling_ratio, True)
    got = ops.roi_align_rotated(features, to_centre_form(boxes, 0.0), (3, 2), 1 / 8, sampling_ratio)
    # the centre form rounds differently: a point at the edge may fall outside, a size may take one point more
    close = (got - expected).abs().flatten(1).amax(dim=1) < 1e-3
    assert close.float().mean() > (0.9 if sampling_ratio else 0.75)


@pytest.mark.parametrize(("angle", "turns"), [(90.0, -1), (180.0, 2), (270.0, 1), (-90.0, 1)])
def test_quarter_turns_turn_the_output(angle: float, turns: int) -> None:
    torch.manual_seed(0)
    features = torch.randn(1, 3, 20, 20)
    box = torch.tensor([[0.0, 10.3, 9.6, 8.0, 8.0, 0.0]])
    upright = ops.roi_align_rotated(features, box, 4, 1.0, 2)
    box[0, 5] = angle
    got = ops.roi_align_rotated(features, box, 4, 1.0, 2)
    torch.testing.assert_close(got, torch.rot90(upright, turns, dims=(2, 3)), atol=1e-4, rtol=1e-4)


def test_gradients() -> None:
    torch.manual_seed(1)
    features = torch.randn(1, 2, 8, 10, dtype=torch.float64, requires_grad=True)
    box = torch.tensor([[21.3, 15.2, 17.1, 12.4, 33.0]], dtype=torch.float64, requires_grad=True)

    def function(features, box):
        return ops.roi_align_rotated(features, [box], (3, 2), 0.25, 2)

    assert torch.autograd.gradcheck(function, (features, box), eps=1e-7, atol=1e-5, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, (features, box), eps=1e-7, atol=1e-5, fast_mode=True)


def points_of(box, size, count):
    """The points of a rotated box (x, y, width, height, angle) in cells, (PH, PW, points, 2) as (y, x)."""
    x, y, width, height, angle = box
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    found = np.empty((*size, count[0] * count[1], 2))
    for i, j in np.ndindex(*size):
        for n, (t, u) in enumerate(np.ndindex(*count)):
            down = (i + (t + 0.5) / count[0]) * height / size[0] - height / 2
            across = (j + (u + 0.5) / count[1]) * width / size[1] - width / 2
            found[i, j, n] = y + down * cosine - across * sine, x + down * sine + across * cosine
    return found


def test_the_maximum_of_points_is_a_formula() -> None:
    """Interpolated by SciPy; the box lies within the image."""
    features, box, size = torch.rand(1, 1, 12, 14), (6.3, 5.8, 7.4, 5.1, 25.0), (2, 3)
    places = points_of(box, size, (2, 3)) - 0.5
    values = map_coordinates(features[0, 0].double().numpy(), places.reshape(-1, 2).T, order=1)
    expected = values.reshape(*size, -1)
    rois = torch.tensor([[0, *box]])
    for reduction, of_points in (("max", expected.max(-1)), ("mean", expected.mean(-1))):
        got = ops.roi_align_rotated(features, rois, size, 1.0, (2, 3), reduction=reduction)
        np.testing.assert_allclose(got[0, 0].numpy(), of_points, atol=1e-5)


@pytest.mark.parametrize("box", [(6.3, 5.8, 7.4, 5.1, 25.0), (1.2, 10.9, 9.3, 6.2, -70.0), (30.0, 5.0, 4.0, 4.0, 10.0)])
def test_roi_pool_reads_the_cells_that_points_lie_in(box) -> None:
    features, size = torch.rand(1, 1, 12, 14) - 2, (2, 3)
    count = math.ceil(box[3] / size[0]), math.ceil(box[2] / size[1])
    cells = np.floor(points_of(box, size, count)).astype(int)
    inside = ((cells >= 0) & (cells < (12, 14))).all(-1)
    values = np.where(inside, features[0, 0].numpy()[cells[..., 0].clip(0, 11), cells[..., 1].clip(0, 13)], -np.inf)
    expected = np.where(inside.any(-1), values.max(-1), 0)
    got = ops.roi_pool_rotated(features, torch.tensor([[0, *box]]), size)
    np.testing.assert_array_equal(got[0, 0].numpy(), expected.astype(np.float32))
    mean = ops.pool(features, torch.tensor([[0, *box]]), size, bins="rotated", sampling="cells")[0, 0].numpy()
    sums = np.where(inside, values, 0).sum(-1)
    np.testing.assert_allclose(mean, sums / np.maximum(inside.sum(-1), 1), rtol=1e-5)


@pytest.mark.parametrize("operator", ["maximum", "roi_pool_rotated"])
def test_gradients_of_maxima(operator: str) -> None:
    torch.manual_seed(1)
    features = torch.randn(1, 2, 8, 10, dtype=torch.float64, requires_grad=True)
    box = torch.tensor([[21.3, 15.2, 17.1, 12.4, 33.0]], dtype=torch.float64, requires_grad=True)
    if operator == "roi_pool_rotated":
        assert torch.autograd.gradcheck(lambda f: ops.roi_pool_rotated(f, [box], (3, 2), 0.25), features)
        pooled = ops.roi_pool_rotated(features, [box], (3, 2), 0.25)
        assert torch.autograd.grad(pooled.sum(), box, allow_unused=True) == (None,)
        return

    def function(features, box):
        return ops.roi_align_rotated(features, [box], (3, 2), 0.25, 2, reduction="max")

    assert torch.autograd.gradcheck(function, (features, box), eps=1e-7, atol=1e-5)
    with pytest.raises(ops.BackendError, match="of rotated bins only the mean of points is compiled"):
        ops.roi_align_rotated(features, [box], 2, backend="cpu", reduction="max")


def test_maxima_of_pyramids_and_of_no_boxes() -> None:
    maps, boxes = (
        (torch.rand(2, 3, 8, 10), torch.rand(2, 3, 4, 5)),
        torch.tensor([[0, 21.3, 15.2, 17.1, 12.4, 33.0]] * 3),
    )
    levels, scales = torch.tensor([1, 0, 1]), (0.25, 0.125)
    got = ops.roi_pool_rotated(maps, ops.PyramidRoIs(boxes, levels), 2, scales)
    for row, level in enumerate(levels.tolist()):
        assert torch.equal(got[row], ops.roi_pool_rotated(maps[level], boxes[row : row + 1], 2, scales[level])[0])
    assert ops.roi_pool_rotated(maps[0], boxes[:0], 2).shape == (0, 3, 2, 2)


def test_errors() -> None:
    features = torch.zeros(1, 2, 8, 8)
    with pytest.raises(ValueError, match=r"boxes must have shape \(number of boxes, 6\), got \(1, 5\)"):
        ops.roi_align_rotated(features, torch.zeros(1, 5), 2)
    with pytest.raises(ValueError, match="width >= 0 and height >= 0"):
        ops.roi_align_rotated(features, torch.tensor([[0.0, 4, 4, -1, 2, 0]]), 2)
    with pytest.raises(ValueError, match="500 points per bin .* positive sampling_ratio"):
        ops.roi_align_rotated(features, torch.tensor([[0.0, 4, 4, 1000, 2, 0]]), 2)
    boxes = torch.tensor([[0.0, 4, 4, 5, 3, 20]])
    with pytest.raises(ValueError, match="offsets must be None for bins 'rotated'"):
        ops.pool(features, boxes, 2, bins="rotated", offsets=torch.ones(1, 2, 2, 2))
    for sampling in ("points", "cells"):
        with pytest.raises(ValueError, match="rotated boxes need sampling 'points' and a positive sampling_ratio"):
            ops.pool(features, boxes, 2, bins="rotated", sampling=sampling, reduction=ops.reductions.Stochastic())
