"""Every kernel under Triton's interpreter, on the CPU, against the reference.

float32 and float64 only: the interpreter's float16 and bfloat16 atomics are not those of a GPU.
"""

import functools
import math
import os
from importlib import import_module

import numpy as np
import pytest
import torch
from torch import Tensor

from detpool import ops
from detpool.ops import Sampling
from detpool.ops.backends.triton import launch, primitives
from detpool.ops.sampling import SAMPLING
from detpool.ops.spec import Spec

if os.environ.get("TRITON_INTERPRET") == "1":
    from triton.runtime.interpreter import InterpreterBuilder

BINS = (2, 1)  # few, since the interpreter takes its time; ACROSS tells the axes apart
ACROSS = (1, 2)
SCALE = 0.25
HEIGHT, WIDTH = 5, 7  # more than one square of the deterministic gradients along each axis, the last one cut

ORDINARY = [0.0, 3.3, 4.1, 17.7, 15.2]
ROIS = torch.tensor(
    [
        ORDINARY,
        [1.0, 9.31, 2.17, 9.52, 2.44],  # tiny
        [1.0, 13.31, 9.17, 13.31, 14.3],  # no area
        [0.0, -90.3, -70.7, -40.2, -30.1],  # outside
        [1.0, -9.4, -7.9, 31.3, 10.6],  # partly outside
        [1.0, 0.0, 0.0, 28.0, 20.0],  # the whole image
    ]
)

OPERATORS = {
    "roi_pool": (1, ops.roi_pool),
    "roi_align": (1, functools.partial(ops.roi_align, sampling_ratio=2)),
    "roi_align adaptive": (1, functools.partial(ops.roi_align, sampling_ratio=0, aligned=True)),
    "roi_align maximum": (1, functools.partial(ops.roi_align, sampling_ratio=2, reduction="max")),
    "roi_warp": (1, functools.partial(ops.roi_warp, sampling_ratio=2)),
    "ps_roi_pool": (2, ops.ps_roi_pool),
    "ps_roi_pool rfcn": (2, functools.partial(ops.ps_roi_pool, convention="rfcn")),
    "ps_roi_align": (2, functools.partial(ops.ps_roi_align, sampling_ratio=1)),
    "pr_roi_pool": (1, ops.pr_roi_pool),
    "pr_roi_pool position-sensitive": (2, functools.partial(ops.pr_roi_pool, position_sensitive=True)),
}


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=["atomic", "deterministic"])
def either_form(request):
    torch.use_deterministic_algorithms(request.param == "deterministic")
    yield
    torch.use_deterministic_algorithms(False)


def make_features(channels: int, layout: str, dtype: torch.dtype) -> Tensor:
    features = torch.randn(2, channels, HEIGHT, WIDTH, dtype=dtype, generator=torch.Generator().manual_seed(0))
    if layout == "channels_last":
        features = features.contiguous(memory_format=torch.channels_last)
    elif layout == "strided":
        features = features.repeat_interleave(2, dim=3)[..., ::2]
    return features.requires_grad_()


def check_equal(function, inputs: list[Tensor]) -> None:
    """``function(backend, *inputs)`` and its gradients for all inputs, of the kernels and of the reference."""
    results = {}
    for name in ("reference", "triton"):
        copies = [value.detach().clone(memory_format=torch.preserve_format).requires_grad_() for value in inputs]
        output = function(name, *copies)
        weight = torch.randn(output.shape, dtype=output.dtype, generator=torch.Generator().manual_seed(1))
        grads = torch.autograd.grad(output, copies, weight, allow_unused=True)
        with torch.no_grad():  # which saves maxima their places
            assert torch.equal(function(name, *copies), output)
        results[name] = (output, *(torch.zeros(()) if grad is None else grad for grad in grads))
    tolerance = 1e-10 if inputs[0].dtype == torch.float64 else 2e-5  # sums of tens of products of order one
    for got, expected in zip(results["triton"], results["reference"], strict=True):
        torch.testing.assert_close(got.expand_as(expected), expected, atol=tolerance, rtol=tolerance)
    assert results["triton"][0].stride() == results["reference"][0].stride()


