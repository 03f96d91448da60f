"""Tiled, adaptive, global and pyramid windows against slices in NumPy."""

import math

import numpy as np
import pytest
import torch
from layer_cases import random_map

from detpool import layers

REDUCE = {"mean": np.mean, "max": np.max, "sum": np.sum}


def tiles(x: torch.Tensor, tile: tuple[int, int], reduction: str) -> torch.Tensor:
    """The textbook's formula: rows i h .. min((i + 1) h, H)."""
    values = x.numpy()
    (height, width), (h, w) = values.shape[2:], tile
    found = np.zeros((*values.shape[:2], math.ceil(height / h), math.ceil(width / w)))
    for i in range(found.shape[2]):
        for j in range(found.shape[3]):
            part = values[:, :, i * h : min((i + 1) * h, height), j * w : min((j + 1) * w, width)]
            found[:, :, i, j] = REDUCE[reduction](part, axis=(2, 3))
    return torch.from_numpy(found)


@pytest.mark.parametrize("reduction", ["mean", "max"])
def test_tiles(reduction: str) -> None:
    for tile, size in (((1, 1), (4, 4)), ((2, 2), (4, 4)), ((3, 2), (5, 7)), ((4, 5), (6, 3)), ((9, 20), (1, 9))):
        x = random_map(2, 3, *size)
        layer = layers.TiledPool2d(tile, reduction)
        torch.testing.assert_close(layer(x), tiles(x, tile, reduction), atol=1e-12, rtol=0)
        assert torch.autograd.gradcheck(layer, x[:1, :1].clone().requires_grad_(), fast_mode=True)


@pytest.mark.parametrize("reduction", ["mean", "max"])
def test_adaptive_tiles(reduction: str) -> None:
    for size, output in (((7, 9), (3, 3)), ((1, 1), (1, 1)), ((5, 6), (5, 2)), ((14, 14), (7, 4))):
        x = random_map(2, 3, *size)
        got = layers.AdaptiveTiledPool2d(output, reduction)(x)
        assert got.shape == (2, 3, *output)
        tile = (math.ceil(size[0] / output[0]), math.ceil(size[1] / output[1]))
        torch.testing.assert_close(got, tiles(x, tile, reduction), atol=1e-12, rtol=0)


@pytest.mark.parametrize("reduction", ["mean", "max", "sum"])
def test_global(reduction: str) -> None:
    x = random_map(2, 3, 5, 7)
    layer = layers.GlobalPool2d(reduction)
    expected = REDUCE[reduction](x.numpy(), axis=(2, 3))[:, :, None, None]
    torch.testing.assert_close(layer(x), torch.from_numpy(expected))
    assert torch.autograd.gradcheck(layer, x[:1].clone().requires_grad_())


def test_generalised_mean() -> None:
    x = random_map(2, 3, 5, 7)
    x[0, 0] = 0
    x[0, 1] *= 1e-30
    for p in (1.0, 3.0, 4.5):
        expected = (np.abs(x.numpy()) ** p).mean((2, 3)) ** (1 / p)
        got = layers.GlobalLpPool2d(p)(x)[:, :, 0, 0]
        torch.testing.assert_close(got, torch.from_numpy(expected), atol=0, rtol=1e-12)
        # the same scale in single precision, where (1e-30)^3 is none
        torch.testing.assert_close(layers.GlobalLpPool2d(p)(x.float())[:, :, 0, 0].double(), got, atol=0, rtol=1e-5)
    learned = layers.GlobalLpPool2d(3.0, learnable=True).double()

    def call(x: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(learned, {"p": p}, x)

    assert torch.autograd.gradcheck(call, (x[1:].clone().requires_grad_(), learned.p))


def test_spatial_pyramid() -> None:
    x = random_map(2, 256, 5, 11)
    expected = []
    for bins in (1, 2, 4):
        for channel_bins in [(i, j) for i in range(bins) for j in range(bins)]:
            rows, columns = (
                slice(place * length // bins, -(-(place + 1) * length // bins))
                for place, length in zip(channel_bins, x.shape[2:], strict=True)
            )
            expected.append(x[:, :, rows, columns].numpy())
    for reduction in ("max", "mean"):
        got = layers.SpatialPyramidPool2d((1, 2, 4), reduction)(x)
        assert got.shape == (2, 5376)
        # Grid after grid, each in the order channel, row, column.
        grids = [part.unflatten(1, (256, -1)) for part in got.split([256, 1024, 4096], dim=1)]
        values = np.stack([REDUCE[reduction](cells, axis=(2, 3)) for cells in expected], axis=2)
        torch.testing.assert_close(torch.cat(grids, dim=2), torch.from_numpy(values))


def test_wrong_arguments() -> None:
    for build, message in (
        (lambda: layers.TiledPool2d(0), "tile_size must be a positive integer"),
        (lambda: layers.TiledPool2d(2, "sum"), "reduction must be one of 'mean', 'max', got 'sum'"),
        (lambda: layers.AdaptiveTiledPool2d(2, "avg"), "reduction must be one of 'mean', 'max', got 'avg'"),
        (
            lambda: layers.AdaptiveTiledPool2d(4)(torch.zeros(1, 1, 5, 8)),
            "window 3 of 4 would be empty: the input's 5 rows are used up by 3 tiles of 2",
        ),
        (
            lambda: layers.AdaptiveTiledPool2d(3)(torch.zeros(1, 1, 3, 2)),
            "window 2 of 3 would be empty: the input's 2 columns are used up by 2 tiles",
        ),
        (lambda: layers.GlobalPool2d("median"), "reduction must be one of 'mean', 'max', 'sum', got 'median'"),
        (lambda: layers.SpatialPyramidPool2d(()), r"levels must be a sequence of at least one grid, got \(\)"),
        (lambda: layers.SpatialPyramidPool2d(3), "levels must be a sequence of at least one grid, got 3"),
        (lambda: layers.GlobalLpPool2d(0.9), "p must be at least 1 and finite, got 0.9"),
    ):
        with pytest.raises(ValueError, match=message):
            build()
