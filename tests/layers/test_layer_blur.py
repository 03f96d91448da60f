"""Blur pooling against sums in NumPy, and what it is for."""

import numpy as np
import pytest
import torch
from layer_cases import GEOMETRIES, random_map, reduced

from detpool import layers

BINOMIAL = {1: [1], 2: [1, 1], 3: [1, 2, 1], 4: [1, 3, 3, 1], 5: [1, 4, 6, 4, 1], 7: [1, 6, 15, 20, 15, 6, 1]}


def blurred(values: np.ndarray, size: int, stride: tuple[int, int]) -> np.ndarray:
    """Weighted sums around every stride-th cell; a cell beyond the border is the nearest one of the map."""
    row = np.array(BINOMIAL[size]) / sum(BINOMIAL[size])
    height, width = values.shape[2:]
    out = np.zeros((*values.shape[:2], -(-height // stride[0]), -(-width // stride[1])))
    for i in range(out.shape[2]):
        for j in range(out.shape[3]):
            for a in range(size):
                for b in range(size):
                    y = min(max(i * stride[0] + a - (size - 1) // 2, 0), height - 1)
                    x = min(max(j * stride[1] + b - (size - 1) // 2, 0), width - 1)
                    out[:, :, i, j] += row[a] * row[b] * values[:, :, y, x]
    return out


@pytest.mark.parametrize("size", BINOMIAL)
def test_blur(size: int) -> None:
    for stride, map_size in (((2, 2), (1, 1)), ((1, 1), (1, 5)), ((2, 2), (7, 8)), ((3, 2), (9, 4))):
        x = random_map(2, 3, *map_size)
        layer = layers.BlurPool2d(size, stride)
        torch.testing.assert_close(layer(x), torch.from_numpy(blurred(x.numpy(), size, stride)), atol=1e-12, rtol=0)
        assert torch.autograd.gradcheck(layer, x[:1, :2].clone().requires_grad_(), fast_mode=True)


def test_max_blur() -> None:
    for kernel, stride, padding, size in GEOMETRIES:
        x = random_map(2, 3, *size)
        layer = layers.MaxBlurPool2d(kernel, stride, padding, filter_size=5)
        largest = reduced(x, (kernel, (1, 1), padding, size), lambda cells: cells.max(2)).numpy()
        torch.testing.assert_close(layer(x), torch.from_numpy(blurred(largest, 5, stride)), atol=1e-12, rtol=0)
        assert torch.autograd.gradcheck(layer, x[:1, :2].clone().requires_grad_(), fast_mode=True)


def test_a_shift_changes_less_than_after_max_pooling() -> None:
    """The paper's reason: a pattern of the finest scale, moved by one cell, should not change what is seen."""
    wave = torch.zeros(1, 1, 16, 16)
    wave[..., ::2] = 1
    moved = wave.roll(1, dims=3)

    def change(layer: torch.nn.Module) -> float:
        return (layer(wave) - layer(moved))[..., 1:-1].abs().max().item()

    assert change(layers.MaxPool2d(1, 2)) == 1  # subsampling sees all of it, or none
    assert change(layers.BlurPool2d(3, 2)) == pytest.approx(0, abs=1e-7)


def test_wrong_arguments() -> None:
    for build, message in (
        (lambda: layers.BlurPool2d(0), "filter_size must be a positive integer, got 0"),
        (lambda: layers.BlurPool2d((3, 5)), r"filter_size must be a positive integer, got \(3, 5\)"),
        (lambda: layers.BlurPool2d(3, 0), "stride must be a positive integer or a pair"),
        (lambda: layers.MaxBlurPool2d(2, filter_size=-1), "filter_size must be a positive integer, got -1"),
        (
            lambda: layers.MaxBlurPool2d(3, 2)(torch.zeros(1, 1, 2, 5)),
            r"kernel_size \(3, 3\) does not fit into the input's 2 x 5 cells",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            build()
