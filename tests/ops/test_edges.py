"""Values at the edges of what numbers can hold, and what must not reach where it does not belong."""

import tracemalloc

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from detpool import ops

BACKENDS = ("cpu", "reference")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("side", [1e-3, 1e-10, 1e-17, 1e-30, 1e-44])
def test_precise_roi_pooling_of_tiny_boxes(side: float, backend: str) -> None:
    """Between the cells 1 and 2 the surface is ``1 + x``: its mean is ``1 + side / 2``, with derivative 1/2."""
    features = torch.tensor([[[[1.0, 2.0]]]])
    box = torch.tensor([[0.0, 0, -0.5, side, 0.5]], requires_grad=True)  # along y the mean of the hat is 3/4
    output = ops.pr_roi_pool(features, box, 1, backend=backend)
    torch.testing.assert_close(output.item(), 0.75 * (1 + side / 2))
    (grad,) = torch.autograd.grad(output.sum(), box)
    torch.testing.assert_close(grad[0, 3].item(), 0.75 / 2)
    torch.testing.assert_close(grad[0, 1].item(), 0.75 / 2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_boxes_as_large_as_numbers_go(backend: str) -> None:
    """The mean over such a box is 0 to any precision, or the value at its centre where a point lies there."""
    largest = torch.finfo(torch.float32).max
    features = torch.ones(1, 1, 5, 5, requires_grad=True)
    box = torch.tensor([[0, -largest, -largest, largest, largest]], requires_grad=True)
    for call, expected in (
        (lambda: ops.pr_roi_pool(features, box, 1, backend=backend), 0.0),
        (lambda: ops.pr_roi_pool(features, box, 2, 4.0, backend=backend), 0.0),
        (lambda: ops.roi_align(features, box, 1, 2.0, 1, backend=backend), 1.0),
        (lambda: ops.roi_align(features, box, 3, 2.0, 2, True, backend=backend), 0.0),
        (lambda: ops.roi_align(features, box, 3, 1.0, backend=backend), 0.0),
        (lambda: ops.roi_pool(features, box, 1, backend=backend), 1.0),
        (lambda: ops.ps_roi_pool(features, box, 1, convention="rfcn", backend=backend), 1.0),
    ):
        output = call()
        torch.testing.assert_close(output, torch.full_like(output, expected), atol=1e-6, rtol=0)
        for grad in torch.autograd.grad(output.sum(), (features, box), allow_unused=True):
            assert grad is None or grad.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_a_bin_does_not_read_has_no_part_in_it(backend: str) -> None:
    """NaN and infinity in cells, and in the gradient of the output."""
    clean = torch.randn(1, 2, 12, 12, generator=torch.Generator().manual_seed(0))
    dirty = clean.clone()
    dirty[0, 0, 10:, 10:], dirty[0, 1, 10:, :3] = torch.nan, torch.inf
    boxes = torch.tensor([[0.0, 2, 2, 6, 6], [0, 3, 1, 7.5, 8]])
    for operator in (
        ops.roi_pool,
        ops.roi_align,
        ops.pr_roi_pool,
        lambda *a, **k: ops.roi_align(*a, reduction="max", **k),
    ):
        results = []
        for source in (clean, dirty):
            features, leaf = source.clone().requires_grad_(), boxes.clone().requires_grad_()
            output = operator(features, leaf, 2, backend=backend)
            grads = torch.autograd.grad(output.sum(), (features, leaf), allow_unused=True)
            results.append([output, *(grad for grad in grads if grad is not None)])
        for got, expected in zip(*results, strict=True):
            assert torch.equal(got, expected)
        output = operator(features := clean.clone().requires_grad_(), boxes, 2, backend=backend)
        cotangent = torch.zeros_like(output)
        cotangent[0, 0, 0, 0] = torch.nan
        (grad,) = torch.autograd.grad(output, features, cotangent)
        assert 0 < grad.isnan().sum() <= 16  # cells of the one bin, in one channel
        assert grad[0, 1].eq(0).all()


@pytest.mark.parametrize("operator", [ops.roi_align, ops.roi_pool, ops.pr_roi_pool, ops.roi_warp])
def test_features_may_change_after_a_call_that_needs_them_no_more(operator) -> None:
    leaf = torch.randn(1, 3, 9, 9, generator=torch.Generator().manual_seed(0)).requires_grad_()
    boxes, kept = torch.tensor([[0.0, 1, 1, 5, 5]]), []
    features = leaf * 1
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        output = operator(features, boxes, 2)
    assert all(t.shape != features.shape for t in kept)
    (expected,) = torch.autograd.grad(operator(leaf, boxes, 2).sum(), leaf)
    torch.relu_(features)
    (got,) = torch.autograd.grad(output.sum(), leaf)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("p", [2.0, 10.0, 80.0, 300.0])
def test_gradients_of_lp_on_rectified_features_are_finite(p: float) -> None:
    """Also where values differ by more than a float holds."""
    generator = torch.Generator().manual_seed(0)
    ordinary = torch.randn(1, 4, 30, 40, generator=generator).relu()
    spread = torch.rand(1, 4, 30, 40, generator=generator) * 10.0 ** -torch.randint(0, 40, (1, 4, 30, 40))
    start = torch.rand(60, 2, generator=generator) * 30
    boxes = torch.cat([torch.zeros(60, 1), start, start + torch.rand(60, 2, generator=generator) * 20], dim=1)
    for features in (ordinary, spread):
        features = features.clone().requires_grad_()
        module = ops.reductions.Lp(p, learnable=True)
        output = ops.pool(features, boxes, 3, reduction=module)
        output.sum().backward()
        assert output.isfinite().all()
        assert features.grad.isfinite().all()
        assert module.p.grad.isfinite()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_in_half_precision(dtype: torch.dtype) -> None:
    """Of 90,000 cells, more than float16 can count; and of one cell whose mean float16 cannot hold."""
    box = torch.tensor([[0.0, 0, 0, 299, 299]])

    def total(features):
        return ops.pool(features, box, 1, bins="rounded", sampling="cells", reduction="sum").item()

    assert total(torch.zeros(1, 1, 300, 300, dtype=dtype)) == 0
    assert total(torch.full((1, 1, 300, 300), 0.01, dtype=dtype)) == pytest.approx(900, rel=1e-2)
    single = torch.zeros(1, 1, 300, 300, dtype=dtype)
    single[0, 0, 7, 9] = 1e-3
    assert total(single) == pytest.approx(1e-3, rel=1e-2)


def test_the_adaptive_maximum_of_an_endless_box_takes_bounded_memory() -> None:
    features = torch.randn(1, 16, 50, 76)
    box = torch.tensor([[0.0, -1e5, -1e5, 1e5, 1e5]])
    for backend in BACKENDS:
        ops.roi_align(features, box / 100, 7, reduction="max", backend=backend)  # compiles
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            tracemalloc.start()
            ops.roi_align(features, box, 7, reduction="max", backend=backend)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        largest = max(event.self_cpu_memory_usage for event in record.events())
        assert peak + largest < 200 * features.nbytes  # all points at once are 5,000 times as many numbers


def test_more_points_than_can_be_numbered_are_refused() -> None:
    box = torch.tensor([[0.0, 0, 0, 1, 1]])
    for features, ratio in ((torch.zeros(1, 1, 1, 20000), 0), (torch.zeros(1, 1, 2, 2), 1 << 15)):
        with pytest.raises(ValueError, match="numbers fewer than 32768 of them"):
            ops.roi_align(features, box, 1, 1.0, ratio, reduction="max")


@pytest.mark.parametrize("ratio", [(2, 3.0), 2.0, "2", None, True])
def test_a_sampling_ratio_is_of_integers(ratio) -> None:
    for operator in (ops.roi_align, ops.roi_warp, ops.ps_roi_align):
        with pytest.raises(TypeError, match="sampling_ratio must be an integer, got"):
            operator(torch.zeros(1, 4, 5, 5), torch.zeros(1, 5), 2, 1.0, ratio)


def test_what_a_sampling_rule_returns_is_checked() -> None:
    features, boxes = torch.ones(1, 1, 6, 7), torch.tensor([[0.0, 1, 1, 4, 4]])

    def rule(index, weight=None) -> ops.Sampling:
        weight = torch.ones(index.shape) if weight is None else weight
        return ops.Sampling(taps=lambda bins, length, ratio: ops.Taps(index, weight))

    def index(*cells: int) -> torch.Tensor:
        return torch.tensor(cells, dtype=torch.int32).expand(1, 2, 1, len(cells))

    for backend in BACKENDS:

        def pool(sampling: ops.Sampling, backend: str = backend) -> torch.Tensor:
            return ops.pool(features, boxes, 2, sampling=sampling, backend=backend)

        assert torch.equal(pool(rule(index())), torch.zeros(1, 1, 2, 2))  # no taps at all
        assert torch.equal(pool(rule(index(0, -1))), torch.ones(1, 1, 2, 2))
        for cells in ((0, 6), (-2, 0)):  # a row that is not there; no cell at all
            with pytest.raises(IndexError, match="cells from 0 to 5 or -1, got"):
                pool(rule(index(*cells)))
        with pytest.raises(ValueError, match=r"must have shape \(1, 2, 1, T\), got index \(1, 3, 1, 1\)"):
            pool(rule(torch.zeros(1, 3, 1, 1, dtype=torch.int32)))
        with pytest.raises(ValueError, match=r"weight \(1, 2, 1, 2\)"):
            pool(rule(index(0), torch.ones(1, 2, 1, 2)))
        with pytest.raises(TypeError, match="torch.float32 and torch.float32"):
            pool(rule(torch.zeros(1, 2, 1, 1)))
        with pytest.raises(TypeError, match="must be Taps of two tensors, got list"):
            pool(ops.Sampling(taps=lambda bins, length, ratio: []))  # type: ignore[return-value]


def test_maps_and_levels_of_a_pyramid_belong_together() -> None:
    maps, rois = [torch.zeros(1, 2, 8, 8), torch.zeros(1, 2, 4, 4)], torch.zeros(3, 5)
    good = ops.PyramidRoIs(rois, torch.zeros(3, dtype=torch.int64))
    for features, boxes, scales, error, message in (
        (maps, rois, [1.0, 0.5], TypeError, "boxes must be PyramidRoIs where input is several maps, got Tensor"),
        (maps, good, 1.0, ValueError, "spatial_scale must hold a number for each of the 2 maps, got 1.0"),
        (maps, good, [1.0], ValueError, r"each of the 2 maps, got \[1.0\]"),
        ([maps[0], maps[1].double()], good, [1.0, 0.5], ValueError, "same images, channels, dtype and device"),
        ([maps[0], maps[1][:, :1]], good, [1.0, 0.5], ValueError, "same images, channels, dtype and device"),
        (maps[0], good, 1.0, TypeError, "got PyramidRoIs"),
        ([], good, [], ValueError, "each of the 0 maps"),
        (maps, ops.PyramidRoIs(rois, torch.zeros(2, dtype=torch.int64)), [1.0, 0.5], ValueError, r"shape \(3,\)"),
        (maps, ops.PyramidRoIs(rois, torch.zeros(3)), [1.0, 0.5], ValueError, "levels must be int64"),
    ):
        with pytest.raises(error, match=message):
            ops.roi_align(features, boxes, 2, scales)
    with pytest.raises(ValueError, match="one map at a time"):
        ops.pool(maps, good, 2, [1.0, 0.5], reduction=ops.reductions.Lp())