# Strides are the kernels' affair, not the rules': a few operators tell.
CASES = [
    (name, *case) for name in OPERATORS for case in (("channels_last", torch.float32), ("contiguous", torch.float64))
]
CASES += [(name, "strided", torch.float32) for name in ("roi_pool", "roi_align", "ps_roi_pool")]


@pytest.mark.parametrize(("name", "layout", "dtype"), CASES)
def test_operators(name: str, layout: str, dtype: torch.dtype) -> None:
    check_operator(name, layout, dtype, BINS if layout == "channels_last" else ACROSS)


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_deterministically(name: str, deterministic) -> None:
    check_operator(name, "channels_last", torch.float32, ACROSS)


@pytest.mark.parametrize("name", ["roi_pool", "roi_align", "pr_roi_pool"])
def test_the_order_of_programs_does_not_change_deterministic_gradients(name: str, deterministic, monkeypatch) -> None:
    groups, operator = OPERATORS[name]
    in_order, orders = InterpreterBuilder.set_grid_idx, []

    def shuffle(builder, x: int, y: int, z: int) -> None:
        sizes = builder.grid_dim
        if (x, y, z) == (0, 0, 0):
            orders.append(torch.randperm(math.prod(sizes), generator=torch.Generator().manual_seed(len(orders))))
        number = int(orders[-1][(x * sizes[1] + y) * sizes[2] + z])
        in_order(builder, *(int(n) for n in np.unravel_index(number, sizes)))

    def grads() -> tuple[Tensor, ...]:
        features, rois = make_features(groups * 4, "channels_last", torch.float32), ROIS.clone().requires_grad_()
        output = operator(features, rois, ACROSS, SCALE, backend="triton")
        found = torch.autograd.grad(output.sin().sum(), (features, rois), allow_unused=True)
        return tuple(grad for grad in found if grad is not None)

    expected = grads()
    monkeypatch.setattr(InterpreterBuilder, "set_grid_idx", shuffle)
    shuffled = grads()
    assert len(orders) >= 3, "forward, extents, gradient"
    assert any((order != torch.arange(len(order))).any() for order in orders)
    assert all(torch.equal(a, b) for a, b in zip(shuffled, expected, strict=True))


def check_operator(name: str, layout: str, dtype: torch.dtype, bins: tuple[int, int]) -> None:
    groups, operator = OPERATORS[name]
    channels = groups * (4 if layout == "channels_last" else 3)

    def pool(backend: str, features: Tensor, coords: Tensor) -> Tensor:
        rois = torch.cat([ROIS[:, :1].to(coords), coords], dim=1)
        return operator(features, rois, bins, SCALE, backend=backend)

    check_equal(pool, [make_features(channels, layout, dtype), ROIS[:, 1:].to(dtype)])


LARGE = [(name, "contiguous") for name in ("roi_pool", "roi_align", "pr_roi_pool", "ps_roi_pool")]
LARGE += [("ps_roi_align", "channels_last"), ("ps_roi_align", "strided")]


@pytest.mark.parametrize(("name", "layout"), LARGE)
def test_what_is_done_for_large_calls_only(name: str, layout: str, either_form, monkeypatch) -> None:
    """A program takes a row of bins, and what a bin reads of a cell lies side by side in a copy."""
    monkeypatch.setattr(launch, "ENOUGH", 0)
    monkeypatch.setattr(primitives, "pays_to_copy", lambda *args: True)
    check_operator(name, layout, torch.float32, ACROSS)


@pytest.mark.parametrize("operator", [ops.deform_roi_pool, ops.deform_ps_roi_pool])
def test_deformable_operators(operator, either_form) -> None:
    channels = 4 if operator is ops.deform_ps_roi_pool else 2
    rois = ROIS[[0, 4]]
    offsets = torch.randn(2, 2, *BINS, generator=torch.Generator().manual_seed(2))

    def pool(backend: str, features: Tensor, offsets: Tensor) -> Tensor:
        return operator(features, rois, offsets, BINS, SCALE, backend=backend)

    check_equal(pool, [make_features(channels, "channels_last", torch.float32), offsets])


