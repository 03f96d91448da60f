"""The general form: its named points, every sensible combination, its refusals and its reductions."""

import math

import pytest
import torch
from ops_cases import random_boxes

from detpool import ops
from detpool.ops import reductions

FEATURES = torch.randn(2, 12, 9, 11, generator=torch.Generator().manual_seed(0))
BOXES = random_boxes(80, (72, 88), 2, seed=0)
SIZE = (3, 2)


def pool(features=FEATURES, boxes=BOXES, **choices) -> torch.Tensor:
    return ops.pool(features, boxes, SIZE, 1 / 8, **choices)


NAMED = {
    "roi_align": ({}, lambda f, b: ops.roi_align(f, b, SIZE, 1 / 8, aligned=True)),
    "roi_align max": ({"reduction": "max"}, lambda f, b: ops.roi_align(f, b, SIZE, 1 / 8, -1, True, reduction="max")),
    "roi_pool": (
        {"bins": "rounded", "sampling": "cells", "reduction": "max"},
        lambda f, b: ops.roi_pool(f, b, SIZE, 1 / 8),
    ),
    "roi_warp": ({"bins": "rounded"}, lambda f, b: ops.roi_warp(f, b, SIZE, 1 / 8)),
    "ps_roi_pool": (
        {"bins": "rfcn", "sampling": "cells", "channels": "position_sensitive"},
        lambda f, b: ops.ps_roi_pool(f, b, SIZE, 1 / 8, convention="rfcn"),
    ),
    "ps_roi_align": ({"channels": "position_sensitive"}, lambda f, b: ops.ps_roi_align(f, b, SIZE, 1 / 8)),
    "pr_roi_pool": ({"bins": "continuous", "sampling": "integral"}, lambda f, b: ops.pr_roi_pool(f, b, SIZE, 1 / 8)),
}


@pytest.mark.parametrize("name", NAMED)
def test_named_operators_are_points_of_the_grid(name: str) -> None:
    choices, operator = NAMED[name]
    assert torch.equal(pool(**choices), operator(FEATURES, BOXES))


