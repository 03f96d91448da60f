import pytest
import torch
import torchvision
from ops_cases import GRADIENT_BOXES, check_gradients, random_boxes

from detpool import ops


@pytest.mark.parametrize("sampling_ratio", [2, 0])
def test_equals_torchvision(sampling_ratio: int) -> None:
    torch.manual_seed(0)
    features = torch.randn(3, 2 * 15, 23, 31, requires_grad=True)
    boxes = random_boxes(5000, (184, 248), 3, seed=sampling_ratio)
    if sampling_ratio == 0:  # torchvision divides 0 by 0 for boxes without extent
        boxes = boxes[(boxes[:, 3:] > boxes[:, 1:3]).all(dim=1)]
    expected = torchvision.ops.ps_roi_align(features, boxes, (5, 3), 1 / 8, sampling_ratio)
    got = ops.ps_roi_align(features, boxes, (5, 3), 1 / 8, sampling_ratio)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    weight = torch.randn_like(got)
    (grad_expected,) = torch.autograd.grad(expected, features, weight)
    (grad_got,) = torch.autograd.grad(got, features, weight)
    torch.testing.assert_close(grad_got, grad_expected, atol=2e-4, rtol=1e-4)


def test_box_without_extent_gives_zero() -> None:
    got = ops.ps_roi_align(torch.ones(1, 4, 5, 5), torch.tensor([[0.0, 2, 2, 2, 2]]), 2, 1.0, 0)
    assert torch.equal(got, torch.zeros(1, 1, 2, 2))


@pytest.mark.parametrize("box", GRADIENT_BOXES.values(), ids=GRADIENT_BOXES)
def test_gradients(box: list[float]) -> None:
    torch.manual_seed(1)
    check_gradients(lambda f, b: ops.ps_roi_align(f, [b], (3, 2), 0.25, 2), torch.randn(1, 6, 8, 10), box)


def test_maximum_over_points_reads_the_channel_of_each_bin() -> None:
    torch.manual_seed(2)
    features, boxes = torch.randn(2, 4 * 6, 9, 11), random_boxes(30, (72, 88), 2, seed=4)
    got = ops.ps_roi_align(features, boxes, (3, 2), 1 / 8, 2, reduction="max")
    shared = ops.roi_align(features, boxes, (3, 2), 1 / 8, 2, True, reduction="max")
    for i in range(3):
        for j in range(2):
            torch.testing.assert_close(got[:, :, i, j], shared[:, i * 2 + j :: 6, i, j])
