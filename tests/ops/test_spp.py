import pytest
import torch
from ops_cases import random_boxes

from detpool import ops


def test_is_roi_pooling_on_several_grids() -> None:
    torch.manual_seed(0)
    features, boxes = torch.randn(2, 5, 12, 14), random_boxes(50, (96, 112), 2, seed=0)
    got = ops.spp(features, boxes, (1, (2, 3)), 1 / 8)
    assert got.shape == (50, 5, 1 + 6)
    assert torch.equal(got[:, :, 0], ops.roi_pool(features, boxes, 1, 1 / 8)[:, :, 0, 0])
    assert torch.equal(got[:, :, 1:].unflatten(2, (2, 3)), ops.roi_pool(features, boxes, (2, 3), 1 / 8))


@pytest.mark.parametrize("levels", [(), 3])
def test_wrong_levels(levels) -> None:
    with pytest.raises(ValueError, match="levels must be a sequence of at least one grid"):
        ops.spp(torch.zeros(1, 1, 4, 4), torch.zeros(0, 5), levels)
