"""Means over seeds, and paired differences with bootstrap confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

RESAMPLES = 20000
CONFIDENCE = 0.95
COVERAGE = {2: 50, 3: 75, 4: 80}
"""How often, in percent, an interval of nominally 95 % holds the true mean of so few normal differences."""


@dataclass(frozen=True)
class Summary:
    """`n` values, their mean (NaN for none) and sample standard deviation (n - 1; NaN for fewer than two)."""

    n: int
    mean: float
    std: float


def summarize(values: Iterable[float | None]) -> Summary:
    """Summary of the values that are defined: neither None nor NaN."""
    defined = np.array([v for v in values if v is not None and not math.isnan(v)], dtype=np.float64)
    return Summary(
        n=len(defined),
        mean=float(defined.mean()) if len(defined) else math.nan,
        std=float(defined.std(ddof=1)) if len(defined) > 1 else math.nan,
    )


@dataclass(frozen=True)
class Difference:
    """Mean difference of `n` pairs and its confidence interval; NaN where there are too few pairs."""

    n: int
    mean: float
    low: float
    high: float


def paired_difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Difference:
    """Mean over seeds of value minus baseline, with the percentile bootstrap interval.

    It is the interval of Efron & Tibshirani, An introduction to the bootstrap (1993), chapter 13. Pairs are resampled
    `RESAMPLES` times with a fixed seed, so that the same numbers give the same interval. It speaks of seeds alone, not
    of other images, and with few seeds it is too narrow: of normal differences an interval of nominally 95 % holds the
    true mean 75 % of the time with 3 seeds, 84 % with 5, 90 % with 10.

    Args:
        values: by seed.
        baseline: by seed; seeds that only one of both has, or where either is NaN, do not count.
    """
    pairs = [values[seed] - baseline[seed] for seed in sorted(values.keys() & baseline.keys())]
    differences = np.array([d for d in pairs if not math.isnan(d)], dtype=np.float64)
    n = len(differences)
    if n < 2:
        return Difference(n, float(differences[0]) if n else math.nan, math.nan, math.nan)
    drawn = np.random.default_rng(0).integers(n, size=(RESAMPLES, n))
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(differences[drawn].mean(axis=1), [tail, 100 - tail])
    return Difference(n, float(differences.mean()), float(low), float(high))
