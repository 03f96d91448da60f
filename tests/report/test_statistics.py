"""Bootstrap intervals against the exact distribution of all resamples."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import tukey_hsd

from detpool.report.statistics import RESAMPLES, mean_difference, rank


@pytest.mark.parametrize("differences", [[0.01, 0.02, 0.06], [-0.03, 0.01, 0.02, 0.05, -0.01]])
def test_interval_is_that_of_all_resamples(differences):
    found = mean_difference(pd.Series([*differences, math.nan]))  # a seed that only one of both has
    assert found.pairs == len(differences)
    assert found.difference == pytest.approx(np.mean(differences))
    means = np.sort([np.mean(drawn) for drawn in itertools.product(differences, repeat=len(differences))])
    # A drawn quantile lies where the exact distribution is within five standard errors of 2.5 % and 97.5 %.
    error = 5 * math.sqrt(0.025 * 0.975 / RESAMPLES)
    for end, tail in ((found.low, 0.025), (found.high, 0.975)):
        low, high = np.quantile(means, [tail - error, tail + error], method="inverted_cdf")
        assert low - 1e-12 <= end <= high + 1e-12


def test_same_differences_same_interval_whatever_their_order():
    differences = pd.Series({0: 0.1, 2: 0.3, 1: 0.0})
    assert mean_difference(differences) == mean_difference(differences.sort_index())


def test_too_few_pairs_have_no_interval():
    one, none = mean_difference(pd.Series([0.1])), mean_difference(pd.Series([math.nan]))
    assert (one.pairs, one.difference, none.pairs) == (1, 0.1, 0)
    assert all(map(math.isnan, (one.low, one.high, none.difference, none.low)))


@pytest.mark.parametrize("counts", [(3, 3, 3, 3, 3, 3), (2, 5, 2, 3, 4, 3)])
def test_ranks_are_those_of_tukeys_test(counts):
    drawn = np.random.default_rng(3)
    values = {f"c{i}": pd.Series(drawn.normal(0.01 * (i % 4), 0.005, n)) for i, n in enumerate(counts)}
    found = rank(values)
    assert list(found) == sorted(values, key=lambda label: -values[label].mean())
    with np.errstate(invalid="ignore", divide="ignore"):
        alike = tukey_hsd(*(values[label] for label in found)).pvalue > 0.05
    assert 6 < alike.sum() < 36  # neither none nor all are alike
    for row, label in zip(alike, found, strict=True):
        places = np.flatnonzero(row) + 1
        assert found[label] == (places[0], places[-1])


def test_single_seeds_have_ranks_and_no_groups():
    assert rank({"a": pd.Series([0.1]), "b": pd.Series([0.3, math.nan])}) == {"b": None, "a": None}
    same = {label: pd.Series([0.5, 0.5]) for label in "ab"}
    assert rank(same) == {"a": (1, 2), "b": (1, 2)}
