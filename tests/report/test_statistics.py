"""Means by numpy, and bootstrap intervals against the exact distribution of all resamples."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from detpool.report.statistics import RESAMPLES, paired_difference, summarize


def test_summary_is_that_of_numpy_without_what_is_undefined():
    values = [0.3, math.nan, 0.5, None, 0.9]
    summary = summarize(values)
    assert summary.n == 3
    assert summary.mean == pytest.approx(np.mean([0.3, 0.5, 0.9]))
    assert summary.std == pytest.approx(np.std([0.3, 0.5, 0.9], ddof=1))


def test_too_few_values_have_no_spread():
    assert summarize([0.5]).mean == 0.5
    assert math.isnan(summarize([0.5]).std)
    assert summarize([math.nan]).n == 0
    assert math.isnan(summarize([]).mean)


@pytest.mark.parametrize("differences", [[0.01, 0.02, 0.06], [-0.03, 0.01, 0.02, 0.05, -0.01]])
def test_interval_is_that_of_all_resamples(differences):
    base = {seed: 0.5 + 0.01 * seed**2 for seed in range(len(differences))}
    found = paired_difference({seed: base[seed] + d for seed, d in enumerate(differences)}, base)
    assert found.n == len(differences)
    assert found.mean == pytest.approx(np.mean(differences))
    means = np.sort([np.mean(drawn) for drawn in itertools.product(differences, repeat=len(differences))])
    # A drawn quantile lies where the exact distribution is within five standard errors of 2.5 % and 97.5 %.
    error = 5 * math.sqrt(0.025 * 0.975 / RESAMPLES)
    for end, tail in ((found.low, 0.025), (found.high, 0.975)):
        low, high = np.quantile(means, [tail - error, tail + error], method="inverted_cdf")
        assert low - 1e-12 <= end <= high + 1e-12


def test_differences_are_paired():
    """Seeds differ far more than the configurations, which always differ by the same."""
    base = {0: 0.1, 1: 0.9, 2: 0.5}
    found = paired_difference({seed: value + 0.02 for seed, value in reversed(base.items())}, base)
    assert (found.mean, found.low, found.high) == pytest.approx((0.02, 0.02, 0.02))


def test_only_seeds_of_both_count():
    found = paired_difference({0: 0.5, 1: 0.7, 2: math.nan, 3: 0.9}, {0: 0.4, 2: 0.1, 3: 0.6, 4: 0.0})
    assert found.n == 2
    assert found.mean == pytest.approx(0.2)
    one = paired_difference({0: 0.5}, {0: 0.4, 1: 0.1})
    assert one.mean == pytest.approx(0.1)
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    none = paired_difference({0: 0.5}, {1: 0.4})
    assert none.n == 0
    assert math.isnan(none.mean)


def test_same_numbers_same_interval():
    values, base = {0: 0.5, 1: 0.6, 2: 0.8}, {0: 0.4, 1: 0.6, 2: 0.5}
    assert paired_difference(values, base) == paired_difference(dict(reversed(values.items())), base)
