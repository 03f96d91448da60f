"""Token pooling against NumPy, image by image over the tokens that count."""

import numpy as np
import pytest
import torch
from layer_cases import random_map
from torch import Tensor, nn

from detpool import layers

MASK = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 0, 1, 0], [1, 0, 0, 0, 0]], dtype=torch.bool)
WEIGHTS = torch.tensor([[1, 0, 2, 0.5, 3], [9, 1, 9, 0, 9], [0.1, 0, 0, 0, 0]], dtype=torch.float64)


def tokens(channels: int = 4, dtype: torch.dtype = torch.float64) -> Tensor:
    return random_map(3, 5, channels, dtype=dtype)


def softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def scored(layer: layers.LearnedMeanTokenPool, x: np.ndarray) -> np.ndarray:
    return softmax(x @ layer.score.weight.detach().numpy()[0]) @ x


def attended(layer: layers.AttentionTokenPool, x: np.ndarray) -> np.ndarray:
    """Set Transformer's equations (6) to (8), head by head."""
    p = {name: value.detach().numpy() for name, value in layer.state_dict().items()}
    heads = layer.attention.num_heads

    def feed_forward(x: np.ndarray, name: str) -> np.ndarray:
        return np.maximum(x @ p[f"{name}.0.weight"].T + p[f"{name}.0.bias"], 0)

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5) * p[f"{name}.weight"] + p[f"{name}.bias"]

    seeds, values = p["seeds"], feed_forward(x, "before")
    inward = zip(np.split(p["attention.in_proj_weight"], 3), np.split(p["attention.in_proj_bias"], 3), strict=True)
    q, k, v = (y @ w.T + b for y, (w, b) in zip((seeds, values, values), inward, strict=True))
    width = q.shape[1] // heads
    parts = []
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        parts.append(softmax(q[:, part] @ k[:, part].T / np.sqrt(width)) @ v[:, part])
    together = np.concatenate(parts, axis=1) @ p["attention.out_proj.weight"].T + p["attention.out_proj.bias"]
    hidden = norm(seeds + together, "norm")
    return norm(hidden + feed_forward(hidden, "after"), "norm_after")


LAYERS = {
    "CLS": (lambda c: layers.ClsTokenPool(), None),
    "last": (lambda c: layers.LastTokenPool(), lambda layer, x: x[-1]),
    "mean": (lambda c: layers.MeanTokenPool(), lambda layer, x: x.mean(0)),
    "max": (lambda c: layers.MaxTokenPool(), lambda layer, x: x.max(0)),
    "learned mean": (layers.LearnedMeanTokenPool, scored),
    "mean and max": (layers.ConcatTokenPool, lambda layer, x: np.concatenate([x.mean(0), x.max(0)])),
    "three pools": (
        lambda c: layers.ConcatTokenPool(c, ["last", "learned_mean", "max"]),
        lambda layer, x: np.concatenate([x[-1], scored(layer.pools[1], x), x.max(0)]),
    ),
    "attention, 1 seed": (lambda c: layers.AttentionTokenPool(c, 1, 1), attended),
    "attention, 3 seeds": (lambda c: layers.AttentionTokenPool(c, 3, 2), attended),
}


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    layer = LAYERS[name][0](4).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


@pytest.mark.parametrize("name", LAYERS)
def test_values_and_gradients(name: str) -> None:
    layer = built(name)
    for mask in (None, MASK):
        x = tokens()
        got = layer(x, mask)
        for image in range(3):
            if name == "CLS":
                value = x[image, 0].numpy()  # first, whatever counts
            else:
                counted = x[image] if mask is None else x[image, mask[image]]
                value = LAYERS[name][1](layer, counted.numpy())
            expected = torch.from_numpy(value).view_as(got[image])
            torch.testing.assert_close(got[image], expected, atol=1e-12, rtol=1e-12)
        assert torch.autograd.gradcheck(lambda x, mask=mask: layer(x, mask), x.requires_grad_(), fast_mode=True)


def test_given_weights() -> None:
    layer = layers.WeightedMeanTokenPool()
    for mask in (None, MASK):
        x = tokens()
        got = layer(x, WEIGHTS, mask)
        for image in range(3):
            weights = (WEIGHTS[image] if mask is None else WEIGHTS[image] * mask[image]).numpy()
            expected = (weights[:, None] * x[image].numpy()).sum(0) / weights.sum()
            torch.testing.assert_close(got[image], torch.from_numpy(expected), atol=1e-12, rtol=1e-12)
        inputs = (x.requires_grad_(), (WEIGHTS + 0.1).requires_grad_())
        assert torch.autograd.gradcheck(lambda x, w, mask=mask: layer(x, w, mask), inputs, fast_mode=True)