def test_more_channels_than_a_program_takes(either_form) -> None:
    def pool(backend: str, features: Tensor) -> Tensor:
        return ops.roi_align(features, ROIS[:1], BINS, SCALE, 1, backend=backend)

    check_equal(pool, [make_features(300, "channels_last", torch.float32)])

    def maximum(backend: str, features: Tensor) -> Tensor:
        return ops.roi_pool(features, ROIS[:1], BINS, SCALE, backend=backend)

    check_equal(maximum, [make_features(300, "contiguous", torch.float32)])


def test_composed_reductions() -> None:
    for reduction in (ops.reductions.Lp(2.5), ops.reductions.Softmax(0.7), "sum"):

        def pool(backend: str, features: Tensor, reduction=reduction) -> Tensor:
            return ops.pool(
                features,
                ROIS[:2],
                BINS,
                SCALE,
                reduction=reduction,
                sampling="integral",
                bins="continuous",
                backend=backend,
            )

        check_equal(pool, [make_features(3, "channels_last", torch.float64)])


def test_second_derivatives() -> None:
    """They go through the taps; the first derivatives they begin with are the kernels'."""
    features = make_features(2, "contiguous", torch.float64)
    coords = torch.tensor([ORDINARY[1:]], dtype=torch.float64, requires_grad=True)

    def pool(features: Tensor, coords: Tensor) -> Tensor:
        rois = torch.cat([torch.zeros(1, 1), coords], dim=1)
        return ops.pr_roi_pool(features, rois, 1, SCALE, backend="triton")

    assert torch.autograd.gradcheck(pool, (features, coords), fast_mode=True)
    assert torch.autograd.gradgradcheck(pool, (features, coords), fast_mode=True)


@pytest.fixture
def unchecked(monkeypatch):
    """Values are not inspected, as on a GPU, where the interpreter's CPU tensors would be."""
    monkeypatch.setattr(primitives, "checks_values", lambda device: False)


def test_offsets_that_are_not_finite_give_nan(unchecked) -> None:
    features, offsets = make_features(2, "channels_last", torch.float32), torch.zeros(2, 2, *BINS)
    offsets[1, 0, 1, 0] = torch.nan
    output = ops.deform_roi_pool(features, ROIS[[0, 0]], offsets, BINS, SCALE, 2, backend="triton")
    assert output[1].isnan().sum() == 2  # of one bin, in both channels
    assert not output[0].isnan().any()


def test_a_pyramid_at_once_equals_its_maps_one_by_one(either_form) -> None:
    maps = [make_features(2, layout, torch.float32) for layout in ("channels_last", "contiguous")]
    levels = torch.tensor([1, 0, 1, 0, 0, 1])
    for operator in (ops.roi_pool, functools.partial(ops.roi_align, sampling_ratio=2)):
        results = []
        for backend in ("reference", "triton"):
            output = operator(maps, ops.PyramidRoIs(ROIS, levels), BINS, [SCALE, SCALE / 2], backend=backend)
            weight = torch.linspace(-1, 1, output.numel()).view(output.shape)
            results.append((output, *torch.autograd.grad(output, maps, weight)))
        for got, expected in zip(*results, strict=True):
            torch.testing.assert_close(got, expected, atol=2e-5, rtol=2e-5)


def test_levels_are_those_of_the_tensor_operations() -> None:
    sides = torch.tensor([0.0, 1, 56, 111.9, 112, 223.9, 224, 447.9, 448, 5000, torch.nan])
    boxes = torch.stack([torch.zeros(11), torch.zeros(11), sides, sides], 1)
    assert ops.assign_levels(boxes, 4, 2).tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 0]


def test_infinite_gradients_stay_in_their_cells(either_form) -> None:
    features = make_features(1, "contiguous", torch.float32)
    output = ops.roi_align(features, torch.tensor([[0.0, 0, 0, 4, 4]]), 1, SCALE, 1, backend="triton")
    (grad,) = torch.autograd.grad(output, features, torch.full_like(output, torch.inf))
    assert grad[0, 0, :2, :2].isinf().any()
    assert grad[0, 0, 2:].eq(0).all()
    assert grad[1].eq(0).all()


