"""Ratios and intervals by hand, and costs beside the runs that they are of."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from detpool.report.build import build_report
from detpool.report.collect import collect
from detpool.report.costs import COUNTS, Cost, compare, ratio, read_costs, uncertainty
from detpool.study.layout import fingerprint

NUMBERS = dict.fromkeys(COUNTS, 2.0) | {"receptive_field": {"0": 31, "1": "image", "2": None}}


def seconds(forward: list[float]) -> dict[str, list[float]]:
    constant = {"backward": 2.0, "optimizer": 1.0, "inference": 4.0}
    return {"forward": forward, **{name: [value] * len(forward) for name, value in constant.items()}}


def test_a_ratio_is_taken_within_turns() -> None:
    # The machine was ten times as slow in the second half; the ratio was 2 all the time.
    others = np.array([1.0] * 5 + [10.0] * 5)
    assert ratio(2 * others, others) == (2, 2, 2)
    assert np.median(2 * others) / np.median(others[:5]) != 2


def test_the_interval_lies_between_ordered_ratios() -> None:
    """The number of ratios below the median is binomial: 2 and 9 of 10 leave out 2 (1 + 10) / 1024, 2.1 %."""
    ratios = np.array([5.0, 1, 9, 3, 7, 10, 2, 8, 4, 6])
    assert (
        2 * sum(math.comb(10, k) for k in range(2)) / 2**10 < 0.05 < 2 * sum(math.comb(10, k) for k in range(3)) / 2**10
    )
    assert ratio(ratios, np.ones(10)) == (5.5, 2, 9)
    assert ratio(ratios[:6], np.ones(6)) == (6, 1, 10)  # 2 / 64 are left out, 3.1 %
    assert math.isnan(ratio(ratios[:5], np.ones(5)).low)  # 2 / 32 would be 6.2 %


def test_a_step_is_the_sum_of_its_phases_in_each_turn() -> None:
    slow, fast = (Cost(name, [], seconds(forward), NUMBERS) for name, forward in (("a", [3.0, 5.0]), ("b", [1.0, 1.0])))
    rows = compare({"a": slow, "b": fast}, "b")
    assert rows.loc["a", ["forward_ms", "step_ms", "inference_ms"]].tolist() == [4000, 7000, 4000]
    assert rows.loc["a", "step_ratio"] == (6 / 4 + 8 / 4) / 2
    assert rows.loc["a", "step_gflop_ratio"] == 1
    assert rows.loc["a", "receptive_field"] == "0:31 1:image 2:-"
    assert uncertainty({"a": slow.seconds, "b": fast.seconds}, "b") == math.inf
    many = {name: seconds([value + 0.1 * (i % 2) for i in range(40)]) for name, value in (("a", 2.0), ("b", 1.0))}
    low, high = ratio(np.array(many["a"]["forward"]), np.array(many["b"]["forward"]))[1:]
    assert uncertainty(many, "b") == pytest.approx((high - low) / 2)


@pytest.fixture
def measured(sweep: Path) -> Path:
    """The runs of a sweep, whose first pooler and a third one were measured, and the file of the costs."""
    fingerprints = {
        pooler: [fingerprint(OmegaConf.load(sweep / str(3 * number + seed) / "config.yaml")) for seed in range(2)]
        for number, pooler in enumerate(["roi_pool", "pr_roi_pool"])
    }
    forward = {"roi_pool": [1.0] * 10, "pr_roi_pool": [2.0] * 10, "roi_warp": [3.0] * 10}
    configurations = [
        vars(Cost(f"pooler={name}", fingerprints.get(name, ["0" * 8]), seconds(times), NUMBERS))
        for name, times in forward.items()
    ]
    record = {"measured": "CPU time", "command": "python tools/cost.py ...", "configurations": configurations}
    (sweep / "cost.json").write_text(json.dumps(record))
    (sweep / "cost.csv").write_text("configuration\n")
    return sweep / "cost.json"


def test_a_report_takes_the_costs_beside_its_runs(measured: Path) -> None:
    collected = collect([measured.parent])
    report = build_report(collected, baseline="pooler=pr_roi_pool")
    tables = {block.title: block for block in report.parts[0].blocks}
    times = tables["Time of a training step and of inference"].cells.set_index("configuration")
    # The report's baseline, which is not that of the measurement.
    assert times.loc["pooler=pr_roi_pool", "step, ms"] == "5000.0"
    assert times.loc["pooler=roi_pool", "step, ms"] == "4000.0\n(0.800 [0.800, 0.800])"
    assert list(times.index) == ["pooler=roi_pool", "pooler=pr_roi_pool"]
    assert "python tools/cost.py ..." in tables["Time of a training step and of inference"].note
    expected = "1.250 [1.250, 1.250] × the time of a training step of pooler=roi_pool"
    assert report.parts[0].answer["cost"] == expected  # 5 s of the best, 4 s of the other
    counts = tables["Memory and operations"].cells.set_index("configuration")
    assert counts.loc["pooler=roi_pool", "receptive field, px"] == "31 / image / -"
    assert "AP and what it costs" in tables
    # What runs have collected themselves is not told as a cost.
    assert list(tables["Duration"].cells.columns) == ["configuration", "minutes per run"]
    assert report.problems == []


def test_costs_of_other_models_are_not_taken_and_named(measured: Path, make_run) -> None:
    record = json.loads(measured.read_text())
    record["configurations"] = record["configurations"][2:]
    measured.write_text(json.dumps(record))
    report = build_report(collect([measured.parent]))
    assert [problem for problem in report.problems if str(measured) in problem and "left out" in problem]
    assert "Memory and operations" not in [block.title for block in report.parts[0].blocks]
    del record["configurations"][0]["seconds"]["backward"]
    measured.write_text(json.dumps(record))
    (problem,) = collect([measured.parent]).problems
    assert "cost.json is not a record of tools/cost.py: KeyError('backward')" in problem.message
    with pytest.raises(ValueError, match="is not a record"):
        read_costs(measured)
