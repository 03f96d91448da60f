"""Sliding reductions against the formulas in NumPy, window by window."""

import math

import numpy as np
import pytest
import torch
from layer_cases import GEOMETRIES, random_map, reduced
from torch.nn.functional import avg_pool2d, max_pool2d

from detpool import layers


def softmax_mean(beta: float):
    def formula(cells: np.ndarray) -> np.ndarray:
        weights = np.exp(beta * (cells - (cells.max(2) if beta > 0 else cells.min(2))[..., None]))
        return (weights * cells).sum(2) / weights.sum(2)

    return formula


def expectation(cells: np.ndarray) -> np.ndarray:
    cells = np.maximum(cells, 0)
    total = cells.sum(2)
    return np.where(total > 0, (cells**2).sum(2) / np.where(total > 0, total, 1), 0)


LAYERS = {
    "max": (layers.MaxPool2d, lambda v: v.max(2)),
    "average": (lambda *a: layers.AvgPool2d(*a, count_include_pad=False), lambda v: v.mean(2)),
    "sum": (layers.SumPool2d, lambda v: v.sum(2)),
    "Lp 1": (lambda *a: layers.LpPool2d(*a, p=1), lambda v: np.abs(v).mean(2)),
    "Lp 2.5": (lambda *a: layers.LpPool2d(*a, p=2.5), lambda v: (np.abs(v) ** 2.5).mean(2) ** (1 / 2.5)),
    "L2": (layers.L2Pool2d, lambda v: np.sqrt((v**2).mean(2))),
    "softmax 1": (layers.SoftmaxPool2d, softmax_mean(1.0)),
    "softmax -3": (lambda *a: layers.SoftmaxPool2d(*a, beta=-3.0), softmax_mean(-3.0)),
    "stochastic": (lambda *a: layers.StochasticPool2d(*a).eval(), expectation),
    "mixed": (lambda *a: layers.MixedPool2d(*a).eval(), lambda v: (v.max(2) + v.mean(2)) / 2),
}


