"""Layers with weights against their formulas in NumPy."""

import numpy as np
import pytest
import torch
from layer_cases import GEOMETRIES, random_map
from torch import nn
from torchvision.models.segmentation import deeplabv3

from detpool import layers


def windows(values: np.ndarray, geometry: tuple) -> tuple[np.ndarray, np.ndarray]:
    """Windows (N, C, OH, OW, kernel rows, kernel columns) of the map with zeros around it, and which of those exist."""
    kernel, stride, padding, _ = geometry
    border = ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2)

    def strided(cells: np.ndarray) -> np.ndarray:
        view = np.lib.stride_tricks.sliding_window_view(np.pad(cells, border), kernel, axis=(2, 3))
        return view[:, :, :: stride[0], :: stride[1]]

    return strided(values), strided(np.ones_like(values))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def maximum_and_mean(values: np.ndarray, geometry: tuple) -> tuple[np.ndarray, np.ndarray]:
    cells, exists = windows(values, geometry)
    return np.where(exists > 0, cells, -np.inf).max((4, 5)), cells.sum((4, 5)) / exists.sum((4, 5))


def strided_conv(layer: layers.StridedConv2d, values: np.ndarray, geometry: tuple) -> np.ndarray:
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    return np.einsum("ncijab,dcab->ndij", windows(values, geometry)[0], weight) + bias[:, None, None]


def lenet(layer: layers.LeNetSubsampling, values: np.ndarray, geometry: tuple) -> np.ndarray:
    scale, bias = layer.scale.detach().numpy(), layer.bias.detach().numpy()
    return sigmoid(scale[:, None, None] * windows(values, geometry)[0].sum((4, 5)) + bias[:, None, None])


def learned_mixed(layer: layers.LearnedMixedPool2d, values: np.ndarray, geometry: tuple) -> np.ndarray:
    share = sigmoid(layer.logit.detach().numpy())
    largest, average = maximum_and_mean(values, geometry)
    return share * largest + (1 - share) * average


def gated(layer: layers.GatedPool2d, values: np.ndarray, geometry: tuple) -> np.ndarray:
    share = sigmoid(np.einsum("ncijab,cab->ncij", windows(values, geometry)[0], layer.gate.detach().numpy()[:, 0]))
    largest, average = maximum_and_mean(values, geometry)
    return share * largest + (1 - share) * average


def tree(layer: layers.TreePool2d, values: np.ndarray, geometry: tuple) -> np.ndarray:
    """Two levels of inner nodes written out: gates 0 and 1 over leaves (0, 1) and (2, 3), gate 2 at the root."""

    def masks(parameter: torch.Tensor) -> np.ndarray:
        return parameter.detach().numpy().reshape(-1, values.shape[1], *geometry[0])

    cells = windows(values, geometry)[0]
    leaves = np.einsum("ncijab,lcab->lncij", cells, masks(layer.filters))
    shares = sigmoid(np.einsum("ncijab,lcab->lncij", cells, masks(layer.gates)))
    left = shares[0] * leaves[0] + (1 - shares[0]) * leaves[1]
    right = shares[1] * leaves[2] + (1 - shares[1]) * leaves[3]
    return shares[2] * left + (1 - shares[2]) * right


LAYERS = {
    "strided convolution": (lambda *a: layers.StridedConv2d(2, *a), strided_conv),
    "LeNet": (lambda *a: layers.LeNetSubsampling(2, *a), lenet),
    "learned mixed": (layers.LearnedMixedPool2d, learned_mixed),
    "gated": (lambda *a: layers.GatedPool2d(2, *a), gated),
    "tree": (lambda *a: layers.TreePool2d(2, *a, depth=2), tree),
}


def randomised(layer: nn.Module) -> nn.Module:
    """Weights other than those it begins with, many of which are 0."""
    torch.manual_seed(1)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer


@pytest.mark.parametrize("name", LAYERS)
def test_values_and_gradients(name: str) -> None:
    build, formula = LAYERS[name]
    for geometry in GEOMETRIES:
        layer = randomised(build(*geometry[:3]).double())
        x = random_map(2, 2, *geometry[3])
        expected = torch.from_numpy(formula(layer, x.numpy(), geometry))
        torch.testing.assert_close(layer(x), expected, atol=1e-12, rtol=1e-12)
        names, start = zip(*layer.named_parameters(), strict=True)

        def call(x: torch.Tensor, *parameters: torch.Tensor, layer=layer, names=names) -> torch.Tensor:
            return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), x)

        assert torch.autograd.gradcheck(call, (x[:1].clone().requires_grad_(), *start), fast_mode=True)


def test_they_begin_as_averages() -> None:
    x = random_map(2, 3, 8, 8, dtype=torch.float32)
    largest, average = layers.MaxPool2d(2)(x), layers.AvgPool2d(2)(x)
    torch.testing.assert_close(layers.LeNetSubsampling(3, 2)(x), average.sigmoid())
    for layer in (layers.LearnedMixedPool2d(2), layers.GatedPool2d(3, 2)):
        torch.testing.assert_close(layer(x), (largest + average) / 2)
    torch.manual_seed(0)
    near = layers.TreePool2d(3, 2)(x) - average
    assert 0 < near.abs().max() < 0.5 * average.abs().max()


def test_lee_counts_of_parameters() -> None:
    """Section 3 of the paper: one number; a mask a channel; and for a tree 2^levels - 1 masks."""

    def count(layer: nn.Module) -> int:
        return sum(p.numel() for p in layer.parameters())

    assert (count(layers.LearnedMixedPool2d(3)), count(layers.GatedPool2d(5, 3))) == (1, 5 * 9)
    assert [count(layers.TreePool2d(5, 3, depth=d)) for d in (1, 2, 3)] == [(2 ** (d + 1) - 1) * 45 for d in (1, 2, 3)]


def test_a_strided_convolution_tells_its_windows() -> None:
    layer = layers.StridedConv2d(4, 3, 2, 1, dilation=2)
    assert (layer.stride, layer.padding, layer.dilation) == ((2, 2), (1, 1), (2, 2))
    assert "stride=(2, 2), padding=(1, 1), dilation=(2, 2)" in repr(layer)


def test_wrong_arguments() -> None:
    for build, message in (
        (lambda: layers.StridedConv2d(0, 2), "channels must be a positive integer, got 0"),
        (lambda: layers.GatedPool2d(2.5, 2), "channels must be a positive integer, got 2.5"),
        (lambda: layers.LeNetSubsampling(True, 2), "channels must be a positive integer, got True"),
        (lambda: layers.TreePool2d(2, 2, depth=0), "depth must be a positive integer, got 0"),
        (lambda: layers.ASPP(4, rates=()), "rates must be positive integers, at least one, got none"),
        (lambda: layers.ASPP(4, rates=(6, 0)), "rates must be a positive integer, got 0"),
        (lambda: layers.ASPP(4, 0), "channels must be a positive integer, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            build()


def test_aspp_is_torchvisions() -> None:
    torch.manual_seed(0)
    layer = layers.ASPP(3, 4, (1, 2, 6)).double()
    theirs = deeplabv3.ASPP(3, [1, 2, 6], 4).double()
    theirs.load_state_dict(layer.state_dict())
    for size in ((1, 1), (5, 7)):
        x = random_map(2, 3, *size)
        for mode in (True, False):  # in training with batch statistics and the same dropout
            torch.manual_seed(1)
            expected = theirs.train(mode)(x)
            torch.manual_seed(1)
            torch.testing.assert_close(layer.train(mode)(x), expected, atol=1e-12, rtol=1e-12)
