"""Rank correlation of two measures of the same configurations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata


def rank_agreement(
    groups: Sequence[tuple[Sequence[float], Sequence[float]]],
    errors: Sequence[Sequence[float]] | None = None,
    draws: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Computes Spearman's rho within groups of configurations, averaged over groups, and its bootstrap interval.

    Each draw resamples the configurations of each group with replacement, and adds a normal error to the second measure
    of each. A group in which a measure does not vary in a draw is left out of that draw.

    Args:
        groups: the two measures of the configurations of each group. Configurations of different groups are not
            compared.
        errors: for each group the standard errors of the second measure; None if it is exact.
        draws: number of bootstrap draws.
        level: confidence level of the percentile interval.
        seed: seed of the draws.

    Returns:
        rho and the ends of its interval; NaN if the measures vary in no group.
    """
    generator = np.random.default_rng(seed)
    exact, drawn = [], []
    for number, (first, second) in enumerate(groups):
        x, y = np.array(first, np.float64), np.array(second, np.float64)
        noise = np.zeros(len(x)) if errors is None else np.array(errors[number], np.float64)
        exact.append(_rho(x[None], y[None]))
        rows = generator.integers(len(x), size=(draws, len(x)))
        drawn.append(_rho(x[rows], y[rows] + noise[rows] * generator.normal(size=rows.shape)))
    rho = np.nanmean(exact) if np.isfinite(exact).any() else np.nan
    table = np.stack(drawn)
    means = np.nanmean(table[:, np.isfinite(table).any(0)], 0)
    if not means.size:
        return float(rho), np.nan, np.nan
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(rho), float(low), float(high)


def _rho(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns Spearman's rho of each row: Pearson's correlation of the ranks, NaN if all ranks are equal."""
    x, y = (rankdata(values, axis=1) for values in (x, y))
    x, y = (ranks - ranks.mean(1, keepdims=True) for ranks in (x, y))
    scale = np.sqrt((x * x).sum(1) * (y * y).sum(1))
    return np.divide((x * y).sum(1), scale, out=np.full(len(x), np.nan), where=scale > 0)
