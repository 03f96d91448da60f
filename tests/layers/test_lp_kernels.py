"""Compiled Lp pooling at every magnitude that float32 has, against the formula in float64 in NumPy."""

import itertools

import numpy as np
import pytest
import torch
from layer_cases import cells_of, random_map
from torch import Tensor

from detpool import layers

POWERS = [1.0, 1.01, 2.0, 2.5, 4.0, 50.0]
MAGNITUDES = [0.0, 1e-41, 1e-30, 1e-6, 0.02, 1.0, 200.0, 1e5, 1e20, 1e38]
"""Of a channel each, so that every window has values that need a scale beside values that need none."""
LAYOUTS = [torch.channels_last, torch.contiguous_format]


def magnitudes(layout: torch.memory_format, some: list[float] = MAGNITUDES) -> Tensor:
    """(2, channels, 9, 11), from 0 to 3 times as large as ``some``, and some zeros."""
    x = (random_map(2, len(some), 9, 11) * torch.tensor(some, dtype=torch.float64)[:, None, None]).clamp(-3e38, 3e38)
    x[random_map(*x.shape, seed=1) > 0.5] = 0
    return x.float().contiguous(memory_format=layout)


def expected(x: Tensor, grad: Tensor, p: float, geometry: tuple) -> tuple[np.ndarray, np.ndarray]:
    """Pooled values, and the gradient ``grad (|v| / pooled)^(p - 1) sign(v) / cells`` summed over windows."""
    values, slopes = x.detach().double().numpy(), np.zeros(x.shape)
    pooled = np.zeros(grad.shape)
    positions = np.arange(values[0, 0].size, dtype=np.float64).reshape(1, 1, *values.shape[2:])
    flat = slopes.reshape(*slopes.shape[:2], -1)
    inside = [where[0, 0].astype(int) for _, _, where in cells_of(positions, *geometry)]
    for (i, j, cells), where in zip(cells_of(values, *geometry), inside, strict=True):
        largest = np.abs(cells).max(2, keepdims=True)
        ratios = np.abs(cells) / np.where(largest > 0, largest, 1)
        norm = (ratios**p).mean(2, keepdims=True) ** (1 / p)
        pooled[:, :, i, j] = (norm * largest)[:, :, 0]
        slope = (ratios / np.where(norm > 0, norm, 1)) ** (p - 1) * np.sign(cells) / len(where)
        flat[:, :, where] += grad[:, :, i, j, None].double().numpy() * slope
    return pooled, slopes


@pytest.mark.parametrize("p", POWERS)
def test_every_magnitude(p: float) -> None:
    geometries = ((3, 3), (2, 2), (1, 1)), ((9, 11), (1, 1), (0, 0))  # sliding and global
    for geometry, layout in itertools.product(geometries, LAYOUTS):
        x = magnitudes(layout).requires_grad_()
        found = (layers.GlobalLpPool2d(p) if geometry[0] == (9, 11) else layers.LpPool2d(*geometry, p=p))(x)
        grad = random_map(*found.shape, seed=2, dtype=torch.float32)
        found.backward(grad)
        pooled, slopes = expected(x, grad, p, geometry)
        # A logarithm up to 8 p or 60 is rounded to half of 2^-20 at most, its p-th root by 1 / p of that; and a few
        # roundings to 6e-8 more. Subnormal results are multiples of 1.4e-45.
        np.testing.assert_allclose(found.detach().numpy(), pooled, rtol=2e-6, atol=1.5e-45)
        # Slopes are powers of p - 1 of what has such an error, and cancel where windows overlap. Those of means that
        # are subnormal are as rough as these: here to a thousandth, to the power p - 1.
        smooth = [c for c, size in enumerate(MAGNITUDES) if size != 1e-41]
        np.testing.assert_allclose(x.grad.numpy()[:, smooth], slopes[:, smooth], rtol=2e-5, atol=1e-6 + 5e-7 * (p - 1))
        np.testing.assert_allclose(x.grad.numpy(), slopes, rtol=0, atol=1e-3 * p)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("p", [1.0, 2.0, 2.5])
def test_infinity_and_nan_stay_in_their_windows(p: float, layout: torch.memory_format) -> None:
    x = magnitudes(layout, [1.0] * 4)
    x[0, 0, 2, 3], x[0, 1, 2, 3], x[1, 2, 5, 5] = torch.inf, torch.nan, -torch.inf
    x[0, 1, 2, 4] = torch.inf  # beside a NaN
    clean = x.nan_to_num(0, 0, 0)
    inf, nan = torch.inf, torch.nan
    for layer, special in (
        (layers.LpPool2d(2, p=p), {(0, 0, 1, 1): inf, (0, 1, 1, 1): nan, (0, 1, 1, 2): inf, (1, 2, 2, 2): inf}),
        (layers.GlobalLpPool2d(p), {(0, 0, 0, 0): inf, (0, 1, 0, 0): nan, (1, 2, 0, 0): inf}),
    ):
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
        found, finite = layer(leaf), layer(clean)
        found.sum().backward()
        for place, value in special.items():
            torch.testing.assert_close(found[place].item(), value, equal_nan=True)
        usual = torch.ones(found.shape, dtype=torch.bool)
        usual[tuple(zip(*special, strict=True))] = False
        # Neighbours may have been computed relative to their maximum for the sake of the window.
        torch.testing.assert_close(found[usual], finite[usual], rtol=2e-6, atol=0)
        assert leaf.grad[:, 3].isfinite().all()
        assert p == 1 or leaf.grad[0, 1, 2, 3].isnan()  # no slope of the magnitude depends on the value


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 20.0, 80.0])
def test_gradients_are_finite_beside_zeros(p: float) -> None:
    """Rectified features hold zeros beside windows of small values, whose factors are large."""
    x = torch.randn(1, 8, 40, 50, generator=torch.Generator().manual_seed(0)).relu()
    x[:, 0] = 0
    for layer in (layers.LpPool2d(3, 2, p=p), layers.LpPool2d(3, 2, p=p, learnable=True), layers.GlobalLpPool2d(p=p)):
        leaf = x.clone().requires_grad_()
        pooled = layer(leaf)
        pooled.sum().backward()
        assert not pooled[:, 0].any()
        assert not leaf.grad[:, 0].any()
        assert all(values.grad.isfinite().all() for values in (leaf, *layer.parameters()))
