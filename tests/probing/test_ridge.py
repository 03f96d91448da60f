import numpy as np
import pytest
import torch

from detpool.probing.ridge import LinearMap, NormalEquations, fit_ridge, solve_ridge


def draw(rows, seed=0, noise=0.0, features=7, targets=3):
    generator = np.random.default_rng(seed)
    x = generator.normal(2.0, [0.1, 1, 3, 10, 1, 1, 1], (rows, features))
    true = np.random.default_rng(99).normal(size=(features, targets))
    y = x @ true + [1.0, -2.0, 0.0] + noise * generator.normal(size=(rows, targets))
    return x, y, true


def sums(x, y, batches=1):
    equations = NormalEquations(x.shape[1], y.shape[1])
    for some, wanted in zip(np.array_split(x, batches), np.array_split(y, batches), strict=True):
        equations.add(torch.tensor(some), torch.tensor(wanted))
    return equations


def test_a_linear_map_is_recovered():
    x, y, true = draw(200)
    found = solve_ridge(sums(x, y, batches=7), 1e-12)
    # Sums of squares of features of which one has a mean of 20 standard deviations: half of the digits are left.
    np.testing.assert_allclose(found.weights.numpy(), true, atol=1e-6)
    np.testing.assert_allclose(found.bias.numpy(), [1.0, -2.0, 0.0], atol=1e-6)
    np.testing.assert_allclose(found(torch.tensor(x)).numpy(), y, atol=1e-6)


@pytest.mark.parametrize("penalty", [1e-3, 0.1, 10.0])
def test_it_is_least_squares_of_samples_with_rows_for_the_penalty(penalty):
    x, y, _ = draw(60, noise=2.0)
    # The textbook's way: standardised features, and a row of sqrt(n penalty) for each weight that is to be 0.
    mean, deviation = x.mean(0), x.std(0)
    z = np.concatenate([(x - mean) / deviation, np.sqrt(len(x) * penalty) * np.eye(x.shape[1])])
    centred = np.concatenate([y - y.mean(0), np.zeros((x.shape[1], y.shape[1]))])
    wanted = np.linalg.lstsq(z, centred, rcond=None)[0]
    found = solve_ridge(sums(x, y, batches=4), penalty)
    np.testing.assert_allclose(found.weights.numpy() * deviation[:, None], wanted, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(found(torch.tensor(x)).numpy().mean(0), y.mean(0), rtol=1e-9)


def test_weights_shrink_to_the_mean_as_the_penalty_grows():
    x, y, _ = draw(60, noise=1.0)
    equations = sums(x, y)
    solved = [solve_ridge(equations, penalty).weights.numpy() for penalty in (1e-6, 1e-2, 1.0, 1e2, 1e9)]
    sizes = [np.linalg.norm(weights * x.std(0)[:, None]) for weights in solved]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 1e-7
    np.testing.assert_allclose(solve_ridge(equations, 1e12).bias.numpy(), y.mean(0), rtol=1e-6)


def test_features_that_do_not_vary_get_no_weight():
    x, y, _ = draw(60, noise=1.0)
    constant = np.concatenate([x, np.full((60, 1), 1 / 3), np.zeros((60, 1))], 1)
    found, wanted = solve_ridge(sums(constant, y, batches=7), 0.1), solve_ridge(sums(x, y, batches=7), 0.1)
    assert (found.weights[-2:] == 0).all()
    np.testing.assert_allclose(found.weights[:-2].numpy(), wanted.weights.numpy(), rtol=1e-9)


def test_squared_errors_of_sums_are_those_of_samples():
    x, y, _ = draw(60, noise=1.0)
    linear = LinearMap(torch.randn(7, 3, dtype=torch.float64), torch.randn(3, dtype=torch.float64))
    wanted = ((linear(torch.tensor(x)).numpy() - y) ** 2).sum(0)
    np.testing.assert_allclose(linear.squared_errors(sums(x, y, batches=5)).numpy(), wanted, rtol=1e-9)
    np.testing.assert_allclose(sums(x, y).spread().numpy(), 60 * y.var(0), rtol=1e-9)


def test_the_penalty_of_each_group_is_the_one_that_predicts_held_out_samples_best():
    x, y, _ = draw(12, noise=30.0)
    x_held, y_held, _ = draw(500, seed=1)
    y[:, :1], y_held[:, :1] = x[:, 1:2], x_held[:, 1:2]  # without noise: the least penalty is best
    samples, held_out = sums(x, y), sums(x_held, y_held)
    penalties = [1e-9, 1e-3, 1e-1, 1.0]
    groups = {"exact": slice(0, 1), "noisy": slice(1, 3)}
    maps, chosen = fit_ridge(samples, held_out, penalties, groups)

    def error(penalty):
        predicted = solve_ridge(samples, penalty)(torch.tensor(x_held)).numpy()
        return (((predicted - y_held) ** 2).sum(0) / y_held.var(0))[1:].mean()

    assert chosen == {"exact": 1e-9, "noisy": min(penalties, key=error)}
    assert chosen["noisy"] > 1e-9
    everything = solve_ridge(sums(np.concatenate([x, x_held]), np.concatenate([y, y_held])), chosen["noisy"])
    np.testing.assert_allclose(maps["noisy"].weights.numpy(), everything.weights[:, 1:].numpy(), rtol=1e-9)


def test_bits_are_the_same_when_repeated():
    x, y, _ = draw(500, noise=1.0)
    first, second = (solve_ridge(sums(x, y, batches=9), 0.1) for _ in range(2))
    assert torch.equal(first.weights, second.weights)
    assert torch.equal(first.bias, second.bias)


@pytest.mark.parametrize(("count", "penalty"), [(0, 1.0), (5, 0.0), (5, float("nan"))])
def test_no_samples_and_no_penalty_are_errors(count, penalty):
    x, y, _ = draw(count)
    with pytest.raises(ValueError, match="must be positive"):
        solve_ridge(sums(x, y), penalty)
