import pytest
import torch
from ops_cases import random_boxes

from detpool import ops
from detpool.ops.bins import round_half_away


@pytest.mark.parametrize("reduction", ["mean", "max"])
@pytest.mark.parametrize("sampling_ratio", [2, 0])
def test_is_roi_align_of_the_rounded_box(sampling_ratio: int, reduction: str) -> None:
    torch.manual_seed(0)
    features, boxes = torch.randn(2, 5, 20, 25), random_boxes(500, (160, 200), 2, seed=0)
    cells = round_half_away(boxes[:, 1:] / 8)
    cells[:, 2:] = torch.maximum(cells[:, 2:] + 1, cells[:, :2] + 1)
    rounded = torch.cat([boxes[:, :1], cells], dim=1)
    expected = ops.roi_align(features, rounded, 3, 1.0, sampling_ratio, reduction=reduction)
    got = ops.roi_warp(features, boxes, 3, 1 / 8, sampling_ratio, reduction=reduction)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_rounding_is_that_of_c() -> None:
    values = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 0.49999997, 8388609.0])
    assert round_half_away(values).tolist() == [-3, -2, -1, 1, 2, 3, 0, 8388609]
