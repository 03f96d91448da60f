import pytest
import torch
from ops_cases import random_boxes

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


def test_errors() -> None:
    features = torch.zeros(1, 2, 8, 8)
    with pytest.raises(ValueError, match=r"boxes must have shape \(number of boxes, 6\), got \(1, 5\)"):
        ops.roi_align_rotated(features, torch.zeros(1, 5), 2)
    with pytest.raises(ValueError, match="width >= 0 and height >= 0"):
        ops.roi_align_rotated(features, torch.tensor([[0.0, 4, 4, -1, 2, 0]]), 2)
    with pytest.raises(ValueError, match="500 points per bin .* positive sampling_ratio"):
        ops.roi_align_rotated(features, torch.tensor([[0.0, 4, 4, 1000, 2, 0]]), 2)
