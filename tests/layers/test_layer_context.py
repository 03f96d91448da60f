"""Pyramids of windows at stride 1, and normalisation among channels, against slices in NumPy."""

import numpy as np
import pytest
import torch
from layer_cases import random_map

from detpool import layers


@pytest.mark.parametrize(("kernels", "size"), [((5, 9, 13), (16, 9)), ((3,), (1, 1)), ((3, 5, 11), (5, 7))])
def test_spatial_pyramid_context(kernels: tuple[int, ...], size: tuple[int, int]) -> None:
    x = random_map(2, 3, *size)
    values = x.numpy()
    maps = [values]
    for kernel in kernels:
        around = kernel // 2
        found = np.zeros_like(values)
        for i in range(size[0]):
            for j in range(size[1]):
                rows = slice(max(i - around, 0), i + around + 1)
                columns = slice(max(j - around, 0), j + around + 1)
                found[:, :, i, j] = values[:, :, rows, columns].max((2, 3))
        maps.append(found)
    layer = layers.SpatialPyramidContext2d(kernels)
    got = layer(x)
    assert np.array_equal(got.numpy(), np.concatenate(maps, axis=1))
    assert torch.autograd.gradcheck(layer, x[:1, :1].clone().requires_grad_(), fast_mode=True)


def test_wrong_windows() -> None:
    for kernels in ((), (4,), (5, 3), (3, 3), (1, 3)):
        with pytest.raises(ValueError, match="kernel_sizes must be odd, 3 or more, and increasing, got"):
            layers.SpatialPyramidContext2d(kernels)


@pytest.mark.parametrize(("size", "channels"), [(1, 3), (2, 8), (5, 8), (5, 1)])
def test_local_response_normalisation(size: int, channels: int) -> None:
    x = random_map(2, channels, 3, 4)
    layer = layers.LocalResponseNorm(size, alpha=0.3, beta=0.6, k=1.5)
    values, expected = x.numpy(), np.zeros(x.shape)
    for c in range(channels):
        near = values[:, max(c - size // 2, 0) : c + (size - 1) // 2 + 1]
        expected[:, c] = values[:, c] / (1.5 + 0.3 / size * (near**2).sum(1)) ** 0.6
    torch.testing.assert_close(layer(x), torch.from_numpy(expected), atol=1e-12, rtol=1e-12)
    assert torch.autograd.gradcheck(layer, x.requires_grad_(), fast_mode=True)
