import json
from pathlib import Path

import pytest
import torch
import torchvision
from ops_cases import GRADIENT_BOXES, check_gradients, random_boxes

from detpool import ops


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("sampling_ratio", [2, 3, 0, -1])
def test_equals_torchvision(sampling_ratio: int, aligned: bool) -> None:
    torch.manual_seed(0)
    features = torch.randn(3, 6, 23, 31, requires_grad=True)
    boxes = random_boxes(1250, (184, 248), 3, seed=sampling_ratio + 10 * aligned)
    expected = torchvision.ops.roi_align(features, boxes, (7, 5), 1 / 8, sampling_ratio, aligned)
    got = ops.roi_align(features, boxes, (7, 5), 1 / 8, sampling_ratio, aligned)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)

    weight = torch.randn_like(got)
    (grad_expected,) = torch.autograd.grad(expected, features, weight)
    (grad_got,) = torch.autograd.grad(got, features, weight)
    # sums over some hundred RoIs a cell, in another order
    torch.testing.assert_close(grad_got, grad_expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(("mode", "aligned"), [("output_half_pixel", False), ("half_pixel", True)])
def test_equals_the_published_examples_of_onnx(mode: str, aligned: bool) -> None:
    examples = json.loads((Path(__file__).parent / "onnx_roi_align.json").read_text())
    got = ops.roi_align(
        torch.tensor(examples["features"])[None, None], [torch.tensor(examples["boxes"])], 5, 1.0, 2, aligned
    )
    # features and outputs are both published with four digits
    torch.testing.assert_close(got[:, 0], torch.tensor(examples[mode]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("sampling_ratio", [2, 0])
@pytest.mark.parametrize("box", GRADIENT_BOXES.values(), ids=GRADIENT_BOXES)
def test_gradients(box: list[float], sampling_ratio: int) -> None:
    torch.manual_seed(1)

    def function(features, coords):
        return ops.roi_align(features, [coords], (3, 2), 0.25, sampling_ratio, aligned=True)

    check_gradients(function, torch.randn(1, 2, 8, 10), box)


@pytest.mark.parametrize("sampling_ratio", [2, 0])
def test_maximum_is_that_of_the_single_points(sampling_ratio: int) -> None:
    """Oracle: a grid of bins with one point each holds every point of the bins."""
    torch.manual_seed(2)
    features = torch.randn(2, 4, 12, 14)
    for box in random_boxes(60, (96, 112), 2, seed=5):
        got = ops.roi_align(features, box[None], 3, 1 / 8, sampling_ratio, True, reduction="max")
        grid = [sampling_ratio] * 2
        if sampling_ratio <= 0:
            size = (box[3:] / 8 - 0.5) - (box[1:3] / 8 - 0.5)
            grid = [int((side / 3).ceil()) for side in size.flip(0)]
        if 0 in grid:
            assert not got.any()
            continue
        points = torchvision.ops.roi_align(features, box[None], (3 * grid[0], 3 * grid[1]), 1 / 8, 1, True)
        expected = torch.nn.functional.max_pool2d(points, grid)
        # the points' coordinates are computed from another bin size
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_maximum_has_gradients() -> None:
    torch.manual_seed(3)
    features = torch.randn(1, 1, 8, 10, dtype=torch.float64, requires_grad=True)
    coords = torch.tensor([[3.3, 4.1, 37.7, 29.2]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda f, b: ops.roi_align(f, [b], 2, 0.25, 2, True, reduction="max"), (features, coords), eps=1e-7
    )


def test_box_far_larger_than_the_image_costs_no_memory() -> None:
    features = torch.ones(1, 1, 5, 5)
    got = ops.roi_align(features, [torch.tensor([[-1e7, -1e7, 1e7, 1e7]])], 1, 1.0, 0)
    # 5 + 1 of 2e7 unit steps along each axis read the image
    assert 0 <= got.item() < 1e-12
