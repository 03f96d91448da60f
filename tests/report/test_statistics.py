"""Intervals against scipy's tests, by hand, and by how often they hold; ranks against Tukey's test."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t, ttest_1samp, ttest_rel, tukey_hsd

from detpool.report.statistics import Difference, Sample, adjust, compare, rank


def resampled(rows, ids=range(50)):
    """A sample of known values whose resamples are given, a row a seed."""
    return Sample(pd.Series(0.0, range(len(rows))), pd.DataFrame(rows), np.array(ids))


@pytest.mark.parametrize("gains", [[0.01, 0.02, 0.06], [-0.03, 0.01, 0.02, 0.05, -0.01]])
def test_the_interval_of_seeds_is_that_of_the_paired_t_test(gains):
    base = np.linspace(0.3, 0.5, len(gains))
    one = Sample(pd.Series([*(base + gains), 0.7]))  # a seed that only one of both has
    found = compare(one - Sample(pd.Series(base)))
    expected = ttest_rel(base + gains, base)
    low, high = expected.confidence_interval(0.95)
    assert found.pairs == len(gains)
    assert (found.seeds.low, found.seeds.high) == pytest.approx((low, high))
    assert found.p == found.adjusted == pytest.approx(expected.pvalue)
    assert found.shown == found.seeds
    assert not found.images.is_known
    assert not found.both.is_known


def test_same_differences_same_interval_whatever_their_order():
    differences = pd.Series({0: 0.1, 2: 0.3, 1: 0.0})
    assert compare(Sample(differences)) != compare(Sample(differences + 1))
    one, other = compare(Sample(differences)), compare(Sample(differences.sort_index()))
    assert (one.pairs, one.difference, one.seeds, one.p) == (other.pairs, other.difference, other.seeds, other.p)


def test_too_few_pairs_have_no_interval():
    one, none = compare(Sample(pd.Series([0.1]))), compare(Sample(pd.Series([math.nan])))
    assert (one.pairs, one.difference, none.pairs) == (1, 0.1, 0)
    assert all(map(math.isnan, (*one.shown, one.p, none.difference, *none.seeds)))
    with pytest.raises(ValueError, match="nothing is known of the seeds"):
        one.seeds_needed()


def test_a_single_seed_has_an_interval_of_images():
    found = compare(resampled([np.linspace(-0.01, 0.03, 101)]))
    assert found.images == pytest.approx((-0.009, 0.029))  # the quantiles of 2.5 % and 97.5 %
    assert not found.both.is_known
    assert math.isnan(found.p)


def test_a_configuration_against_itself_is_zero():
    own = Sample(pd.Series([0.3, 0.5, 0.4]), pd.DataFrame(np.random.default_rng(0).random((3, 20))), np.arange(9))
    found = compare(own - own)
    assert (found.difference, *found.seeds, *found.images, *found.both) == (0,) * 7
    assert found.p == 1
    assert found.seeds_needed() == found.images_needed() == 2


def test_seeds_and_images_by_hand():
    # Images move both seeds alike by +-1, and each in its own way by +-1; the seeds are 1 apart.
    alike, first, second = (np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1]))[i].ravel() for i in range(3))
    values = pd.Series([2.0, 3.0])
    rows = pd.DataFrame([2 + alike + first, 3 + alike + second])
    found = compare(Sample(values, rows, np.arange(100)))
    # Variances of n - 1 over 8 resamples: 8/7 times those of +-1.
    assert found.variance == pytest.approx((0.5 / 2, 8 / 7 * (1 + 1 / 2), 8 / 7))
    # 1/4 + 8/7 is below 12/7: that of the images is taken.
    error, freedom = math.sqrt(12 / 7), (12 / 7 / 0.25) ** 2
    assert found.both == pytest.approx((2.5 - t.ppf(0.975, freedom) * error, 2.5 + t.ppf(0.975, freedom) * error))
    assert found.p == pytest.approx(2 * t.sf(2.5 / error, freedom))
    assert found.dominates == "images"
    assert found.images_drawn == 100


def test_without_variation_of_images_both_is_that_of_seeds_and_the_other_way_round():
    gains = [0.01, 0.02, 0.06]
    still = compare(Sample(pd.Series(gains), pd.DataFrame([[gain] * 10 for gain in gains]), np.arange(5)))
    assert still.both == pytest.approx(still.seeds)
    assert still.dominates == "seeds"
    drawn = np.random.default_rng(0).normal(0.02, 0.01, 4000)
    agreeing = compare(Sample(pd.Series([0.02] * 3), pd.DataFrame([drawn] * 3), np.arange(5)))
    assert agreeing.both == pytest.approx(agreeing.images, abs=1e-3)
    assert agreeing.dominates == "images"


def test_other_images_are_not_paired():
    one, other = resampled(np.eye(2), range(50)), resampled(np.eye(2), range(1, 51))
    assert compare(one - one).images.is_known
    assert not compare(one - other).images.is_known
    # Nor are seeds of which one has no matches.
    assert not compare(Sample(pd.Series([0.1, 0.2]), pd.DataFrame(np.eye(2)[:1]), np.arange(5))).images.is_known


@pytest.mark.parametrize("own", [0.0, 1.0])
@pytest.mark.parametrize(("of_seeds", "alike"), [(1.0, 0.0), (1.0, 1.0), (0.2, 1.0)])
def test_the_interval_of_both_holds(of_seeds, alike, own):
    """Normal effects of three seeds, and of images on all seeds alike and on each."""
    rng, hits, studies = np.random.default_rng(0), 0, 400
    for _ in range(studies):
        values = rng.normal(0, alike) + rng.normal(0, of_seeds, 3) + rng.normal(0, own, 3)
        rows = values[:, None] + rng.normal(0, alike, 200) + rng.normal(0, own, (3, 200))
        found = compare(Sample(pd.Series(values), pd.DataFrame(rows), np.arange(10)))
        hits += found.both.low <= 0 <= found.both.high
    assert 0.9 <= hits / studies <= 0.99  # 4 standard errors around 95 %, and what max(A + C, V) adds


def test_numbers_of_seeds_and_images_reach_the_power():
    """Against the share of simulated studies of that many seeds in which a t test finds one point."""
    known = Difference(3, 0.0, variance=(0.01**2 / 3, math.nan, math.nan))
    needed = known.seeds_needed()
    assert needed == 10  # G*Power's for d = 1, two-sided, 5 %, 80 %
    rng = np.random.default_rng(0)
    powers = [(ttest_1samp(rng.normal(0.01, 0.01, (20000, n)), 0, axis=1).pvalue < 0.05).mean() for n in (9, 10)]
    assert powers[0] < 0.8 < powers[1]
    # An error that is mere rounding.
    assert Difference(3, 0.0, variance=(1e-33, math.nan, math.nan)).seeds_needed() == 2
    # Errors of images alone, the same for all seeds: (1.96 + 0.84)^2 times the variance over that wanted.
    images = Difference(3, 0.0, variance=(0.0, 0.02**2, 0.02**2), images_drawn=200)
    assert images.seeds_needed() is None
    assert images.images_needed() == pytest.approx(200 * 4 * 2.8016**2, rel=1e-3)
    # And of seeds alone no number of images helps.
    assert Difference(3, 0.0, variance=(0.02**2, 0.0, 0.0), images_drawn=200).images_needed() is None


def test_holm_by_hand():
    found = {name: Difference(3, 0.0, p=p) for name, p in {"a": 0.03, "b": 0.01, "c": math.nan, "d": 0.02}.items()}
    adjusted = {name: each.adjusted for name, each in adjust(found).items()}
    # 3 x 0.01; 2 x 0.02; 0.03, but not below the one before.
    assert adjusted == pytest.approx({"a": 0.04, "b": 0.03, "c": math.nan, "d": 0.04}, nan_ok=True)
    assert list(adjusted) == list(found)
    assert adjust({"a": Difference(3, 0.0, p=0.7), "b": Difference(3, 0.0, p=0.6)})["a"].adjusted == 1


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
