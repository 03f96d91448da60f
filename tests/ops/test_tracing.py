"""The operators as PyTorch sees them: registration, torch.compile and torch.export."""

from typing import ClassVar

import pytest
import torch
from ops_cases import random_boxes
from torch._subclasses.fake_tensor import FakeTensorMode

from detpool import ops
from detpool.ops.spec import Spec
from detpool.poolers import RoIPooler

CALLS = {
    "roi_pool": lambda f, b, scale=0.25, **k: ops.roi_pool(f, b, 3, scale, **k),
    "roi_align": lambda f, b, scale=0.25, **k: ops.roi_align(f, b, 3, scale, 2, True, **k),
    "roi_align adaptive": lambda f, b, scale=0.25, **k: ops.roi_align(f, b, 3, scale, 0, **k),
    "roi_align max": lambda f, b, scale=0.25, **k: ops.roi_align(f, b, 3, scale, 2, reduction="max", **k),
    "ps_roi_pool": lambda f, b, scale=0.25, **k: ops.ps_roi_pool(f, b, 3, scale, **k),
    "pr_roi_pool": lambda f, b, scale=0.25, **k: ops.pr_roi_pool(f, b, 3, scale, **k),
}
OPERATORS = {
    "roi_pool": lambda f, b: ops.roi_pool(f, b, 3, 0.25),
    "roi_align": lambda f, b: ops.roi_align(f, b, 3, 0.25, 2, True),
    "roi_align adaptive": lambda f, b: ops.roi_align(f, b, 3, 0.25, 0),
    "roi_align max": lambda f, b: ops.roi_align(f, b, 3, 0.25, 0, reduction="max"),
    "ps_roi_pool": lambda f, b: ops.ps_roi_pool(f, b, 3, 0.25),
    "pr_roi_pool": lambda f, b: ops.pr_roi_pool(f, b, 3, 0.25),
}


BOXES = torch.tensor([[1.0, 3.3, 4.1, 17.7, 15.2], [0, -9.4, -7.9, 31.3, 10.6], [1, 9.3, 2.2, 9.5, 2.4]])
LEVELS = torch.tensor([1, 0, 1])
SPECS = {
    "points": Spec("aligned", "points", (2, 2), (0.25, 0.125), 2),
    "integral, groups": Spec("continuous", "integral", (2, 2), (0.25, 0.125), -1, (2, 2)),
    "cells": Spec("rounded", "cells", (2, 2), (0.25, 0.125)),
}


def maps_of(spec: Spec, channels_last: bool = False) -> list[torch.Tensor]:
    torch.manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    channels = 2 * spec.groups[0] * spec.groups[1]
    sizes = ((6, 7), (3, 4))
    return [torch.randn(2, channels, *size).contiguous(memory_format=layout).requires_grad_() for size in sizes]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", ["points", "integral, groups"])
def test_opcheck_of_the_weighted_sum(name: str, channels_last: bool) -> None:
    spec = SPECS[name]
    maps, rois = maps_of(spec, channels_last), BOXES.clone().requires_grad_()
    offsets = torch.randn(3, 2, 2, 2, requires_grad=True)
    torch.library.opcheck(torch.ops.detpool.weighted_sum, (maps, rois, LEVELS, offsets, spec.text, "cpu"))
    grad, bare = torch.randn(3, 2, 2, 2), [m.detach() for m in maps]
    shapes = [n for m in maps for n in m.shape]
    fixed, how = offsets.detach(), (spec.text, "cpu")
    of_maps = (grad, BOXES, LEVELS, fixed, shapes, [channels_last] * 2, *how)
    torch.library.opcheck(torch.ops.detpool.weighted_sum_of_grad, of_maps)
    torch.library.opcheck(torch.ops.detpool.weighted_sum_roi_grads, (grad, bare, BOXES, LEVELS, fixed, *how))


