"""Numbers as text."""

from __future__ import annotations

import math

import pandas as pd

from detpool.report.statistics import Difference, Interval
from detpool.report.tables import interval, mean_and_std, number_needed, p_value, percentage_points


def test_means_and_standard_deviations():
    assert mean_and_std(pd.Series([0.3, 0.5, 0.9])) == "56.7 ± 30.6"
    assert mean_and_std(pd.Series([0.5123])) == "51.2"
    assert mean_and_std(pd.Series([0.4, 0.6, math.nan])) == "50.0 ± 14.1 (n = 2)"
    assert mean_and_std(pd.Series([math.nan])) == mean_and_std(pd.Series([None], dtype=object)) == "-"
    assert mean_and_std(pd.Series([3 << 20, 3 << 20]), 2**-20, 0) == "3 ± 0"


def test_differences():
    assert percentage_points(Difference(3, 0.0123, Interval(-0.001, 0.03))) == "+1.23 [-0.10, +3.00]"
    both = Difference(3, 0.0123, Interval(-0.001, 0.03), both=Interval(-0.002, 0.04))
    assert percentage_points(both) == "+1.23 [-0.20, +4.00]"
    assert percentage_points(Difference(1, -0.0123)) == "-1.23"
    assert percentage_points(Difference(2, -1e-9, Interval(-1e-9, 0.0))) == "+0.00 [+0.00, +0.00]"
    assert percentage_points(Difference(0, math.nan)) == interval(Interval()) == "-"


def test_probabilities_and_numbers_needed():
    assert [p_value(p) for p in (0.0004, 0.0316, 1.0, math.nan)] == ["< 0.001", "0.032", "1.000", "-"]
    assert [number_needed(n) for n in (7, 99, 101, 3149, 12345)] == ["7", "99", "110", "3,200", "13,000"]
    assert number_needed(None) == "no number of"
