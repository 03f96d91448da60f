"""Ridge regression in closed form, for samples that arrive in batches and are not stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


class NormalEquations:
    """Sums over samples, in float64, from which a linear regression can be solved.

    Args:
        features: F, number of features of a sample.
        targets: T, number of targets of a sample.
    """

    def __init__(self, features: int, targets: int) -> None:
        self.count = 0
        self.x, self.y, self.yy = _zeros(features), _zeros(targets), _zeros(targets)
        self.xx, self.xy = _zeros(features, features), _zeros(features, targets)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Adds samples: features (n, F) and targets (n, T)."""
        x, y = x.double(), y.double()
        self.count += len(x)
        self.x += x.sum(0)
        self.y += y.sum(0)
        self.yy += (y * y).sum(0)
        self.xx.addmm_(x.T, x)
        self.xy.addmm_(x.T, y)

    def __add__(self, other: NormalEquations) -> NormalEquations:
        """Returns the sums over the samples of both."""
        total = NormalEquations(0, 0)
        for name, value in vars(self).items():
            setattr(total, name, value + getattr(other, name))
        return total

    def spread(self) -> Tensor:
        """Returns the sum of squared differences of each target from its mean: (T,)."""
        return (self.yy - self.y**2 / max(self.count, 1)).clamp(min=0)


@dataclass(frozen=True)
class LinearMap:
    """Linear map from features (n, F) to targets (n, T), in float64."""

    weights: Tensor
    """(F, T)"""
    bias: Tensor
    """(T,)"""

    def __call__(self, x: Tensor) -> Tensor:
        return x.double() @ self.weights + self.bias

    def squared_errors(self, samples: NormalEquations) -> Tensor:
        """Returns the sum over samples of the squared error of each target: (T,)."""
        w, b = self.weights, self.bias
        of_predictions = (w * (samples.xx @ w)).sum(0) + 2 * b * (samples.x @ w) + samples.count * b * b
        with_targets = (w * samples.xy).sum(0) + b * samples.y
        return of_predictions - 2 * with_targets + samples.yy


def solve_ridge(samples: NormalEquations, penalty: float) -> LinearMap:
    """Solves a ridge regression (Hoerl and Kennard, Technometrics 1970).

    It minimizes the mean of ``(y - w z - b)^2`` over samples plus ``penalty * w^2``, where z are the features, scaled
    to mean 0 and standard deviation 1; b is not penalized. Constant features get weight 0.

    Args:
        samples: sums over at least one sample.
        penalty: positive penalty of the weights.

    Raises:
        ValueError: If there are no samples or the penalty is not positive.
    """
    if not samples.count or not penalty > 0:
        raise ValueError(f"samples and penalty must be positive, got {samples.count} samples and penalty {penalty}")
    n, mean_x, mean_y = samples.count, samples.x / samples.count, samples.y / samples.count
    variance = samples.xx.diagonal() / n - mean_x**2
    # A variance below the rounding error of the sums means a constant feature.
    varies = variance > 1e-12 * (samples.xx.diagonal() / n).clamp(min=1e-30)
    scale = torch.where(varies, variance.clamp(min=0).rsqrt(), 0)
    system = (samples.xx / n).addr_(mean_x, mean_x, alpha=-1) * scale * scale[:, None]
    system.diagonal().add_(penalty)
    right = (samples.xy / n - mean_x[:, None] * mean_y) * scale[:, None]
    weights = torch.cholesky_solve(right, torch.linalg.cholesky(system)) * scale[:, None]
    return LinearMap(weights, mean_y - mean_x @ weights)


def fit_ridge(
    samples: NormalEquations,
    held_out: NormalEquations,
    penalties: Sequence[float],
    groups: Mapping[str, slice],
) -> tuple[dict[str, LinearMap], dict[str, float]]:
    """Fits ridge regressions with the penalties that predict held-out samples best, then refits them to all samples.

    Args:
        samples: samples to fit while the penalty is chosen.
        held_out: samples that choose the penalty.
        penalties: penalties to choose from; see `solve_ridge`.
        groups: name to columns of targets that share a penalty: the one with the largest mean R^2 of these targets.

    Returns:
        The linear maps and the penalties by name of the group.
    """
    spread = held_out.spread()
    scores: dict[str, dict[float, float]] = {name: {} for name in groups}
    for penalty in penalties:
        r2 = torch.where(spread > 0, 1 - solve_ridge(samples, penalty).squared_errors(held_out) / spread, 0)
        for name, columns in groups.items():
            scores[name][penalty] = float(r2[columns].mean())
    chosen = {name: max(score, key=score.__getitem__) for name, score in scores.items()}
    everything = samples + held_out
    maps = {penalty: solve_ridge(everything, penalty) for penalty in set(chosen.values())}
    return {
        name: LinearMap(maps[chosen[name]].weights[:, columns], maps[chosen[name]].bias[columns])
        for name, columns in groups.items()
    }, chosen


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64)
