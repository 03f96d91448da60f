"""Fractional max pooling against slices in NumPy, and its regions against the paper's conditions."""

import math

import numpy as np
import pytest
import torch
from layer_cases import random_map

from detpool import layers


def test_windows_of_one_size() -> None:
    x = random_map(2, 3, 11, 9).requires_grad_()
    layer = layers.FractionalMaxPool2d(2, output_size=(6, 5)).eval()
    got = layer(x)

    def starts(length: int, windows: int) -> list[int]:
        step = (length - 2) / (windows - 1)
        first = [math.floor((i + 0.5) * step) - math.floor(0.5 * step) for i in range(windows - 1)]
        return [*first, length - 2]

    values = x.detach().numpy()
    for i, top in enumerate(starts(11, 6)):
        for j, left in enumerate(starts(9, 5)):
            expected = values[:, :, top : top + 2, left : left + 2].max((2, 3))
            torch.testing.assert_close(got[:, :, i, j], torch.from_numpy(expected))
    assert torch.equal(layer(x), got)
    assert torch.autograd.gradcheck(layer, x)
    layer.train()
    torch.manual_seed(0)
    drawn = layer(x)
    assert not torch.equal(layer(x), drawn)
    torch.manual_seed(0)
    assert torch.equal(layer(x), drawn)
    assert layers.FractionalMaxPool2d(2, output_ratio=(0.5, 0.7))(x).shape == (2, 3, 5, 6)


def regions(layer: layers.FractionalRegionPool2d, length: int, images: int) -> np.ndarray:
    """First and last row (2, N, P) of each region that a layer draws from seed 0, seen by what it makes of a ramp."""
    ramp = torch.arange(length, dtype=torch.float64)[:, None].expand(images, 1, length, 7)
    found = []
    for sign in (-1, 1):
        torch.manual_seed(0)
        found.append((sign * layer(sign * ramp))[:, 0, :, 0])
    return torch.stack(found).long().numpy()


@pytest.mark.parametrize("sequence", ["random", "pseudorandom"])
@pytest.mark.parametrize("overlapping", [True, False])
@pytest.mark.parametrize(("factor", "length"), [(math.sqrt(2), 36), (math.sqrt(2), 5), (1.2, 25), (1.9, 2), (2, 11)])
def test_regions_are_the_papers(factor: float, length: int, overlapping: bool, sequence: str) -> None:
    layer = layers.FractionalRegionPool2d(factor, overlapping, sequence)
    images = 400
    first, last = regions(layer, length, images)
    count = first.shape[1]
    assert abs(count - length / factor) <= 1
    assert (first[:, 0] == 0).all()
    assert (last[:, -1] == length - 1).all()
    assert (first[:, 1:] == last[:, :-1] + (0 if overlapping else 1)).all()
    bounds = np.concatenate([first, last[:, -1:] + (0 if overlapping else 1)], axis=1)
    steps = np.diff(bounds)
    assert set(np.unique(steps)) <= {1, 2}
    total = bounds[0, -1]
    if sequence == "pseudorandom":  # never further than a cell from even steps
        assert np.abs(bounds - np.arange(count + 1) * total / count).max() < 1
    twos, share = (steps == 2).mean(axis=0), total / count - 1
    # Each step is 2 as often as any other: within five standard deviations of as many coins.
    assert np.abs(twos - share).max() <= 5 * math.sqrt(share * (1 - share) / images) + 1e-12
    if 0 < share < 1:
        assert len(np.unique(bounds, axis=0)) > 1


@pytest.mark.parametrize("overlapping", [True, False])
def test_values_and_gradients_of_regions(overlapping: bool) -> None:
    layer = layers.FractionalRegionPool2d(overlapping=overlapping)
    x = random_map(3, 2, 9, 9).requires_grad_()

    def seeded(x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        return layer(x)

    got = seeded(x)
    rows = regions(layer, 9, 3)
    # Rows are drawn before columns, of as many images and cells.
    torch.manual_seed(0)
    torch.rand(rows.shape[1:])
    twos = torch.rand(rows.shape[1:]).argsort(1) < (9 - overlapping) - rows.shape[2]
    bounds = np.concatenate([np.zeros((3, 1), int), (1 + twos.long()).cumsum(1).numpy()], axis=1)
    columns = np.stack([bounds[:, :-1], bounds[:, 1:] - (0 if overlapping else 1)])
    for n, i, j in np.ndindex(3, *got.shape[2:]):
        part = x.detach()[n, :, rows[0, n, i] : rows[1, n, i] + 1, columns[0, n, j] : columns[1, n, j] + 1]
        torch.testing.assert_close(got[n, :, i, j], part.amax((1, 2)))
    assert torch.autograd.gradcheck(seeded, x)


def test_evaluation_is_the_same_or_drawn() -> None:
    x = random_map(2, 3, 20, 15)
    for sequence in ("random", "pseudorandom"):
        layer = layers.FractionalRegionPool2d(sequence=sequence).eval()
        assert torch.equal(layer(x), layer(x))
        drawing = layers.FractionalRegionPool2d(sequence=sequence, test_passes=2).eval()
        assert not torch.equal(drawing(x), drawing(x))
    torch.testing.assert_close(
        layers.FractionalRegionPool2d(2, overlapping=False)(x[..., :14]), torch.max_pool2d(x[..., :14], 2)
    )


def test_wrong_arguments() -> None:
    for build, message in (
        (lambda: layers.FractionalMaxPool2d(2), "give one of output_size and output_ratio"),
        (lambda: layers.FractionalMaxPool2d(2, 3, 0.5), "give one of output_size and output_ratio"),
        (lambda: layers.FractionalMaxPool2d(2, None, 1.5), "output_ratio must lie between 0 and 1, got 1.5"),
        (
            lambda: layers.FractionalMaxPool2d(3, 4)(torch.zeros(1, 1, 5, 9)),
            "4 windows of 3 cells do not fit into 5: .* input 5 x 9",
        ),
        (lambda: layers.FractionalRegionPool2d(1), "factor must be more than 1 and at most 2, got 1"),
        (lambda: layers.FractionalRegionPool2d(2.5), "factor must be more than 1 and at most 2, got 2.5"),
        (
            lambda: layers.FractionalRegionPool2d(sequence="even"),
            "sequence must be 'random' or 'pseudorandom', got 'ev",
        ),
        (lambda: layers.FractionalRegionPool2d(test_passes=0), "test_passes must be a positive integer, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            build()