@pytest.mark.parametrize("name", LAYERS)
def test_values_and_gradients(name: str) -> None:
    build, formula = LAYERS[name]
    for geometry in GEOMETRIES:
        layer = build(*geometry[:3])
        x = random_map(2, 3, *geometry[3])
        torch.testing.assert_close(layer(x), reduced(x, geometry, formula), atol=1e-12, rtol=1e-12)
        assert torch.autograd.gradcheck(layer, x[:1, :2].clone().requires_grad_(), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_limits(dtype: torch.dtype) -> None:
    """However small a window is beside its neighbours: its own maximum is the scale."""
    x = random_map(2, 3, 9, 11, dtype=dtype)
    x[:, :, :5] *= 1e-4
    x[:, 1] *= 100
    largest = max_pool2d(x.abs(), 3, 2, 1)
    # n^(-1/p) below the maximum at most, n = 9, and a rounding of the dtype
    near = {"atol": 0, "rtol": 1 - 9 ** (-1 / 1000) + torch.finfo(dtype).eps}
    torch.testing.assert_close(layers.lp_pool2d(x, 1000.0, 3, 2, 1), largest, **near)
    average = layers.mean_pool2d(x.abs().float(), 3, 2, 1)
    torch.testing.assert_close(layers.lp_pool2d(x, 1.0, 3, 2, 1).float(), average, atol=0, rtol=0.01)
    even = layers.softmax_pool2d(x, 0.0, 3, 2, 1).float()
    torch.testing.assert_close(even, layers.mean_pool2d(x.float(), 3, 2, 1), atol=1e-5, rtol=0.01)
    maximum, minimum = (layers.softmax_pool2d(x, beta, 3, 2, 1) for beta in (1e9, -1e9))
    torch.testing.assert_close(maximum, max_pool2d(x, 3, 2, 1), atol=1e-6, rtol=1e-3)
    torch.testing.assert_close(minimum, -max_pool2d(-x, 3, 2, 1), atol=1e-6, rtol=1e-3)


def test_values_that_are_not_finite_are_not_hidden() -> None:
    kinds = (layers.LpPool2d, layers.SoftmaxPool2d, layers.SumPool2d, layers.MixedPool2d, layers.StochasticPool2d)
    x = torch.ones(1, 1, 2, 4)
    x[..., 0, 0] = torch.nan
    for layer in [*(kind(2).eval() for kind in kinds), layers.StochasticPool2d(2)]:
        assert layer(x).isnan().tolist() == [[[[True, False]]]]
    for layer in (layers.StochasticPool2d(2), layers.LpPool2d(2, p=1.5), layers.SoftmaxPool2d(2)):  # by formulas
        assert layer(x.double()).isnan().tolist() == [[[[True, False]]]]
    x[..., 0, 0] = torch.inf
    assert layers.LpPool2d(2, p=3)(x).flatten().tolist() == [math.inf, 1.0]


def test_stochastic_draws_in_proportion() -> None:
    window = torch.tensor([[1.0, 3.0, -2.0], [0.0, 4.0, 2.0]])
    x = window.tile(100, 100)[None, None]  # 10,000 windows
    torch.manual_seed(0)
    layer = layers.StochasticPool2d((2, 3))
    drawn = layer(x)
    torch.manual_seed(0)
    assert torch.equal(layer(x), drawn)
    assert not torch.equal(layer(x), drawn)
    assert set(drawn.flatten().tolist()) == {1.0, 2.0, 3.0, 4.0}
    for value in (1.0, 2.0, 3.0, 4.0):
        # five standard deviations of the frequency among 10,000 draws
        share = value / 10
        assert (drawn == value).float().mean().item() == pytest.approx(
            share, abs=5 * math.sqrt(share * (1 - share)) / 100
        )
    assert layer.eval()(x).unique().tolist() == [3.0]  # (1 + 9 + 16 + 4) / 10
    assert torch.equal(layer(x), layer(x))


def test_the_gradient_of_a_stochastic_layer_goes_to_what_was_drawn() -> None:
    x = random_map(2, 3, 9, 8, dtype=torch.float32).abs().requires_grad_()
    got = layers.StochasticPool2d(3, 2, 1)(x)
    got.sum().backward()
    drawn = x.grad.nonzero()
    assert x.grad.sum() == got.numel()
    assert set(got.flatten().tolist()) == {x[tuple(index)].item() for index in drawn}


@pytest.mark.parametrize("draw", [0.0, 1 - 2**-24])
def test_an_extreme_draw_is_a_value_that_can_be_drawn(draw: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand_like", lambda x, **_: torch.full_like(x, draw))
    x = torch.rand(1, 5, 40, 40, generator=torch.Generator().manual_seed(0))
    x[x < 0.3] = 0
    got = layers.stochastic_pool2d(x, 3, 2, 1)
    some = max_pool2d(x, 3, 2, 1) > 0
    assert (got[some] > 0).all()
    assert not got[~some].any()


def test_mixed_is_a_fair_coin_for_each_window() -> None:
    x = random_map(1, 4, 100, 100, dtype=torch.float32).requires_grad_()
    layer = layers.MixedPool2d(2)
    torch.manual_seed(0)
    got = layer(x)
    largest, average = max_pool2d(x, 2), avg_pool2d(x, 2)
    maximised = got == largest
    assert torch.equal(got, torch.where(maximised, largest, average))
    assert maximised.float().mean().item() == pytest.approx(0.5, abs=5 * 0.5 / 100)  # 10,000 windows
    torch.manual_seed(0)
    assert torch.equal(layer(x), got)
    assert not torch.equal(layer(x), got)
    got.sum().backward()
    # the choice is remembered: one cell of a maximised window has gradient 1, all of an averaged one 1/4
    assert torch.equal(max_pool2d(x.grad, 2), torch.where(maximised, 1.0, 0.25))
    torch.testing.assert_close(avg_pool2d(x.grad, 2), torch.full_like(got, 0.25))
    assert torch.equal(layer.eval()(x), layer(x))


def test_gradients_of_learned_parameters() -> None:
    x = random_map(1, 2, 5, 6).requires_grad_()
    for start in (1.3, 7.5):
        p = torch.tensor(start, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda x, p: layers.lp_pool2d(x, p, 3, 2, 1), (x, p), fast_mode=True)
        assert torch.autograd.gradcheck(lambda x, b: layers.softmax_pool2d(x, b, 3, 2, 1), (x, p), fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x: layers.lp_pool2d(x, 3.0, 3, 2, 1), x, fast_mode=True)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: layers.LpPool2d(2, p=0.5), "p must be at least 1 and finite, got 0.5"),
        (lambda: layers.LpPool2d(2, p=math.inf), "p must be at least 1 and finite, got inf"),
        (lambda: layers.SoftmaxPool2d(2, beta=math.nan), "beta must be finite, got nan"),
        (lambda: layers.SumPool2d(0), "kernel_size must be a positive integer or a pair.*got 0"),
        (lambda: layers.SumPool2d(2, (1, 0)), r"stride must be a positive integer or a pair.*got \(1, 0\)"),
        (
            lambda: layers.SumPool2d(3, padding=2),
            r"padding must be 0 to half of kernel_size \(3, 3\), in cells, got 2",
        ),
        (lambda: layers.SumPool2d(3, padding=-1), "padding must be 0 to half"),
        (lambda: layers.SumPool2d(3, padding=(1, 1, 1)), "padding must be 0 to half"),
    ],
)
def test_wrong_arguments(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
