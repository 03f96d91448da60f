import pytest
import torch
from ops_cases import GRADIENT_BOXES, check_gradients, random_boxes

from detpool import ops


def test_published_numbers() -> None:
    """The arrays in mmcv's documentation of PrRoIPool."""
    features = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]], requires_grad=True)
    boxes = torch.tensor([[0.0, 0, 0, 1, 1]], requires_grad=True)
    output = ops.pr_roi_pool(features, boxes, 2)
    torch.testing.assert_close(output, torch.tensor([[[[1.75, 2.25], [2.75, 3.25]]]]), atol=0, rtol=0)
    output.sum().backward()
    torch.testing.assert_close(boxes.grad, torch.tensor([[0.0, 2, 4, 2, 4]]), atol=0, rtol=0)
    torch.testing.assert_close(features.grad, torch.ones(1, 1, 2, 2), atol=0, rtol=0)


def test_is_the_integral_of_the_bilinear_surface() -> None:
    """Oracle: a Riemann sum over a fine grid of samples of ``grid_sample``, which is zero outside the image as well."""
    torch.manual_seed(0)
    height, width = 9, 11
    features = torch.randn(2, 3, height, width, dtype=torch.float64)
    boxes = random_boxes(40, (72, 88), 2, seed=3).double()
    boxes = boxes[((boxes[:, 3:] - boxes[:, 1:3]) > 0).all(dim=1)]
    got = ops.pr_roi_pool(features, boxes, (2, 3), 1 / 8)
    fine = 200
    for box, bins in zip(boxes, got, strict=True):
        x1, y1, x2, y2 = box[1:] / 8
        x = x1 + (x2 - x1) * (torch.arange(3 * fine, dtype=torch.float64) + 0.5) / (3 * fine)
        y = y1 + (y2 - y1) * (torch.arange(2 * fine, dtype=torch.float64) + 0.5) / (2 * fine)
        grid = torch.stack(torch.meshgrid(x / (width - 1) * 2 - 1, y / (height - 1) * 2 - 1, indexing="xy"), dim=-1)
        surface = torch.nn.functional.grid_sample(
            features[int(box[0])][None], grid[None], padding_mode="zeros", align_corners=True
        )
        expected = torch.nn.functional.avg_pool2d(surface[0], fine)
        torch.testing.assert_close(bins, expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize("position_sensitive", [False, True])
@pytest.mark.parametrize("box", GRADIENT_BOXES.values(), ids=GRADIENT_BOXES)
def test_gradients(box: list[float], position_sensitive: bool) -> None:
    torch.manual_seed(1)

    def function(features, coords):
        return ops.pr_roi_pool(features, [coords], (3, 2), 0.25, position_sensitive=position_sensitive)

    check_gradients(function, torch.randn(1, 6, 8, 10), box)


def test_no_area_is_zero_with_zero_gradients() -> None:
    features = torch.randn(1, 2, 6, 6, requires_grad=True)
    boxes = torch.tensor([[0.0, 2, 1, 2, 4], [0.0, 1, 3, 4, 3], [0.0, 2, 2, 2, 2]], requires_grad=True)
    output = ops.pr_roi_pool(features, boxes, 2)
    output.square().sum().backward(retain_graph=True)
    output.sum().backward()
    assert not output.any()
    assert not features.grad.any()
    assert not boxes.grad.any()


def test_position_sensitive_reads_the_channel_of_each_bin() -> None:
    torch.manual_seed(2)
    features = torch.randn(2, 4 * 6, 9, 11)
    boxes = random_boxes(30, (72, 88), 2, seed=4)
    got = ops.pr_roi_pool(features, boxes, (3, 2), 1 / 8, position_sensitive=True)
    shared = ops.pr_roi_pool(features, boxes, (3, 2), 1 / 8)
    for i in range(3):
        for j in range(2):
            torch.testing.assert_close(got[:, :, i, j], shared[:, i * 2 + j :: 6, i, j])
