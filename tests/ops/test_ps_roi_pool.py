import pytest
import torch
import torchvision
from ops_cases import random_boxes

from detpool import ops


def test_equals_torchvision() -> None:
    torch.manual_seed(0)
    features = torch.randn(3, 2 * 15, 23, 31)
    boxes = random_boxes(10_000, (184, 248), 3, seed=1)
    expected = torchvision.ops.ps_roi_pool(features, boxes, (5, 3), 1 / 8)
    got = ops.ps_roi_pool(features, boxes, (5, 3), 1 / 8)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("convention", ["torchvision", "rfcn"])
def test_gradients(convention: str) -> None:
    torch.manual_seed(1)
    features = torch.randn(1, 12, 8, 10, dtype=torch.float64, requires_grad=True)
    boxes = random_boxes(20, (32, 40), 1, seed=2).double()

    def function(features):
        return ops.ps_roi_pool(features, boxes, (3, 2), 0.25, convention=convention)

    assert torch.autograd.gradcheck(function, features)
    assert torch.autograd.gradgradcheck(function, features, fast_mode=True)