@pytest.mark.parametrize("name", ["points", "cells"])
def test_opcheck_of_the_window_maximum(name: str) -> None:
    spec = SPECS[name]
    maps, rois = maps_of(spec), BOXES.clone().requires_grad_(name == "points")
    torch.library.opcheck(torch.ops.detpool.window_max, (maps, rois, LEVELS, spec.text, "cpu", True))
    bare = [m.detach() for m in maps]
    torch.library.opcheck(torch.ops.detpool.window_max, (bare, BOXES, LEVELS, spec.text, "cpu", False))
    argmax = torch.ops.detpool.window_max(bare, BOXES, LEVELS, spec.text, "cpu", True)[1]
    grad, shapes = torch.randn(argmax.shape), [n for m in maps for n in m.shape]
    how = (spec.text, "cpu")
    of_maps = (grad, argmax, BOXES, LEVELS, shapes, [False, True], *how)
    torch.library.opcheck(torch.ops.detpool.window_max_of_grad, of_maps)
    if name == "points":
        torch.library.opcheck(torch.ops.detpool.window_max_roi_grads, (grad, argmax, bare, BOXES, LEVELS, *how))


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_compiles_without_a_graph_break(operator) -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
    features = torch.randn(2, 9, 8, 10, requires_grad=True)
    boxes = random_boxes(20, (32, 40), 2, seed=0).requires_grad_()
    # aot_eager traces forward and backward as the default backend does and skips the C++ compiler
    compiled = torch.compile(operator, fullgraph=True, backend="aot_eager")
    got, expected = compiled(features, boxes), operator(features, boxes)
    torch.testing.assert_close(got, expected)
    inputs = (features, boxes)
    weight = torch.randn_like(got)
    grads_got = torch.autograd.grad(got, inputs, weight, allow_unused=True)
    grads_expected = torch.autograd.grad(expected, inputs, weight, allow_unused=True)
    for a, b in zip(grads_got, grads_expected, strict=True):
        if b is not None:
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["roi_pool", "roi_align adaptive", "pr_roi_pool"])
def test_exports(name: str) -> None:
    operator = OPERATORS[name]

    class Module(torch.nn.Module):
        def forward(self, features, boxes):
            return operator(features, boxes)

    torch.manual_seed(0)
    features, boxes = torch.randn(2, 9, 8, 10), random_boxes(20, (32, 40), 2, seed=0)
    rois = torch.export.Dim("rois", min=2)
    program = torch.export.export(Module(), (features, boxes), dynamic_shapes=({}, {0: rois}))
    more = random_boxes(33, (32, 40), 2, seed=1)
    torch.testing.assert_close(program.module()(features, more), operator(features, more))


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("roi_pool", "cpu"),
        ("roi_align adaptive", "cpu"),
        ("ps_roi_pool", "cpu"),
        ("roi_align", "reference"),
    ],
)
def test_compiled_code_refuses_what_eager_code_refuses(name: str, backend: str) -> None:
    torch._dynamo.reset()
    features = torch.ones(1, 9, 8, 10)
    compiled = torch.compile(
        lambda f, b: CALLS[name](f, b, backend=backend), fullgraph=True, backend="aot_eager", dynamic=True
    )
    good = torch.tensor([[0.0, 1, 1, 5, 5], [0.0, 1, 1, 5, 5]])
    assert compiled(features, good).shape[0] == 2
    for column, value, message in (
        (2, torch.nan, "finite, got .* at row 1"),
        (3, torch.inf, "finite, got .* at row 1"),
        (4, 0.5, "y1 <= y2, got .* at row 1"),
        (0, 0.5, r"boxes\[1, 0\] .* got 0.5"),
        (0, -1, r"boxes\[1, 0\] .* got -1"),
        (0, 1e9, r"boxes\[1, 0\] .* from 0 to 0"),
    ):
        wrong = good.clone()
        wrong[1, column] = value
        with pytest.raises(ValueError, match=message):
            compiled(features, wrong)


def test_a_map_of_one_row_compiles() -> None:
    torch._dynamo.reset()
    features, boxes = torch.ones(1, 4, 1, 9), torch.tensor([[0, 0.0, 0, 8, 6]])
    for backend in ("cpu", "reference"):
        compiled = torch.compile(lambda x, b, k=backend: ops.ps_roi_pool(x, b, 2, backend=k), backend="aot_eager")
        # torchvision's convention never reads the last row, which is the only one
        assert torch.equal(compiled(features, boxes), torch.zeros(1, 1, 2, 2))


@pytest.mark.parametrize("name", CALLS)
def test_compiles_with_symbolic_sizes_and_scale(name: str) -> None:
    torch._dynamo.reset()

    def function(features, boxes, scale: float):
        return CALLS[name](features, boxes, scale=scale)

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    torch.manual_seed(0)
    for images, height, width, rois, scale in ((2, 8, 10, 20, 0.25), (3, 11, 7, 9, 0.3)):
        features = torch.randn(images, 9, height, width)
        boxes = random_boxes(rois, (32, 40), images, seed=rois)
        torch.testing.assert_close(compiled(features, boxes, scale), function(features, boxes, scale))


@pytest.mark.parametrize("name", CALLS)
def test_jit_trace_keeps_no_size_of_the_example(name: str) -> None:
    torch.manual_seed(0)
    features = torch.randn(2, 9, 8, 10)
    few, many = random_boxes(3, (8, 10), 2, seed=0), random_boxes(30, (64, 80), 2, seed=1)
    traced = torch.jit.trace(lambda f, b: CALLS[name](f, b), (features, few), check_trace=False)
    torch.testing.assert_close(traced(features, many), CALLS[name](features, many))
    with pytest.raises(RuntimeError, match=r"torch.jit.trace cannot record the reference backend.*torch.export"):
        torch.jit.trace(lambda f, b: CALLS[name](f, b, backend="reference"), (features, few))


