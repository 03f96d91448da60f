"""Operations counted by hand, and against convolutions and matrix products of PyTorch that compute the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import detpool.ops.flops
from detpool import ops
from detpool.ops.spec import Spec


def count(call: Callable[[], Tensor], backward: bool = False) -> dict[str, int]:
    with FlopCounterMode(display=False) as counter:
        result = call()
        if backward:
            result.sum().backward()
    return {str(packet).rpartition(".")[2]: flops for packet, flops in counter.get_flop_counts()["Global"].items()}


def features(channels: int = 4) -> Tensor:
    return torch.rand(1, channels, 20, 20, requires_grad=True)


BOX = [4.0, 4.0, 12.0, 12.0]


def boxes(*rows: list[float]) -> list[Tensor]:
    return [torch.tensor(rows or [BOX], dtype=torch.float32).reshape(-1, 4).requires_grad_()]


def test_weighted_sums_by_hand() -> None:
    # 4 bins, 4 channels; 2 x 2 points of 4 cells each; a multiplication and an addition.
    expected = 4 * 4 * (2 * 2 * 4) * 2
    found = count(lambda: ops.roi_align(features(), boxes(), 2, 1.0, 2), backward=True)
    assert found == dict.fromkeys(("weighted_sum", "weighted_sum_of_grad", "weighted_sum_roi_grads"), expected)
    # The integral over 4 .. 8 reads cells 4 .. 8, of which the last has no weight, as it lies at the end of the bin.
    found = count(lambda: ops.pr_roi_pool(features(), boxes([4.5, 4.5, 12.5, 12.5]), 2))
    assert found == {"weighted_sum": 4 * 4 * (6 * 6) * 2}  # 4.5 .. 8.5 reads 4 .. 9
    # Turned by 0 degrees, boxes are read as upright ones; rows are image, centre, width, height, angle.
    turned = torch.tensor([[0, 8.0, 8.0, 8.0, 8.0, 0.0]])
    assert count(lambda: ops.roi_align_rotated(features(), turned, 2, 1.0, 2)) == {"weighted_sum": expected}


def test_what_is_not_read_is_not_counted() -> None:
    def reads(*rows: list[float]) -> int:
        return count(lambda: ops.roi_align(features(1), boxes(*rows), 1, 1.0, 1)).get("weighted_sum", 0) // 2

    assert reads([4, 4, 7, 7]) == 4
    assert reads([-40, -40, -30, -30]) == 0  # outside
    assert reads([19, 4, 19, 7]) == 2  # the point is on the last column, which has no right neighbour
    assert reads([4, 4, 7, 7], [4, 4, 7, 7]) == 8  # each as often as it is read
    assert count(lambda: ops.roi_align(features(1), torch.zeros(0, 5), 1)) in ({}, {"weighted_sum": 0})


def test_maxima_by_hand() -> None:
    # Bins of 4.5 cells, rounded outwards: 5 x 5 cells, a comparison each; the gradient adds one number an output.
    found = count(lambda: ops.roi_pool(features(), boxes(), 2), backward=True)
    assert found == {"window_max": 4 * 4 * 25, "window_max_of_grad": 4 * 4}
    # 2 x 2 points: 4 cells are multiplied and added up, then one comparison.
    found = count(lambda: ops.roi_align(features(), boxes(), 2, 1.0, 2, reduction="max"), backward=True)
    each = {"window_max": 4 * (2 * 4 + 1), "window_max_of_grad": 8, "window_max_roi_grads": 16}
    assert found == {name: 4 * 4 * flops for name, flops in each.items()}


def test_the_cells_of_all_levels_and_of_position_sensitive_bins() -> None:
    maps = [torch.rand(1, 8, size, size) for size in (32, 16)]
    two = torch.tensor([[0, 4.0, 4.0, 12.0, 12.0], [0, 4.0, 4.0, 28.0, 28.0]])
    pyramid = ops.PyramidRoIs(two, torch.tensor([0, 1]))
    found = count(lambda: ops.roi_align(maps, pyramid, 2, [1.0, 0.5], 2))
    assert found == {"weighted_sum": 2 * (8 * 4 * 16 * 2)}
    # Each output channel of a position-sensitive pooling reads one input channel a bin: 8 / 4 of them are left.
    found = count(lambda: ops.ps_roi_align(maps[0], two[:1], 2, 1.0, 2))
    assert found == {"weighted_sum": (8 // 4) * 4 * 16 * 2}


def test_as_many_as_a_convolution_that_computes_the_same() -> None:
    """One point in the middle of four cells is their mean: a convolution of each channel with a window of 2."""
    x = torch.rand(1, 3, 9, 9)
    whole = torch.tensor([[0, 0.0, 0.0, 8.0, 8.0]])  # 8 x 8 bins of one cell, from centre to centre of cells
    pooled = ops.roi_align(x, whole, 8, 1.0, 1)
    window = torch.full((3, 1, 2, 2), 0.25)
    torch.testing.assert_close(pooled, F.conv2d(x, window, groups=3))
    (mine,) = count(lambda: ops.roi_align(x, whole, 8, 1.0, 1)).values()
    (theirs,) = count(lambda: F.conv2d(x, window, groups=3)).values()
    assert mine == theirs == 3 * 64 * 4 * 2


@pytest.mark.parametrize("bins", ["aligned", "rfcn"])
def test_as_many_as_a_product_with_the_matrix_of_weights(bins: str) -> None:
    """The mean over cells as a matrix product, of the columns alone that a bin reads."""
    x = torch.rand(1, 5, 20, 20)
    box = torch.tensor([[0, 3.0, 2.0, 12.0, 14.0]])
    one = torch.eye(400).view(1, 400, 20, 20)  # the pooled features of each cell alone are its weights
    weights = ops.pool(one, box, 1, bins=bins, sampling="cells").view(400)
    read = weights.nonzero()[:, 0]
    product = lambda: x.flatten(2)[0][:, read] @ weights[read, None]  # noqa: E731
    torch.testing.assert_close(ops.pool(x, box, 1, bins=bins, sampling="cells").view(5, 1), product())
    (mine,) = count(lambda: ops.pool(x, box, 1, bins=bins, sampling="cells")).values()
    (theirs,) = count(product).values()
    assert mine == theirs


def test_taps_of_a_rule_of_ones_own_and_of_offsets() -> None:
    def both(bins: ops.Bins, length: int, ratio: int) -> ops.Taps:  # the two cells around the middle of the bin
        middle = ((bins.lower + bins.upper) / 2)[..., None]
        first = middle.detach().floor()
        return ops.Taps(torch.cat([first, first + 1], 3).int(), torch.cat([1 - (middle - first), middle - first], 3))

    rule = ops.Sampling(both)
    found = count(lambda: ops.pool(features(), boxes(), 2, sampling=rule), backward=True)
    assert set(found.values()) == {4 * 4 * 4 * 2}
    assert len(found) == 3
    spec = Spec("continuous", "points", (2, 2), (1.0,), 1)
    rois, offsets = torch.tensor([[0, 4.0, 4.0, 12.0, 12.0]]), torch.zeros(1, 2, 2, 2)
    offsets[0, 0, 0, 0] = -100  # moves the first bin out of the map
    reads = detpool.ops.flops.count_reads([(1, 4, 20, 20)], rois, None, offsets, spec)
    assert reads == 3 * 4
