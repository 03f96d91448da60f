import pytest
import torch
import torchvision
from ops_cases import random_boxes

from detpool import ops


# a plane of more than 2^15 cells has wider positions
@pytest.mark.parametrize(("count", "height", "width"), [(10_000, 23, 31), (300, 190, 174)])
def test_equals_torchvision_exactly(count: int, height: int, width: int) -> None:
    torch.manual_seed(0)
    features = torch.randn(3, 6, height, width, requires_grad=True)
    boxes = random_boxes(count, (8 * height, 8 * width), 3, seed=1)
    expected = torchvision.ops.roi_pool(features, boxes, (7, 5), 1 / 8)
    got = ops.roi_pool(features, boxes, (7, 5), 1 / 8)
    assert torch.equal(got, expected)

    weight = torch.randint(-8, 8, got.shape).float()  # sums of small integers are exact in any order
    (grad_expected,) = torch.autograd.grad(expected, features, weight)
    (grad_got,) = torch.autograd.grad(got, features, weight)
    assert torch.equal(grad_got, grad_expected)


def test_ties_go_to_the_first_cell_in_row_major_order() -> None:
    features = torch.zeros(1, 1, 4, 4, requires_grad=True)
    ops.roi_pool(features, torch.tensor([[0.0, 1, 1, 3, 3]]), 1).backward()
    expected = torch.zeros(1, 1, 4, 4)
    expected[0, 0, 1, 1] = 1
    assert torch.equal(features.grad, expected)


def test_minus_infinity_and_nan() -> None:
    features = torch.full((1, 1, 3, 3), -torch.inf)
    box = torch.tensor([[0.0, 0, 0, 2, 2]])
    assert ops.roi_pool(features, box, 1).item() == -torch.inf
    features[0, 0, 1, 2] = torch.nan
    assert ops.roi_pool(features, box, 1).isnan().item()


def test_gradients() -> None:
    torch.manual_seed(1)
    features = torch.randn(1, 2, 8, 10, dtype=torch.float64, requires_grad=True)
    boxes = random_boxes(20, (32, 40), 1, seed=2).double()
    assert torch.autograd.gradcheck(lambda f: ops.roi_pool(f, boxes, (3, 2), 0.25), features, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda f: ops.roi_pool(f, boxes, (3, 2), 0.25), features, fast_mode=True)
