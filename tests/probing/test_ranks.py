import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from detpool.probing.ranks import rank_agreement


def test_rho_is_scipys_with_ties_and_its_mean_over_groups():
    draw = np.random.default_rng(0)
    groups = [(draw.integers(0, 4, n), draw.normal(size=n)) for n in (6, 11)]
    expected = np.mean([spearmanr(*group).statistic for group in groups])
    rho, low, high = rank_agreement(groups, draws=500)
    assert rho == pytest.approx(expected)
    assert low < rho < high
    assert rank_agreement(groups, draws=500) == (rho, low, high)


def test_the_same_order_agrees_in_every_draw_unless_the_measure_errs():
    order = [(range(6), [1.0, 2.0, 4.0, 8.0, 16.0, 32.0])]
    assert rank_agreement(order) == pytest.approx((1.0, 1.0, 1.0))
    assert rank_agreement([(order[0][0], [-v for v in order[0][1]])]) == pytest.approx((-1.0, -1.0, -1.0))
    rho, low, high = rank_agreement(order, errors=[[3.0] * 6])
    assert rho == pytest.approx(1.0)
    assert low < 0.9 < high


def test_groups_are_not_compared():
    """Within each group the order is reversed, and one group is above the other by both measures."""
    groups = [([1, 2, 3], [3, 2, 1]), ([11, 12, 13], [13, 12, 11])]
    assert rank_agreement(groups)[0] == pytest.approx(-1.0)


def test_intervals_hold_most_of_the_time():
    """Of normal pairs with a correlation of 0.8, whose rho is known, 40 at a time."""
    true = 6 / math.pi * math.asin(0.8 / 2)
    draw, held = np.random.default_rng(1), 0
    for _ in range(200):
        x = draw.normal(size=40)
        y = 0.8 * x + 0.6 * draw.normal(size=40)
        _, low, high = rank_agreement([(x, y)], draws=400)
        held += low <= true <= high
    assert 175 <= held <= 200  # 95 % of 200 are 190 +- 3; the percentile interval is known to be a little narrow


def test_measures_that_do_not_vary_have_no_order():
    assert all(math.isnan(value) for value in rank_agreement([([1, 1, 1], [1, 2, 3])]))