def test_nothing_to_pool() -> None:
    for features, rois in (
        (torch.randn(2, 3, 4, 4, requires_grad=True), torch.zeros(0, 5)),
        (torch.randn(0, 3, 4, 4, requires_grad=True), torch.zeros(0, 5)),
    ):
        for operator in (ops.roi_align, ops.roi_pool):
            output = operator(features, rois, 2, backend="triton")
            assert output.shape == (0, 3, 2, 2)
            (grad,) = torch.autograd.grad(output.sum(), features)
            assert torch.equal(grad, torch.zeros_like(features))


def test_the_rule_of_the_documentation(own_package) -> None:
    """One function in a file, and no kernel; of boxes within the image, beyond its border, and outside.

    Of the box that is the whole image an edge of a cell is exactly where the Gaussian is cut off and has no derivative,
    where releases of PyTorch differ in the gradient of ``clamp``. Hence all boxes are moved a little.
    """
    import_module("my_package.rules")

    def pool(backend: str, features: Tensor, coords: Tensor) -> Tensor:
        return ops.pool(features, [coords], 2, SCALE, sampling="gaussian", backend=backend)

    check_equal(pool, [make_features(2, "channels_last", torch.float64)[:1], ROIS[:, 1:].double() + 0.01])


def test_a_rule_without_a_triton_form_is_refused_by_name() -> None:
    rule = Sampling(taps=SAMPLING["points"].taps)
    with pytest.raises(ops.BackendError, match="the rule has no Triton form"):
        ops.pool(torch.randn(1, 1, 4, 4), ROIS[:1], 1, SCALE, sampling=rule, backend="triton")


def test_opcheck() -> None:
    spec = Spec("aligned", "points", (2, 2), (SCALE,), 1).text
    features, rois = torch.randn(2, 2, 4, 5, requires_grad=True), ROIS[:2].clone().requires_grad_()
    torch.library.opcheck(torch.ops.detpool.weighted_sum, ([features], rois, None, None, spec, "triton"))
    grad, bare = torch.randn(2, 2, 2, 2), features.detach()
    shape = ([2, 2, 4, 5], [False])
    torch.library.opcheck(torch.ops.detpool.weighted_sum_of_grad, (grad, ROIS[:2], None, None, *shape, spec, "triton"))
    torch.library.opcheck(
        torch.ops.detpool.weighted_sum_roi_grads, (grad, [bare], ROIS[:2], None, None, spec, "triton")
    )


@pytest.mark.parametrize("name", ["roi_pool", "roi_align adaptive", "pr_roi_pool"])
def test_compiles_without_a_graph_break(name: str) -> None:
    operator = functools.partial(OPERATORS[name][1], output_size=BINS, spatial_scale=SCALE)
    features = make_features(2, "channels_last", torch.float32)
    rois = ROIS[:2].clone().requires_grad_()
    torch._dynamo.reset()
    # aot_eager traces forward and backward as the default backend does; what the graph calls is interpreted
    compiled = torch.compile(operator, fullgraph=True, backend="aot_eager")
    results = []
    for function in (compiled, operator):
        output = function(features, rois)
        results.append((output, *torch.autograd.grad(output.sum(), (features, rois), allow_unused=True)))
    for got, expected in zip(*results, strict=True):
        assert got is expected is None or got is not None
        if expected is not None:
            torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("name", ["roi_pool", "roi_align adaptive", "pr_roi_pool"])
def test_exports_with_any_number_of_rois(name: str) -> None:
    operator = functools.partial(OPERATORS[name][1], output_size=BINS, spatial_scale=SCALE)

    class Module(torch.nn.Module):
        def forward(self, features, rois):
            return operator(features, rois)

    features = make_features(2, "channels_last", torch.float32).detach()
    number = torch.export.Dim("rois", min=2)
    program = torch.export.export(Module(), (features, ROIS[:3]), dynamic_shapes=({}, {0: number}))
    called = {str(node.target) for node in program.graph.nodes}
    assert {"detpool.weighted_sum.default", "detpool.window_max.default"} & called
    torch.testing.assert_close(program.module()(features, ROIS), operator(features, ROIS))