@pytest.mark.parametrize("reduction", ["mean", "max", "sum"])
@pytest.mark.parametrize("channels", ["shared", "position_sensitive"])
@pytest.mark.parametrize("sampling", ["cells", "points", "integral"])
@pytest.mark.parametrize("bins", ["continuous", "aligned", "rounded", "rfcn"])
def test_every_combination_computes_or_says_why_not(bins: str, sampling: str, channels: str, reduction: str) -> None:
    features = FEATURES.clone().requires_grad_()
    choices = {"bins": bins, "sampling": sampling, "channels": channels, "reduction": reduction}
    if sampling == "integral" and reduction == "max":
        with pytest.raises(ValueError, match="needs the single values"):
            pool(features, **choices)
        return
    output = pool(features, **choices)
    assert output.shape == (80, 2 if channels == "position_sensitive" else 12, *SIZE)
    output.sum().backward()
    assert output.isfinite().all()
    assert features.grad.isfinite().all()
    assert features.grad.any()
    torch.testing.assert_close(pool(backend="reference", **choices), output, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"bins": "round"}, "bins must be one of 'continuous', 'aligned'.*'rounded', 'rfcn'.* got 'round'"),
        ({"sampling": "cell"}, "sampling must be one of 'cells', 'points'.*'integral'.*got 'cell'"),
        ({"channels": "ps"}, "channels must be one of 'shared', 'position_sensitive', got 'ps'"),
        ({"reduction": "median"}, "reduction must be one of 'mean', 'max', 'sum'.*got 'median'"),
        ({"sampling": "cells", "sampling_ratio": 2}, "sampling_ratio 2 has no meaning for sampling 'cells'"),
        ({"sampling": "integral", "sampling_ratio": 2}, "sampling_ratio 2 has no meaning for sampling 'integral'"),
        ({"sampling": "integral", "reduction": reductions.Mixed()}, "single values of a bin"),
        ({"sampling": "cells", "reduction": reductions.Stochastic()}, "single values of a bin"),
    ],
)
def test_refusals_give_the_reason(choices: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pool(**choices)


def bins_of_cells() -> list[tuple[tuple[int, int, int], torch.Tensor]]:
    """((RoI, i, j), features of the bin's cells (C, n)) for rounded bins, by slicing: an oracle for any reduction."""
    found = []
    for k, box in enumerate(BOXES):
        x1, y1, x2, y2 = (math.copysign(math.floor(abs(v) / 8 + 0.5), v) for v in box[1:].tolist())
        rows, columns = max(y2 - y1 + 1, 1) / SIZE[0], max(x2 - x1 + 1, 1) / SIZE[1]
        for i in range(SIZE[0]):
            top, bottom = (min(max(v, 0), 9) for v in (math.floor(i * rows + y1), math.ceil((i + 1) * rows + y1)))
            for j in range(SIZE[1]):
                left, right = math.floor(j * columns + x1), math.ceil((j + 1) * columns + x1)
                left, right = (min(max(v, 0), 11) for v in (left, right))
                cells = FEATURES[int(box[0]), :, int(top) : int(bottom), int(left) : int(right)]
                found.append(((k, i, j), cells.flatten(1)))
    return found


ORACLES = {
    "mean": ("mean", lambda v: v.mean(1)),
    "max": ("max", lambda v: v.amax(1)),
    "sum": ("sum", lambda v: v.sum(1)),
    "Lp": (reductions.Lp(2.5), lambda v: v.abs().pow(2.5).mean(1).pow(1 / 2.5)),
    "softmax": (reductions.Softmax(2.0), lambda v: ((2 * v).softmax(1) * v).sum(1)),
    "stochastic": (
        reductions.Stochastic().eval(),
        lambda v: (v.relu().square().sum(1) / v.relu().sum(1)).nan_to_num(0.0),
    ),
    "mixed": (reductions.Mixed("random").eval(), lambda v: (v.mean(1) + v.amax(1)) / 2),
}


@pytest.mark.parametrize("name", ORACLES)
def test_reductions_over_cells(name: str) -> None:
    reduction, oracle = ORACLES[name]
    with torch.no_grad():
        got = pool(bins="rounded", sampling="cells", reduction=reduction)
    for (k, i, j), cells in bins_of_cells():
        expected = oracle(cells) if cells.shape[1] else torch.zeros(12)
        torch.testing.assert_close(got[k, :, i, j], expected, atol=2e-5, rtol=2e-5)


def test_lp_and_softmax_have_gradients_for_their_parameters() -> None:
    torch.manual_seed(0)
    features = torch.randn(1, 2, 6, 7, dtype=torch.float64, requires_grad=True)
    coords = torch.tensor([[3.3, 4.1, 37.7, 20.2]], dtype=torch.float64, requires_grad=True)
    for module in (reductions.Lp(2.5, learnable=True).double(), reductions.Softmax(1.5, learnable=True).double()):
        parameter = next(module.parameters())

        def function(features, coords, _, module=module):
            return ops.pool(features, [coords], 2, 1 / 8, reduction=module)

        inputs = (features, coords, parameter)
        assert torch.autograd.gradcheck(function, inputs, eps=1e-7, atol=1e-5, fast_mode=True)


def test_lp_is_safe_at_zero() -> None:
    features = torch.zeros(1, 2, 6, 6, requires_grad=True)
    module = reductions.Lp(3.0, learnable=True)
    ops.pool(features, torch.tensor([[0.0, 1, 1, 4, 4], [0.0, 90, 90, 99, 99]]), 2, reduction=module).sum().backward()
    assert features.grad.isfinite().all()
    assert module.p.grad.isfinite()


def test_lp_of_one_is_the_mean_of_magnitudes_and_nothing_more() -> None:
    outside = torch.tensor([[0.0, 900, 900, 999, 999]])
    for module, expected in ((reductions.Lp(1.0), pool(FEATURES.abs())), (reductions.Lp(2.0), None)):
        assert not pool(boxes=outside, reduction=module).any()
        if expected is not None:
            # relative errors of a few roundings, at any magnitude of the features
            torch.testing.assert_close(pool(reduction=module), expected, atol=0, rtol=1e-5)
            small = pool(1e-20 * FEATURES, reduction=module)
            torch.testing.assert_close(small, 1e-20 * expected, atol=0, rtol=1e-5)


@pytest.mark.parametrize("channels", ["shared", "position_sensitive"])
def test_lp_and_softmax_are_safe_beside_channels_and_images_of_another_magnitude(channels: str) -> None:
    magnitudes = 10.0 ** torch.arange(-8, 4).view(1, 12, 1, 1) * torch.tensor([1.0, 1e3]).view(2, 1, 1, 1)
    features = (FEATURES.abs() + 1) * magnitudes
    choices = {"channels": channels, "bins": "rounded", "sampling": "cells"}
    inside = torch.tensor([[0.0, 8, 8, 56, 48], [1.0, 16, 0, 80, 64]])
    for power in (16.0, 30.0):
        got = pool(features, inside, reduction=reductions.Lp(power), **choices)
        expected = pool(features.double() ** power, inside, **choices) ** (1 / power)
        torch.testing.assert_close(got.double(), expected, atol=0, rtol=1e-4)
    scale = 1e3 * torch.arange(12).view(1, 12, 1, 1)  # more than 60 apart
    got = pool(FEATURES + scale, inside, reduction=reductions.Softmax(2.0), **choices)
    wide = (FEATURES + scale).double()
    weights = (2 * (wide - wide.amax((2, 3), keepdim=True))).exp()
    expected = pool(wide * weights, inside, **choices) / pool(weights, inside, **choices)
    torch.testing.assert_close(got.double(), expected, atol=1e-2, rtol=1e-5)


def test_a_power_that_training_moves_below_one_comes_back() -> None:
    module = reductions.Lp(1.0, learnable=True)
    pool(reduction=module).sum().backward()
    assert module.p.grad > 0  # at the border it still has a gradient
    with torch.no_grad():
        module.p.fill_(0.9)
    module.p.grad = None
    got = pool(reduction=module)
    torch.testing.assert_close(got.detach(), pool(reduction=reductions.Lp(1.1)).detach())
    got.sum().backward()
    assert module.p.grad < 0


def test_reductions_of_half_precision_do_not_overflow() -> None:
    features = (400 * FEATURES.abs()).to(torch.float16)
    for module in (reductions.Stochastic().eval(), reductions.Lp(4.0), reductions.Softmax(1.0)):
        got = pool(features, reduction=module)
        assert got.dtype == torch.float16
        torch.testing.assert_close(got.float(), pool(features.float(), reduction=module), atol=0, rtol=1e-3)


def test_softmax_does_not_underflow() -> None:
    features = torch.full((1, 1, 6, 6), -1000.0)
    features[0, 0, 0, 0] = 1000.0
    got = ops.pool(features, torch.tensor([[0.0, 3, 3, 5, 5]]), 1, reduction=reductions.Softmax(5.0))
    assert got.item() == pytest.approx(-1000)


def test_stochastic_draws_in_proportion_and_from_its_generator() -> None:
    features = torch.tensor([[1.0, 3.0], [0.0, 4.0]]).view(1, 1, 2, 2)
    boxes = torch.tensor([[0.0, 0, 0, 2, 2]]).expand(4000, 5)

    def draw(seed: int) -> torch.Tensor:
        module = reductions.Stochastic(torch.Generator().manual_seed(seed))
        return ops.pool(features, boxes, 1, sampling_ratio=2, reduction=module).flatten()

    drawn = draw(0)
    assert torch.equal(drawn, draw(0))
    assert not torch.equal(drawn, draw(1))
    for value, probability in ((1.0, 1 / 8), (3.0, 3 / 8), (4.0, 4 / 8)):
        # four standard deviations of the frequency among 4000 draws
        error = 4 * math.sqrt(probability * (1 - probability) / 4000)
        assert (drawn == value).float().mean().item() == pytest.approx(probability, abs=error)
    assert not (drawn == 0).any()


def test_stochastic_never_draws_what_has_no_probability() -> None:
    """A draw of the whole total, which rounding makes of numbers just below 1, is the last value that counts."""
    features = torch.tensor([[1.0, 3.0], [4.0, 0.0]]).view(1, 1, 2, 2)

    class Extreme(torch.overrides.TorchFunctionMode):
        """`torch.rand` at an end of its range."""

        def __init__(self, value: float) -> None:
            super().__init__()
            self.value = value

        def __torch_function__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            return torch.full_like(result, self.value) if function is torch.rand else result

    for share, expected in ((0.0, 4.0), (1 - 2**-24, 1.0)):
        with Extreme(share):
            got = ops.pool(
                features, torch.tensor([[0.0, 0, 0, 2, 2]]), 1, sampling_ratio=2, reduction=reductions.Stochastic()
            )
        assert got.item() == expected


def test_mixed_modes() -> None:
    average, largest = pool(), pool(reduction="max")
    learned = reductions.Mixed("learned")
    torch.testing.assert_close(pool(reduction=learned).detach(), (average + largest) / 2)
    pool(reduction=learned).square().sum().backward()
    assert learned.logit.grad.abs() > 0

    gated = reductions.Mixed("gated", channels=12)
    share = (torch.einsum("c,kcij->kij", gated.gate.weight.flatten(), average) + gated.gate.bias).sigmoid()[:, None]
    torch.testing.assert_close(pool(reduction=gated), share * largest + (1 - share) * average, atol=1e-5, rtol=1e-5)

    drawn = pool(reduction=reductions.Mixed("random", generator=torch.Generator().manual_seed(0)))
    is_average, is_largest = drawn == average, drawn == largest
    assert (is_average | is_largest).all()
    differ = average != largest
    # bin by bin and channel by channel: four standard deviations of the frequency of a fair coin
    assert is_largest[differ].float().mean().item() == pytest.approx(0.5, abs=2 / math.sqrt(int(differ.sum())))
    roi = differ.flatten(1).sum(1).argmax()
    assert (is_average & differ)[roi].any()
    assert (is_largest & differ)[roi].any()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: reductions.Lp(0.5), "p must be at least 1 and finite, got 0.5"),
        (lambda: reductions.Lp(math.inf), "p must be at least 1 and finite, got inf"),
        (lambda: reductions.Mixed("mean"), "mode must be one of 'learned', 'gated', 'random', got 'mean'"),
        (lambda: reductions.Mixed("gated"), "'gated' needs channels"),
    ],
)
def test_wrong_parameters_of_reductions(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_a_name_is_registered_once() -> None:
    with pytest.raises(ValueError, match="sampling 'points' is registered already"):
        ops.register_sampling("points", ops.Sampling(taps=lambda bins, length, ratio: None))
    with pytest.raises(ValueError, match="reduction 'mean' is registered already"):
        ops.register_reduction("mean", ops.Samples.mean)