@pytest.mark.parametrize("name", CALLS)
def test_shapes_without_values(name: str) -> None:
    """Meta tensors, fake tensors and the proxies of torch.fx."""
    features, boxes = torch.randn(2, 9, 8, 10), random_boxes(5, (32, 40), 2, seed=0)
    expected = CALLS[name](features, boxes)
    assert CALLS[name](features.to("meta"), boxes.to("meta")).shape == expected.shape
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = [mode.from_tensor(t) for t in (features, boxes)]
        assert CALLS[name](*fakes).shape == expected.shape

    class Module(torch.nn.Module):
        def forward(self, features, boxes):
            return CALLS[name](features + 0, [boxes[:3, 1:], boxes[3:, 1:]])

    traced = torch.fx.symbolic_trace(Module())
    assert torch.equal(traced(features, boxes), Module()(features, boxes))


def test_vmap_over_features_and_boxes() -> None:
    features, boxes = torch.randn(3, 2, 9, 8, 10), random_boxes(5, (32, 40), 2, seed=0)
    for name, call in CALLS.items():
        expected = torch.stack([call(f, boxes) for f in features])
        got = torch.vmap(lambda f, call=call: call(f, boxes))(features)
        torch.testing.assert_close(got, expected, msg=lambda m, n=name: f"{n}: {m}")
    moved = torch.stack([boxes, boxes + torch.tensor([0.0, 1, 1, 1, 1])])
    got = torch.vmap(lambda b: ops.roi_align(features[0], b, 3, 0.25, 2))(moved)
    torch.testing.assert_close(got, torch.stack([ops.roi_align(features[0], b, 3, 0.25, 2) for b in moved]))


class TestPooler:
    """A `RoIPooler` of four levels."""

    sizes: ClassVar = [(64, 80), (64, 80)]

    def make(self, operator=ops.roi_align) -> tuple[RoIPooler, dict[str, torch.Tensor], list[torch.Tensor]]:
        pooler = RoIPooler(["0", "1", "2", "3"], 2, operator, strides=[4, 8, 16, 32], canonical_scale=28)
        generator = torch.Generator().manual_seed(0)
        shapes = [(2, 3, 64 // s, 80 // s) for s in (4, 8, 16, 32)]
        maps = {str(n): torch.randn(shape, generator=generator) for n, shape in enumerate(shapes)}
        boxes = random_boxes(24, (64, 80), 2, seed=0)[:, 1:]
        return pooler, maps, [boxes[:14], boxes[14:]]

    def test_compiles(self) -> None:
        torch._dynamo.reset()
        pooler, maps, boxes = self.make()
        compiled = torch.compile(
            lambda m, b: pooler(m, b, self.sizes), fullgraph=True, dynamic=True, backend="aot_eager"
        )
        for some in (boxes, [boxes[0][:9], boxes[1]]):
            torch.testing.assert_close(compiled(maps, some), pooler(maps, some, self.sizes))

    def test_exports_with_symbolic_sizes(self) -> None:
        pooler, maps, boxes = self.make()

        class Module(torch.nn.Module):
            def forward(self, maps, boxes):
                return pooler(maps, boxes, TestPooler.sizes)

        dim = torch.export.Dim.DYNAMIC
        dynamic = ({name: {2: dim, 3: dim} for name in maps}, [{0: dim}, {0: dim}])
        program = torch.export.export(Module(), (maps, boxes), dynamic_shapes=dynamic)
        larger = {name: torch.randn(2, 3, 2 * m.shape[2], m.shape[3] + 1) for name, m in maps.items()}
        some = [boxes[0][:5], boxes[1]]
        torch.testing.assert_close(program.module()(larger, some), pooler(larger, some, self.sizes))

    def test_shapes_without_values(self) -> None:
        pooler, maps, boxes = self.make()
        expected = pooler(maps, boxes, self.sizes)
        meta = pooler({k: v.to("meta") for k, v in maps.items()}, [b.to("meta") for b in boxes], self.sizes)
        assert meta.shape == expected.shape

        class Module(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.pooler = pooler

            def forward(self, maps, boxes):
                return self.pooler(maps, boxes, TestPooler.sizes)

        assert torch.equal(torch.fx.symbolic_trace(Module())(maps, boxes), expected)
        assert torch.equal(torch.fx.symbolic_trace(pooler)(maps, boxes, self.sizes), expected)
