"""Numbers as text."""

from __future__ import annotations

import json
import math

import pandas as pd

from detpool.report.build import build_report
from detpool.report.collect import collect
from detpool.report.groups import make_sections
from detpool.report.statistics import Difference, Interval
from detpool.report.tables import interval, mean_and_std, metrics_table, number_needed, p_value, percentage_points


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


def test_shifts_stand_beside_the_metrics_where_they_were_measured(make_run, tmp_path):
    for seed, (span, iou) in enumerate([(0.01, 0.9), (0.03, None)]):
        folder = make_run(f"runs/{seed}", seed=seed)
        record = {"summary": {"AP_range": span, "iou": iou}, "images": 50 + seed, "direction": "right", "shifts": [{}]}
        (folder / "shift.json").write_text(json.dumps(record))
    make_run("runs/2", seed=0, pooler="roi_pool")
    found = collect([tmp_path / "runs"])
    cells = metrics_table(make_sections(found.runs)[0], "AP").cells.set_index("configuration")
    assert cells["AP range over shifts"].tolist() == ["2.0 ± 1.4", "-"]
    assert cells["IoU over shifts"].tolist() == ["90.0 (n = 1)", "-"]
    (note,) = [note for note in build_report(found).parts[0].notes if "tools/shift.py" in note]
    assert "50 images moved right, 1 shifts (1 run); 51 images" in note
    assert "not measured (1 run)" in note
    (folder / "shift.json").write_text("{}")
    (problem,) = collect([folder]).problems
    assert "shift.json is not what tools/shift.py writes: KeyError('summary')" in str(problem)
