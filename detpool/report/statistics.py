"""Differences over seeds, with bootstrap confidence intervals."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import bootstrap

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
