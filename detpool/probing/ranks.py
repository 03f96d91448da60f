"""Whether one measure of configurations orders them as another does."""

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
    """Spearman's rho within groups of configurations, averaged over groups, and a bootstrap interval of it.

    A draw takes as many configurations of each group as it has, with replacement, and moves the second measure of each
    by a normal error. Draws in which a measure does not vary within a group say nothing of that group.

    Args:
        groups: of each the two measures of its configurations; rho does not compare configurations of two groups.
        errors: of each group the standard errors of the second measure; None: it is exact.
        draws: number of draws.
        level: of the percentile interval.
        seed: of the draws.

    Returns:
        rho, and the ends of its interval; NaN where no group varies.
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
    """Spearman's rho of each line: Pearson's correlation of the ranks, NaN where those are all alike."""
    x, y = (rankdata(values, axis=1) for values in (x, y))
    x, y = (ranks - ranks.mean(1, keepdims=True) for ranks in (x, y))
    scale = np.sqrt((x * x).sum(1) * (y * y).sum(1))
    return np.divide((x * y).sum(1), scale, out=np.full(len(x), np.nan), where=scale > 0)
