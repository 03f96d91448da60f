"""What every layer promises: dtypes, layouts, sizes, tracing, parameters; and that the kernels compute the formulas."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from layer_cases import GEOMETRIES, random_map
from torch import Tensor, nn

from detpool import layers

C = 4
FREE: dict[str, Callable[[], nn.Module]] = {
    "MaxPool2d": lambda: layers.MaxPool2d(3, 2, 1),
    "AvgPool2d": lambda: layers.AvgPool2d(3, 2, 1),
    "LPPool2d": lambda: layers.LPPool2d(2, 2),
    "AdaptiveAvgPool2d": lambda: layers.AdaptiveAvgPool2d(3),
    "AdaptiveMaxPool2d": lambda: layers.AdaptiveMaxPool2d(3),
    "LocalResponseNorm": lambda: layers.LocalResponseNorm(3),
    "SumPool2d": lambda: layers.SumPool2d(3, 2, 1),
    "LpPool2d": lambda: layers.LpPool2d(3, 2, 1, p=3),
    "L2Pool2d": lambda: layers.L2Pool2d(3, 2, 1),
    "SoftmaxPool2d": lambda: layers.SoftmaxPool2d(3, 2, 1),
    "StochasticPool2d": lambda: layers.StochasticPool2d(3, 2, 1),
    "StochasticPool2d eval": lambda: layers.StochasticPool2d(3, 2, 1).eval(),
    "MixedPool2d": lambda: layers.MixedPool2d(3, 2, 1),
    "MixedPool2d eval": lambda: layers.MixedPool2d(3, 2, 1).eval(),
    "BlurPool2d": lambda: layers.BlurPool2d(3, 2),
    "MaxBlurPool2d": lambda: layers.MaxBlurPool2d(3, 2, 1),
    "TiledPool2d": lambda: layers.TiledPool2d(2),
    "AdaptiveTiledPool2d": lambda: layers.AdaptiveTiledPool2d(1),
    "GlobalPool2d": layers.GlobalPool2d,
    "GlobalLpPool2d": layers.GlobalLpPool2d,
    "FractionalMaxPool2d": lambda: layers.FractionalMaxPool2d(1, 1),
    "FractionalRegionPool2d": layers.FractionalRegionPool2d,
    "FractionalRegionPool2d disjoint": lambda: layers.FractionalRegionPool2d(1.3, False, "pseudorandom"),
    "SpatialPyramidPool2d": layers.SpatialPyramidPool2d,
    "SpatialPyramidContext2d": layers.SpatialPyramidContext2d,
}
LEARNED: dict[str, Callable[[], nn.Module]] = {
    "LpPool2d learnable": lambda: layers.LpPool2d(3, 2, 1, learnable=True),
    "SoftmaxPool2d learnable": lambda: layers.SoftmaxPool2d(3, 2, 1, learnable=True),
    "GlobalLpPool2d learnable": lambda: layers.GlobalLpPool2d(learnable=True),
    "StridedConv2d": lambda: layers.StridedConv2d(C, 3, 2, 1),
    "LeNetSubsampling": lambda: layers.LeNetSubsampling(C, 3, 2, 1),
    "LearnedMixedPool2d": lambda: layers.LearnedMixedPool2d(3, 2, 1),
    "GatedPool2d": lambda: layers.GatedPool2d(C, 3, 2, 1),
    "TreePool2d": lambda: layers.TreePool2d(C, 3, 2, 1, depth=2),
    "ASPP": lambda: layers.ASPP(C, 6, (1, 2)).eval(),
}
FREE_TOKENS: dict[str, Callable[[], nn.Module]] = {
    "ClsTokenPool": layers.ClsTokenPool,
    "LastTokenPool": layers.LastTokenPool,
    "MeanTokenPool": layers.MeanTokenPool,
    "MaxTokenPool": layers.MaxTokenPool,
    "WeightedMeanTokenPool": layers.WeightedMeanTokenPool,
}
LEARNED_TOKENS: dict[str, Callable[[], nn.Module]] = {
    "LearnedMeanTokenPool": lambda: layers.LearnedMeanTokenPool(C),
    "AttentionTokenPool": lambda: layers.AttentionTokenPool(C, 2, 2),
}
MAPS, TOKENS = FREE | LEARNED, FREE_TOKENS | LEARNED_TOKENS
LAYOUTS = [torch.channels_last, torch.contiguous_format]


def call_tokens(layer: nn.Module, x: Tensor) -> Tensor:
    mask = torch.ones(x.shape[:2], dtype=torch.bool)
    mask[:1, 3:] = False
    if isinstance(layer, layers.WeightedMeanTokenPool):
        return layer(x, torch.linspace(0.5, 1, x.shape[1], dtype=x.dtype).expand(x.shape[:2]), mask)
    return layer(x, mask)


def test_all_layers_are_here() -> None:
    classes = {name for name in layers.__all__ if isinstance(getattr(layers, name), type)}
    assert {name.split()[0] for name in MAPS | TOKENS} == classes


def made(name: str) -> tuple[nn.Module, Callable[[Tensor], Tensor], Tensor]:
    """A layer, a call of it, and its float32 input."""
    if name in MAPS:
        layer = MAPS[name]()
        return layer, layer, random_map(2, C, 9, 11, dtype=torch.float32)
    layer = TOKENS[name]()
    return layer, lambda x: call_tokens(layer, x), random_map(2, 7, C, dtype=torch.float32)


def seeded(call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    torch.manual_seed(0)
    return call(x)


@pytest.mark.parametrize("name", MAPS | TOKENS)
def test_dtypes_layouts_autocast_and_parameters(name: str) -> None:
    layer, call, start = made(name)
    made(name)[0].to(memory_format=torch.channels_last)  # as part of a model that is
    assert any(True for _ in layer.parameters()) == (name in LEARNED | LEARNED_TOKENS)
    assert type(layer).__name__ in repr(layer)
    expected = seeded(call, start)
    with torch.autocast("cpu", torch.bfloat16):
        found = seeded(call, start)
    torch.testing.assert_close(found.float(), expected, atol=0.05 * expected.abs().max().item(), rtol=0)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        for layout in LAYOUTS if name in MAPS else [torch.contiguous_format]:
            layer.to(dtype)
            x = start.to(dtype).clone(memory_format=layout).requires_grad_()
            y = seeded(call, x)
            assert y.dtype == dtype
            assert y.dim() == 3 or y.dim() == 2 or y.is_contiguous(memory_format=layout)
            y.sum().backward()
            assert x.grad.dtype == dtype
            assert x.grad.is_contiguous(memory_format=layout)
            if not any(word in name for word in ("Stochastic", "Mixed", "Fractional")):
                # What the same numbers give in float64, to a rounding of the weights and a few of sums and results;
                # attention is eight roundings deep and normalized twice.
                layer.to(torch.float64)
                exact = call(x.detach().double())
                roundings = 32 if name == "AttentionTokenPool" else 8
                atol = roundings * torch.finfo(dtype).eps * exact.abs().max().item()
                torch.testing.assert_close(y.double(), exact, atol=atol, rtol=0)


@pytest.mark.parametrize("name", MAPS | TOKENS)
def test_small_inputs(name: str) -> None:
    _, call, x = made(name)
    for size in ((1, 1), (1, 2), (3, 1), (5, 4)) if name in MAPS else ():
        if name == "LPPool2d" and min(size) < 2:
            with pytest.raises(RuntimeError, match="Output size is too small"):
                call(torch.zeros(1, C, *size))
            continue
        small = random_map(2, C, *size, dtype=torch.float32).requires_grad_()
        y = call(small)
        y.sum().backward()
        assert y.isfinite().all()
        assert small.grad.isfinite().all()
    # A loss over no RoIs at all still has a gradient.
    none = x[:0].clone().requires_grad_()
    y = call(none)
    assert len(y) == 0
    y.sum().backward()
    assert none.grad.shape == none.shape


def test_windows_that_would_be_missing_are_named() -> None:
    missing = r"kernel_size \(3, 4\) does not fit into the input's 1 x 1 cells.*no window"
    for name in ("SumPool2d", "LpPool2d", "LearnedMixedPool2d", "TreePool2d", "StridedConv2d"):
        layer = getattr(layers, name)(*((C,) if name in ("TreePool2d", "StridedConv2d") else ()), (3, 4), 1, 1)
        assert layer(torch.zeros(1, C, 1, 2)).shape == (1, C, 1, 1)
        for shape, dtype, error, message in (
            ((1, C, 1, 1), None, ValueError, missing),
            ((C, 5, 6), None, ValueError, r"input must have shape \(N, C, H, W\), got \(4, 5, 6\)"),
            ((1, C, 0, 5), None, ValueError, "at least one channel, row and column"),
            ((1, C, 5, 5), torch.int64, TypeError, "floating"),
        ):
            with pytest.raises(error, match=message):
                layer(torch.zeros(shape, dtype=dtype))


OURS = [name for name in MAPS | TOKENS if not getattr(layers, name.split()[0]).__module__.startswith("torch")]


@pytest.mark.parametrize("name", OURS)
def test_layers_compile_to_one_graph(name: str) -> None:
    _, call, x = made(name)
    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, backend="eager")
    eager, traced = x.clone().requires_grad_(), x.clone().requires_grad_()
    expected, found = seeded(call, eager), seeded(compiled, traced)
    assert found.shape == expected.shape
    if name == "StochasticPool2d":  # draws of its own
        assert torch.isin(found, torch.cat([x.flatten(), torch.zeros(1)])).all()
        return
    torch.testing.assert_close(found, expected)
    expected.sum().backward()
    found.sum().backward()
    torch.testing.assert_close(traced.grad, eager.grad)


KERNELS: dict[str, Callable[..., Tensor]] = {
    **{f"lp {p}": lambda x, *g, p=p: layers.lp_pool2d(x, float(p), *g) for p in (1, 2, 3, 4, 2.5)},
    "softmax 1": lambda x, *g: layers.softmax_pool2d(x, 1.0, *g),
    "softmax -3": lambda x, *g: layers.softmax_pool2d(x, -3.0, *g),
    "expectation": lambda x, *g: layers.stochastic_pool2d(x, *g, training=False),
}


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_compute_the_formulas(name: str) -> None:
    """Float64, which test_reductions.py compares with NumPy and differentiates by differences, is the oracle."""
    for number, geometry in enumerate(GEOMETRIES):
        x = random_map(3, 21, *geometry[3], dtype=torch.float32)  # 21 channels: whole vectors and a rest
        x[0, 3] = 0
        # channels_last, contiguous, and neither
        x = (x.contiguous(memory_format=torch.channels_last), x, x.mT.contiguous().mT)[number % 3].requires_grad_()
        exact = x.detach().double().requires_grad_()
        found, expected = (KERNELS[name](features, *geometry[:3]) for features in (x, exact))
        torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-6)
        grad = random_map(*found.shape, seed=1, dtype=torch.float32)
        found.backward(grad)
        expected.backward(grad.double())
        # Gradients of the weighted means cancel where a window's weights nearly do.
        torch.testing.assert_close(x.grad.double(), exact.grad, atol=1e-5, rtol=1e-4)


def test_kernels_have_second_derivatives() -> None:
    for name, call in {**KERNELS, "global lp": lambda x, *_: layers.GlobalLpPool2d(2.5)(x)}.items():

        def twice(x: Tensor, call: Callable[..., Tensor] = call) -> Tensor:
            (first,) = torch.autograd.grad(call(x, 3, 2, 1).square().sum(), x, create_graph=True)
            return torch.autograd.grad(first.square().sum(), x)[0]

        x = random_map(1, 2, 5, 6).abs() + 0.1
        found, exact = twice(x.float().requires_grad_()), twice(x.requires_grad_())
        torch.testing.assert_close(found.double(), exact, atol=1e-4, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}")


def test_threads_change_nothing() -> None:
    x = random_map(2, 70, 9, 11, dtype=torch.float32).contiguous(memory_format=torch.channels_last)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 5):
            torch.set_num_threads(threads)
            torch.manual_seed(0)
            results.append([call(x, 3, 2, 1) for call in (*KERNELS.values(), layers.stochastic_pool2d)])
            results[-1].append(layers.GlobalLpPool2d(2.5)(x.contiguous()))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def assert_drawn_apart(draws: Tensor, variance: float, others: Tensor | None = None) -> None:
    """Draws of mean 0, (N, C, H, W): neighboring windows, channels and images say nothing of each other."""
    for other in [*(draws.roll(1, axis) for axis in range(4)), *([] if others is None else [others])]:
        correlation = (draws * other).mean().item() / variance
        assert abs(correlation) < 5 / draws.numel() ** 0.5  # five standard deviations


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_windows_are_drawn_apart(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.tensor([1.0, 1.0], dtype=dtype).repeat(4, 8, 100, 50)
    x[..., ::2] = 2
    draws, again = ((layers.StochasticPool2d((1, 2))(x) == 2).double() - 2 / 3 for _ in range(2))  # 160,000 each
    assert_drawn_apart(draws, 2 / 9, again)
    x = random_map(3, 5, 62, 62, dtype=dtype).contiguous(memory_format=torch.channels_last)
    assert_drawn_apart((layers.MixedPool2d(2)(x) == layers.MaxPool2d(2)(x)).double() - 0.5, 1 / 4)


def test_the_page_has_every_layer_and_its_example_runs() -> None:
    page = (Path(__file__).parents[2] / "docs/layers.md").read_text()
    for name in {name.split()[0] for name in MAPS | TOKENS}:
        assert f"`{name}`" in page
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    values = {}
    for line in example.splitlines():
        code, _, shape = line.partition("  # ")
        if shape:
            assert tuple(eval(code, values).shape) == eval(shape)
        else:
            exec(code, values)
