import pytest
import torch
from ops_cases import random_boxes

from detpool import ops


@pytest.mark.parametrize("sampling_ratio", [2, 0])
def test_an_offset_moves_its_bin(sampling_ratio: int) -> None:
    """Oracle: RoIAlign of a box moved as a whole has, in one bin, what moving that bin alone has."""
    torch.manual_seed(0)
    features, boxes = torch.randn(2, 5, 20, 25), random_boxes(60, (160, 200), 2, seed=0)
    offsets = torch.randn(60, 2, 3, 2)
    got = ops.deform_roi_pool(features, boxes, offsets, (3, 2), 1 / 8, sampling_ratio, trans_std=0.2)
    size = boxes[:, 3:] - boxes[:, 1:3]
    for i in range(3):
        for j in range(2):
            move = 0.2 * offsets[:, :, i, j] * size
            moved = torch.cat([boxes[:, :1], boxes[:, 1:] + torch.cat([move, move], dim=1)], dim=1)
            moved[:, 3:] = moved[:, 1:3].maximum(moved[:, 3:])  # rounding may cross zero-size boxes
            expected = ops.roi_align(features, moved, (3, 2), 1 / 8, sampling_ratio, True)[:, :, i, j]
            # adaptive sampling may take one point more where rounding changed a size that was integral
            close = ((got[:, :, i, j] - expected).abs().amax(dim=1) < 1e-3).float().mean()
            assert close == 1 if sampling_ratio == 2 else close > 0.8


def test_gradients() -> None:
    torch.manual_seed(1)
    features = torch.randn(1, 6, 8, 10, dtype=torch.float64, requires_grad=True)
    offsets = (0.3 * torch.randn(1, 2, 3, 2, dtype=torch.float64)).requires_grad_()
    coords = torch.tensor([[3.3, 4.1, 37.7, 29.2]], dtype=torch.float64, requires_grad=True)

    def shared(features, coords, offsets):
        return ops.deform_roi_pool(features, [coords], offsets, (3, 2), 0.25, 2)

    def position_sensitive(features, offsets):
        return ops.deform_ps_roi_pool(features, [coords], offsets, (3, 2), 0.25)

    for function, inputs in ((shared, (features, coords, offsets)), (position_sensitive, (features, offsets))):
        assert torch.autograd.gradcheck(function, inputs, eps=1e-7, atol=1e-5, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, inputs, eps=1e-7, atol=1e-5, fast_mode=True)


def test_bins_share_the_offsets_of_their_part() -> None:
    torch.manual_seed(2)
    features, boxes = torch.randn(2, 2 * 16, 12, 14), random_boxes(20, (96, 112), 2, seed=1)
    offsets = torch.randn(20, 2, 2, 2)
    every_bin = offsets.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    got = ops.deform_ps_roi_pool(features, boxes, offsets, 4, 1 / 8)
    assert torch.equal(got, ops.deform_ps_roi_pool(features, boxes, every_bin, 4, 1 / 8))
    unmoved = ops.deform_ps_roi_pool(features, boxes, None, 4, 1 / 8)
    zeros = ops.deform_ps_roi_pool(features, boxes, torch.zeros_like(offsets), 4, 1 / 8)
    torch.testing.assert_close(unmoved, zeros)


@pytest.mark.parametrize(
    ("offsets", "error", "message"),
    [
        (torch.zeros(1, 2, 3, 3), ValueError, r"offsets must have shape \(1, 2, 2, 2\), got \(1, 2, 3, 3\)"),
        (torch.zeros(1, 2, 2), ValueError, r"offsets must have shape .* got \(1, 2, 2\)"),
        (torch.full((1, 2, 2, 2), torch.nan), ValueError, "offsets must be finite, got .* row 0"),
        (torch.full((1, 2, 2, 2), -torch.inf), ValueError, "offsets must be finite, got .* row 0"),
        (torch.zeros(1, 2, 2, 2, dtype=torch.int64), TypeError, "floating tensor .* got torch.int64"),
        (None, TypeError, "got NoneType"),
    ],
)
def test_wrong_offsets(offsets, error, message: str) -> None:
    with pytest.raises(error, match=message):
        ops.deform_roi_pool(torch.zeros(1, 4, 5, 5), torch.tensor([[0.0, 1, 1, 3, 3]]), offsets, 2)
