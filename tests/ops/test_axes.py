"""Scales and numbers of points that differ between height and width."""

from functools import partial

import pytest
import torch
import torchvision
from ops_cases import random_boxes

from detpool import ops

OPERATORS = {
    "roi_pool": ops.roi_pool,
    "roi_align": ops.roi_align,
    "roi_align max": partial(ops.roi_align, sampling_ratio=2, reduction="max"),
    "roi_warp": ops.roi_warp,
    "ps_roi_pool": ops.ps_roi_pool,
    "ps_roi_pool rfcn": partial(ops.ps_roi_pool, convention="rfcn"),
    "ps_roi_align": ops.ps_roi_align,
    "pr_roi_pool": ops.pr_roi_pool,
    "deform_ps_roi_pool": lambda f, b, *sizes, **k: ops.deform_ps_roi_pool(f, b, None, *sizes, **k),
    "spp": lambda f, b, size, scale, **k: ops.spp(f, b, [1, 3], scale, **k),
}


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", OPERATORS)
def test_two_equal_scales_are_one(name: str, backend: str) -> None:
    features, boxes = torch.randn(2, 12, 8, 10), random_boxes(60, (32, 40), 2, seed=0)
    operator = partial(OPERATORS[name], backend=backend)
    # 0.1 has no exact form in binary: edges that come about otherwise would be rounded to other cells now and then
    for scale in (0.25, 0.1):
        assert torch.equal(operator(features, boxes, (2, 3), (scale, scale)), operator(features, boxes, (2, 3), scale))


@pytest.mark.parametrize("name", ["roi_pool", "roi_align", "ps_roi_align", "ps_roi_pool"])
def test_two_scales_are_those_of_boxes_in_cells(name: str) -> None:
    """torchvision's operators of boxes that were scaled before."""
    features, boxes = torch.randn(2, 12, 8, 20), random_boxes(60, (32, 40), 2, seed=1)
    cells = boxes * torch.tensor([1, 0.5, 0.25, 0.5, 0.25])
    settings = (3,) if "align" in name else ()
    got = getattr(ops, name)(features, boxes, (2, 3), (0.25, 0.5), *settings)
    expected = getattr(torchvision.ops, name)(features, cells, (2, 3), 1.0, *settings)
    torch.testing.assert_close(got, expected)


def test_rfcn_rounds_pixels_before_they_are_scaled() -> None:
    """Of a map that is constant along y the mean over a bin does not depend on the scale there."""
    row = torch.randn(1, 6, 1, 20).expand(-1, -1, 20, -1).contiguous()
    boxes = random_boxes(60, (40, 40), 1, seed=2)
    boxes[:, [2, 4]] = torch.tensor([3.0, 30.0])
    pooled = partial(ops.ps_roi_pool, row, boxes, (2, 3), convention="rfcn")
    torch.testing.assert_close(pooled((0.25, 0.5)), pooled(0.5))


def test_maps_of_a_pyramid_have_scales_of_their_own() -> None:
    maps = torch.randn(2, 3, 8, 20), torch.randn(2, 3, 8, 10)
    boxes, levels = random_boxes(30, (32, 40), 2, seed=3), torch.arange(30) % 2
    scales = [(0.25, 0.5), 0.25]
    got = ops.roi_align(maps, ops.PyramidRoIs(boxes, levels), 2, scales)
    for level in (0, 1):
        rows = levels == level
        torch.testing.assert_close(got[rows], ops.roi_align(maps[level], boxes[rows], 2, scales[level]))


@pytest.mark.parametrize("reduction", ["mean", "max"])
def test_gradients_of_two_scales_and_two_ratios(reduction: str) -> None:
    torch.manual_seed(0)
    features = torch.randn(1, 2, 6, 9, dtype=torch.float64, requires_grad=True)
    coords = torch.tensor([[3.1, 4.2, 17.3, 21.7]], dtype=torch.float64, requires_grad=True)

    def pooled(features, coords):
        return ops.roi_align(features, [coords], 2, (0.25, 0.5), (3, 2), reduction=reduction)

    assert torch.autograd.gradcheck(pooled, (features, coords), eps=1e-7, atol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "max", "sum", ops.reductions.Lp(3.0), ops.reductions.Stochastic()])
