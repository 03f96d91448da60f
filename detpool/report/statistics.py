"""Differences over seeds, with bootstrap confidence intervals, and which of many configurations can be told apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import bootstrap, studentized_range

RESAMPLES = 20000
COVERAGE = {2: 50, 3: 75, 4: 80}
"""How often, in percent, an interval of nominally 95 % contains the true mean of so few normal differences."""


class Difference(NamedTuple):
    """Mean of the differences of `pairs` pairs and its confidence interval; NaN if there are too few pairs."""

    pairs: int
    difference: float
    low: float
    high: float


def mean_difference(differences: pd.Series) -> Difference:
    """Mean of paired differences, with the percentile bootstrap interval of 95 %.

    It is the interval of Efron & Tibshirani, An introduction to the bootstrap (1993), chapter 13. Pairs are resampled
    `RESAMPLES` times with a fixed seed, so that the same numbers give the same interval. It is about seeds alone, not
    about other images, and with few seeds it is too narrow: of normal differences an interval of nominally 95 %
    contains the true mean 75 % of the time with 3 seeds, 84 % with 5, 90 % with 10.

    Args:
        differences: by seed, such as the difference of two series of `Section.values`, which pandas aligns: seeds that
            only one of both has, or for which either is NaN, are NaN and do not count.
    """
    known = differences.dropna().sort_index()
    mean = float(known.mean())
    if len(known) < 2:
        return Difference(len(known), mean, math.nan, math.nan)
    drawn = bootstrap((known,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(0))
    return Difference(len(known), mean, *map(float, drawn.confidence_interval))


def rank(values: Mapping[str, pd.Series]) -> dict[str, tuple[int, int] | None]:
    """Labels from the highest mean to the lowest, each with the ranks of those that it cannot be told apart from.

    That is Tukey's honest significant difference at 5 % for all pairs together, with Kramer's correction where numbers
    of values differ: of many configurations that are all the same, one pair or more is told apart in 5 % of studies.
    The standard deviation is taken to be that of all, pooled.

    Args:
        values: of each label, one per seed; NaN does not count.

    Returns:
        first and last rank, from 1; None if no label has two values, so that nothing is known of their spread.
    """
    known = {label: series.dropna().to_numpy(dtype=float) for label, series in values.items()}
    ordered = sorted((label for label in known if len(known[label])), key=lambda label: -known[label].mean())
    freedom = sum(len(known[label]) - 1 for label in ordered)
    if not freedom or len(ordered) < 2:
        return dict.fromkeys(ordered)
    means, counts = (np.array([f(known[label]) for label in ordered]) for f in (np.mean, len))
    variance = sum(((known[label] - known[label].mean()) ** 2).sum() for label in ordered) / freedom
    critical = studentized_range.ppf(0.95, len(ordered), freedom)
    limits = critical * np.sqrt(variance / 2 * (1 / counts[:, None] + 1 / counts[None]))
    alike = np.abs(means[:, None] - means[None]) <= limits
    ranks = [np.flatnonzero(row) + 1 for row in alike]
    return {label: (int(found[0]), int(found[-1])) for label, found in zip(ordered, ranks, strict=True)}
