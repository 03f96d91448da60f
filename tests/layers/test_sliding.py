"""Dilation, rounding up, "same" padding, and one to three dimensions, against NumPy and PyTorch's own pools."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from layer_cases import random_map
from torch import Tensor, nn
from torch.nn import functional as F

from detpool import layers


def expectation(cells: np.ndarray) -> np.ndarray:
    cells = np.maximum(cells, 0)
    return (cells**2).sum(2) / np.maximum(cells.sum(2), 1e-300)


def soft_mean(cells: np.ndarray) -> np.ndarray:
    weights = np.exp(9 * (cells - cells.max(2, keepdims=True)))
    return (weights * cells).sum(2) / weights.sum(2)


FORMULAS: dict[str, tuple[Callable[..., nn.Module], Callable[[np.ndarray], np.ndarray]]] = {
    "Sum": (lambda layer, *a, **k: layer(*a, **k), lambda v: v.sum(2)),
    "Mean": (lambda layer, *a, **k: layer(*a, **k), lambda v: v.mean(2)),
    "Lp": (lambda layer, *a, **k: layer(*a, p=2.5, **k), lambda v: (np.abs(v) ** 2.5).mean(2) ** (1 / 2.5)),
    "Softmax": (lambda layer, *a, **k: layer(*a, beta=9.0, **k), soft_mean),
    "Stochastic": (lambda layer, *a, **k: layer(*a, **k).eval(), expectation),
    "Mixed": (lambda layer, *a, **k: layer(*a, **k).eval(), lambda v: (v.max(2) + v.mean(2)) / 2),
}
CASES = [
    # sizes of the map, kernel, stride, padding, dilation, ceil_mode
    ((7, 9, 5), 3, 2, "same", 1, False),
    ((6, 8, 4), 3, 2, "same", 1, False),  # one cell more after than before
    ((5, 7, 4), 2, 3, "same", 2, False),  # windows that leave gaps
    ((7, 9, 6), 3, 2, 1, 2, False),
    ((8, 6, 5), 3, 2, 0, 1, True),
    ((7, 8, 5), 2, 3, 1, 1, True),  # a window that would begin in the padding behind the map is none
    ((8, 9, 7), 2, 2, 1, 3, True),
    ((7, 6, 5), 3, 2, "valid", 1, False),
]


def windows_along(
    length: int, kernel: int, stride: int, padding: int | str, dilation: int, up: bool
) -> list[list[int]]:
    """The cells of each window that are inside; "same" by Keras's and TensorFlow's rule."""
    reach = (kernel - 1) * dilation + 1
    if padding == "same":
        count = -(-length // stride)
        before = max((count - 1) * stride + reach - length, 0) // 2
    else:
        before = 0 if isinstance(padding, str) else padding
        count = (
            int(np.ceil((length + 2 * before - reach) / stride) if up else (length + 2 * before - reach) // stride) + 1
        )
    cells = [[i * stride - before + j * dilation for j in range(kernel)] for i in range(count)]
    if up:
        cells = [window for window in cells if window[0] < length]
    return [[cell for cell in window if 0 <= cell < length] for window in cells]


def reduced(x: np.ndarray, formula: Callable[[np.ndarray], np.ndarray], *settings: object) -> np.ndarray:
    axes = [windows_along(length, *settings) for length in x.shape[2:]]
    found = np.empty((*x.shape[:2], *map(len, axes)))
    for at in itertools.product(*(range(len(windows)) for windows in axes)):
        inside = [windows[i] for windows, i in zip(axes, at, strict=True)]
        found[(..., *at)] = formula(x[(slice(None), slice(None), *np.ix_(*inside))].reshape(*x.shape[:2], -1))
    return found


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("name", FORMULAS)
def test_values_and_gradients(name: str, dimensions: int) -> None:
    build, formula = FORMULAS[name]
    for sizes, kernel, *rest in CASES:
        stride, padding, dilation, up = rest
        layer = build(
            getattr(layers, f"{name}Pool{dimensions}d"), kernel, stride, padding, dilation=dilation, ceil_mode=up
        )
        x = random_map(2, 2, *sizes[:dimensions])
        expected = reduced(x.numpy(), formula, kernel, *rest)
        torch.testing.assert_close(layer(x), torch.from_numpy(expected), atol=1e-12, rtol=1e-12)
        # Single precision, which compiled kernels compute where windows are plain ones.
        torch.testing.assert_close(layer(x.float()).double(), torch.from_numpy(expected), atol=1e-4, rtol=1e-5)
        assert torch.autograd.gradcheck(layer, x[:1, :1].clone().requires_grad_(), fast_mode=True)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_maxima_and_sizes_are_pytorchs(dimensions: int) -> None:
    pool = getattr(F, f"max_pool{dimensions}d")
    checked = 0
    for length, kernel, stride, dilation, up in itertools.product(
        range(1, 9), (1, 2, 3, 4), (1, 2, 3), (1, 2, 3), (False, True)
    ):
        for padding in range(kernel // 2 + 1):
            x = random_map(1, 1, *(length, 4, 3)[:dimensions], seed=length)
            settings = [(k, *(1,) * (dimensions - 1)) for k in (kernel, stride)] + [
                (padding, *(0,) * (dimensions - 1)),
                (dilation, *(1,) * (dimensions - 1)),
                up,
            ]
            try:
                expected = pool(x, *settings)
            except RuntimeError:  # too small for a window
                expected = None
            if expected is None or expected.isinf().any():
                with pytest.raises(ValueError, match=r"no window would be left|would be empty"):
                    layers.sum_pool(x, *settings)
                continue
            checked += 1
            assert layers.sum_pool(x, *settings).shape == expected.shape
            assert torch.equal(layers.max_pool(x, *settings), expected)
    assert checked > 300


@pytest.mark.parametrize("build", [layers.MaxPool2d, layers.MaxBlurPool2d], ids=["max", "blurred"])
def test_same_maxima(build: Callable[..., nn.Module]) -> None:
    for sizes, kernel, stride, dilation in (((7, 8), 3, 2, 1), ((6, 5), 2, 3, 2), ((1, 4), 4, 1, 1)):
        x = random_map(2, 3, *sizes)
        layer = build(kernel, stride, "same", dilation=dilation)
        dense = torch.from_numpy(reduced(x.numpy(), lambda v: v.max(2), kernel, 1, "same", dilation, False))
        if build is layers.MaxBlurPool2d:
            expected = layers.BlurPool2d(3, stride)(dense)
        else:
            expected = torch.from_numpy(reduced(x.numpy(), lambda v: v.max(2), kernel, stride, "same", dilation, False))
        assert torch.equal(layer(x), expected)
        assert torch.autograd.gradcheck(layer, x[:1, :1].clone().requires_grad_(), fast_mode=True)


LEARNED: dict[str, Callable[..., nn.Module]] = {
    "StridedConv2d": layers.StridedConv2d,
    "LeNetSubsampling": layers.LeNetSubsampling,
    "LearnedMixedPool2d": lambda channels, *a, **k: layers.LearnedMixedPool2d(*a, **k),
    "GatedPool2d": layers.GatedPool2d,
    "TreePool2d": layers.TreePool2d,
}


@pytest.mark.parametrize("name", LEARNED)
def test_learned_layers_on_an_explicitly_padded_map(name: str) -> None:
    """What one gets at windows that lie inside, of a map with zeros around it, is what one gets at the padding."""
    build = LEARNED[name]
    torch.manual_seed(0)
    for sizes, kernel, stride, padding, dilation, up in [(case[0][:2], *case[1:]) for case in CASES]:
        layer = build(3, kernel, stride, padding, dilation=dilation, ceil_mode=up).double()
        plain = build(3, kernel, stride, dilation=dilation).double()
        for parameter in layer.parameters():
            nn.init.normal_(parameter)
        plain.load_state_dict(layer.state_dict())
        x = random_map(1, 3, *sizes)
        axes = [windows_along(length, kernel, stride, padding, dilation, up) for length in sizes]
        reach = (kernel - 1) * dilation + 1
        room = reach + stride
        padded = F.pad(x, (room,) * 4)
        found = layer(x)
        assert found.shape[2:] == tuple(map(len, axes))
        before = [
            max((len(windows) - 1) * stride + reach - length, 0) // 2
            if padding == "same"
            else (0 if padding == "valid" else padding)
            for windows, length in zip(axes, sizes, strict=True)
        ]
        for i, j in itertools.product(*map(range, found.shape[2:])):
            top, left = i * stride - before[0], j * stride - before[1]
            inside = min(top, left) >= 0 and top + reach <= sizes[0] and left + reach <= sizes[1]
            if not inside and name in ("LearnedMixedPool2d", "GatedPool2d"):
                continue  # to whose maxima and means zeros would be values
            window = padded[:, :, top + room : top + room + reach, left + room : left + room + reach]
            torch.testing.assert_close(found[:, :, i, j], plain(window)[:, :, 0, 0], atol=1e-12, rtol=1e-12)
        assert torch.autograd.gradcheck(layer, x.clone().requires_grad_(), fast_mode=True)


def test_draws_of_dilated_windows_are_their_own_values() -> None:
    """Also where the border that padding copies belongs to another window."""
    x = torch.tensor([[[1e6, 1.0, 2.0, 3.0, 1e6]]]).requires_grad_()
    layer = layers.StochasticPool1d(2, 1, 1, dilation=3)
    torch.manual_seed(0)
    seen = {tuple(layer(x).flatten().tolist()) for _ in range(50)}
    windows = [{2.0}, {1e6, 3.0}, {1.0, 1e6}, {2.0}]
    assert all(value in window for draw in seen for value, window in zip(draw, windows, strict=True))
    assert layers.LpPool1d(2, 1, 1, p=8.0, dilation=3)(x)[0, 0, 0].item() == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: layers.SumPool2d(2, padding="sane"), "padding must be 0 to half of.*'same' or 'valid', got 'sane'"),
        (lambda: layers.SumPool2d(2, padding="same", ceil_mode=True), "ceil_mode is for a padding in cells"),
        (lambda: layers.SumPool2d(2, dilation=0), "dilation must be a positive integer"),
        (lambda: layers.SumPool3d((2, 2)), r"kernel_size must be a positive integer or three of them \(depth"),
        (lambda: layers.SumPool1d(2)(torch.zeros(1, 1, 4, 4)), r"input must have shape \(N, C, L\)"),
        (lambda: layers.MeanPool3d(2)(torch.zeros(1, 4, 4, 4)), r"input must have shape \(N, C, D, H, W\)"),
        (
            lambda: layers.SumPool1d(2, 1, 1, dilation=3)(torch.zeros(1, 1, 2)),
            r"window 0 of 1 would be empty: none of the 2 cells, 3 apart, from -1 on lies within the input's 2",
        ),
        (lambda: layers.MaxPool2d(2, padding="same", return_indices=True)(torch.zeros(1, 1, 4, 4)), "return_indices"),
        (
            lambda: layers.SumPool2d(3, dilation=2)(torch.zeros(1, 1, 4, 9)),
            r"kernel_size \(3, 3\) with dilation \(2, 2\) does not fit into the input's 4 x 9 cells",
        ),
    ],
)
def test_wrong_arguments(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