def test_points_of_each_axis_are_a_formula(reduction) -> None:
    torch.manual_seed(0)
    features = torch.rand(1, 2, 12, 14)
    x1, y1, x2, y2 = 2.3, 1.7, 10.9, 9.2
    (rows, columns), (down, across) = (2, 3), (2, 5)
    box = torch.tensor([[0, x1, y1, x2, y2]])
    got = ops.pool(features, box, (rows, columns), 1.0, sampling_ratio=(down, across), reduction=reduction)[0]
    y = y1 - 0.5 + (torch.arange(rows * down) + 0.5) * (y2 - y1) / (rows * down)
    x = x1 - 0.5 + (torch.arange(columns * across) + 0.5) * (x2 - x1) / (columns * across)
    grid = torch.stack(torch.meshgrid((2 * x + 1) / 14 - 1, (2 * y + 1) / 12 - 1, indexing="xy"), -1)[None]

    def points(features):
        values = torch.nn.functional.grid_sample(features, grid, align_corners=False)[0]
        return values.view(2, rows, down, columns, across)

    values = points(features)
    if isinstance(reduction, ops.reductions.Stochastic):  # which draws one of them
        drawn = (got[:, :, None, :, None] - values).abs().amin((2, 4))
        torch.testing.assert_close(drawn, torch.zeros_like(drawn), atol=1e-5, rtol=0)
        return
    expected = {"mean": values.mean((2, 4)), "max": values.amax((2, 4)), "sum": values.sum((2, 4))}
    powers = points(features**3).mean((2, 4)) ** (1 / 3)
    torch.testing.assert_close(got, expected.get(reduction, powers) if isinstance(reduction, str) else powers)


def test_position_sensitive_and_deformable_bins_take_two_numbers_of_points() -> None:
    """Of a map that is constant along y any number of points there gives the same."""
    row = torch.randn(2, 12, 1, 10).expand(-1, -1, 8, -1).contiguous()
    boxes, offsets = random_boxes(40, (32, 40), 2, seed=4), torch.randn(40, 2, 2, 3)
    boxes = boxes[(inside := (boxes[:, 2] > 2) & (boxes[:, 4] < 28))]
    assert len(boxes) > 5
    aligned = partial(ops.ps_roi_align, row, boxes, (2, 3), 0.25)
    torch.testing.assert_close(aligned((2, 4)), aligned(4))
    assert not torch.allclose(aligned((4, 2)), aligned(4))
    moved = partial(ops.deform_roi_pool, row, boxes, offsets[inside], (2, 3), 0.25, trans_std=0.01)
    torch.testing.assert_close(moved((2, 4)), moved(4))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"spatial_scale": (1.0, 2.0, 3.0)}, "spatial_scale must be a number or two of them"),
        ({"spatial_scale": (1.0, -2.0)}, "spatial_scale must be a positive finite number, got -2.0"),
        ({"spatial_scale": (1.0, 2.0), "bins": "rotated"}, "spatial_scale must be one number for bins 'rotated'"),
        ({"sampling_ratio": (2, 0)}, r"both are positive, got \(2, 0\)"),
        ({"sampling_ratio": (2, 3), "sampling": "integral"}, "unless sampling is 'points'"),
        ({"sampling_ratio": (2, 2, 2)}, "an integer or two of them"),
    ],
)
def test_what_has_no_meaning_says_so(settings, message) -> None:
    boxes = torch.zeros(1, 6 if settings.get("bins") == "rotated" else 5)
    with pytest.raises(ValueError, match=message):
        ops.pool(torch.zeros(1, 1, 4, 4), boxes, 2, **settings)


def test_wrong_boxes_are_named_in_pixels() -> None:
    with pytest.raises(ValueError, match=r"got \[8.0, 0.0, 4.0, 4.0\] at row 0"):
        ops.roi_align(torch.zeros(1, 1, 4, 4), torch.tensor([[0.0, 8, 0, 4, 4]]), 2, (0.25, 0.5))
