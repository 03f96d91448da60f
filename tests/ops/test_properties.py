"""What must hold for every box, sought by hypothesis."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detpool import ops

# Compiling the kernels makes the first example slow; that is no property of the operators.
relaxed = settings(deadline=None, max_examples=40, derandomize=True)

coordinate = st.floats(-8, 40, width=32)
side = st.floats(0, 30, width=32)
boxes_of_one_image = st.lists(st.tuples(coordinate, coordinate, side, side), min_size=1, max_size=6)
seeds = st.integers(0, 2**31 - 1)

OPERATORS = {
    "roi_pool": lambda f, b: ops.roi_pool(f, b, (3, 2)),
    "roi_align": lambda f, b: ops.roi_align(f, b, (3, 2), 1.0, 2, True),
    "roi_align adaptive": lambda f, b: ops.roi_align(f, b, (3, 2)),
    "ps_roi_pool": lambda f, b: ops.ps_roi_pool(f, b, (3, 2), convention="rfcn"),
    "pr_roi_pool": lambda f, b: ops.pr_roi_pool(f, b, (3, 2)),
}


def to_rois(boxes: list[tuple[float, float, float, float]], dtype: torch.dtype = torch.float64) -> torch.Tensor:
    x, y, width, height = torch.tensor(boxes, dtype=dtype).unbind(1)
    return torch.stack([torch.zeros_like(x), x, y, x + width, y + height], dim=1)


def features_of(seed: int) -> torch.Tensor:
    return torch.randn(1, 6, 24, 26, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@relaxed
@given(boxes_of_one_image, seeds, st.integers(0, 5), st.integers(0, 5))
def test_shifting_box_and_features_together_changes_nothing(boxes, seed: int, down: int, right: int) -> None:
    """Coordinates in eighths, so that shifting them is exact.

    The shifted map has a frame that is zero, as the outside is for the integral; the other operators do not count cells
    outside the image, so their boxes stay inside.
    """
    rois = (to_rois(boxes) * 8).round() / 8
    inside = rois.clone()
    inside[:, 1:] = inside[:, 1:].clamp(2, 20)
    features = features_of(seed)
    larger = torch.zeros(1, 6, 36, 38, dtype=torch.float64)
    larger[:, :, 2 + down : 26 + down, 2 + right : 28 + right] = features
    shift = torch.tensor([0, 2 + right, 2 + down, 2 + right, 2 + down])
    for name, operator in OPERATORS.items():
        chosen = rois if name == "pr_roi_pool" else inside
        torch.testing.assert_close(operator(larger, chosen + shift), operator(features, chosen), atol=1e-9, rtol=1e-9)


@relaxed
@given(boxes_of_one_image, seeds, st.sampled_from([0.25, 0.5, 2.0, 8.0]))
def test_scaling_boxes_against_the_spatial_scale_changes_nothing(boxes, seed: int, factor: float) -> None:
    rois, features = to_rois(boxes), features_of(seed)
    scaled = torch.cat([rois[:, :1], rois[:, 1:] * factor], dim=1)
    for operator in (ops.roi_pool, ops.roi_align, ops.ps_roi_pool, ops.ps_roi_align, ops.pr_roi_pool):
        torch.testing.assert_close(operator(features, scaled, (3, 2), 1 / factor), operator(features, rois, (3, 2)))


@relaxed
@given(boxes_of_one_image, seeds, st.floats(0.1, 0.9))
def test_the_integral_over_a_box_is_the_sum_over_its_parts(boxes, seed: int, share: float) -> None:
    rois, features = to_rois(boxes), features_of(seed)
    middle = rois[:, 1] + share * (rois[:, 3] - rois[:, 1])
    left, right = rois.clone(), rois.clone()
    left[:, 3], right[:, 1] = middle, middle

    def integral(rois: torch.Tensor) -> torch.Tensor:
        area = (rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])
        return ops.pr_roi_pool(features, rois, 1)[:, :, 0, 0] * area[:, None]

    torch.testing.assert_close(integral(left) + integral(right), integral(rois), atol=1e-9, rtol=1e-9)


@relaxed
@given(boxes_of_one_image, st.floats(-5, 5))
def test_constant_features_give_the_constant(boxes, value: float) -> None:
    rois = to_rois(boxes)
    rois[:, 1:] = rois[:, 1:].clamp(1, 20)
    features = torch.full((1, 6, 24, 26), value, dtype=torch.float64)
    for name, operator in OPERATORS.items():
        has_area = ((rois[:, 3:] - rois[:, 1:3]) > 0).all(dim=1)
        chosen = rois[has_area] if name == "pr_roi_pool" else rois
        output = operator(features, chosen)
        torch.testing.assert_close(output, torch.full_like(output, value), atol=1e-6, rtol=1e-6)


@relaxed
@given(boxes_of_one_image, seeds)
def test_the_order_of_rois_does_not_matter(boxes, seed: int) -> None:
    rois, features = to_rois(boxes), features_of(seed)
    order = torch.randperm(len(rois), generator=torch.Generator().manual_seed(seed))
    for operator in OPERATORS.values():
        assert torch.equal(operator(features, rois[order]), operator(features, rois)[order])


@relaxed
@given(boxes_of_one_image, seeds)
def test_a_maximum_is_a_value_of_the_features_and_no_mean_exceeds_it(boxes, seed: int) -> None:
    rois, features = to_rois(boxes), features_of(seed)
    maximum = ops.roi_pool(features, rois, (3, 2))
    assert torch.isin(maximum, torch.cat([features.flatten(), torch.zeros(1, dtype=torch.float64)])).all()
    average = ops.pool(features, rois, (3, 2), bins="rounded", sampling="cells")
    assert (average <= maximum + 1e-12).all()