def test_mixing_layers() -> None:
    outputs = [random_map(2, 5, 4, seed=seed) for seed in range(3)]
    mix = layers.ScalarMix(3).double()
    torch.testing.assert_close(mix(outputs), sum(outputs) / 3)
    weights, gamma = random_map(3).requires_grad_(), torch.tensor(1.7, dtype=torch.float64, requires_grad=True)

    def call(weights: Tensor, gamma: Tensor, *outputs: Tensor) -> Tensor:
        return torch.func.functional_call(mix, {"weights": weights, "gamma": gamma}, (outputs,))

    shares = 1.7 * softmax(weights.detach().numpy())
    expected = sum(share * each.numpy() for share, each in zip(shares, outputs, strict=True))
    torch.testing.assert_close(call(weights, gamma, *outputs), torch.from_numpy(expected))
    inputs = (weights, gamma, *(each.requires_grad_() for each in outputs))
    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "CLS"])
def test_what_is_masked_has_no_influence_be_it_nan(name: str) -> None:
    layer, x = built(name), tokens()
    spoilt = torch.where(MASK[:, :, None], x, torch.nan).requires_grad_()
    got = layer(spoilt, MASK)
    torch.testing.assert_close(got, layer(x, MASK), atol=0, rtol=0)
    got.sum().backward()
    assert not spoilt.grad[~MASK].any()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


def test_nan_that_counts_is_seen() -> None:
    x = tokens()
    x[1, 3, 0] = torch.nan
    for layer in (layers.MeanTokenPool(), layers.MaxTokenPool()):
        for mask in (None, MASK):
            assert layer(x, mask).isnan().nonzero().tolist() == [[1, 0]]


def test_cells_become_tokens_row_by_row() -> None:
    maps = random_map(2, 3, 7, 7)
    found = layers.to_tokens(maps)
    assert found.shape == (2, 49, 3)
    assert torch.equal(found[1, 7 * 4 + 2], maps[1, :, 4, 2])
    torch.testing.assert_close(layers.MeanTokenPool()(found), maps.mean((2, 3)))


def test_half_precision_sums_are_single() -> None:
    """4,096 ones and more: a sum in float16 would stop at 2,048."""
    x = torch.ones(1, 5000, 2, dtype=torch.float16)
    mask = torch.ones(1, 5000, dtype=torch.bool)
    assert torch.equal(layers.MeanTokenPool()(x, mask), x[:, 0])
    assert torch.equal(layers.WeightedMeanTokenPool()(x, mask.half()), x[:, 0])


def test_wrong_arguments() -> None:
    mean, given, x = layers.MeanTokenPool(), layers.WeightedMeanTokenPool(), torch.zeros(2, 3, 1)
    bare = MASK & torch.tensor([[True], [False], [True]])
    for call, message in (
        (lambda: mean(x[:, 0]), r"tokens must be floating, of shape \(N, L, C\).*\(2, 1\)"),
        (lambda: layers.MaxTokenPool()(x[:, :0]), r"L at least 1, got \(2, 0, 1\)"),
        (lambda: layers.ClsTokenPool()(x.long()), "tokens must be floating"),
        (lambda: mean(x, torch.ones(2, 4) > 0), r"mask must be boolean, of shape \(2, 3\), got \(2, 4\)"),
        (lambda: layers.LastTokenPool()(x, torch.ones(2, 3)), "mask must be boolean.*float32"),
        (
            lambda: layers.AttentionTokenPool(4)(tokens(dtype=torch.float32), bare),
            "mask must leave a token in every row: it leaves none in row 1 of 3",
        ),
        (
            lambda: given(tokens(), WEIGHTS[:, :4]),
            r"weights must have the tokens' first two sizes \(3, 5\), got \(3, 4\)",
        ),
        (lambda: given(tokens(), WEIGHTS - 1), "weights must be 0 or more, got -1"),
        (
            lambda: given(tokens(), torch.where(MASK, 0.0, WEIGHTS), MASK),
            "weights must be positive somewhere in every row: they are all 0 in row 0 of 3",
        ),
        (
            lambda: layers.AttentionTokenPool(6, heads=4),
            "heads must divide channels, got channels=6, heads=4",
        ),
        (lambda: layers.AttentionTokenPool(4, seeds=0), "seeds must be a positive integer, got 0"),
        (lambda: layers.AttentionTokenPool(4, heads=2.0), "heads must be a positive integer, got 2.0"),
        (
            lambda: layers.ConcatTokenPool(4, ["mean", "sum"]),
            r"pools must be some of cls, last, .*got \['mean', 'sum'\]",
        ),
        (lambda: layers.ConcatTokenPool(4, "mean"), "pools must be some of"),
        (lambda: layers.ScalarMix(0), "layers must be a positive integer, got 0"),
        (lambda: layers.ScalarMix(2)([x]), "outputs must be of 2 layers, got 1"),
        (lambda: layers.LearnedMeanTokenPool(0), "channels must be a positive integer, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
