"""What `tools/cost.py` has measured: times taken in turns, their ratios with intervals, and what no clock tells."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import quantile_test

FILE = "cost.json"
PHASES = ("forward", "backward", "optimizer", "step", "inference")
"""A step is the three before it."""
COUNTS = ("parameters", "step_gflop", "inference_gflop", "step_mib", "inference_mib", "step_joules", "inference_joules")
COUNTS += ("step_rois", "inference_detections")
"""Numbers that go with the times: of a batch, but for the trained parameters."""


class Ratio(NamedTuple):
    """The median of ratios turn by turn, and its 95 % interval, NaN below 6 turns."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Cost:
    """What one configuration costs.

    Attributes:
        label: what `tools/cost.py` calls it.
        runs: fingerprints (`detpool.study.layout.fingerprint`) of the runs that it stands for.
        seconds: of a batch, by phase (and joules, if they were counted), turn by turn.
        numbers: `COUNTS` by name, and `receptive_field`, pixels or "image" or None by map.
    """

    label: str
    runs: list[str]
    seconds: Mapping[str, Sequence[float]]
    numbers: Mapping[str, Any]


@dataclass(frozen=True)
class Costs:
    """What one call of `tools/cost.py` has measured.

    Attributes:
        path: the file.
        record: its content, with the command and where it ran.
        configurations: in their order.
    """

    path: Path
    record: Mapping[str, Any]
    configurations: list[Cost]


def read_costs(path: Path) -> Costs:
    """Reads what `tools/cost.py` wrote.

    Raises:
        ValueError: the file is not such a record.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        costs = [Cost(**one) for one in record["configurations"]]
        _ = [(cost.numbers["receptive_field"], by_phase(cost), record["measured"]) for cost in costs]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path.name} is not a record of tools/cost.py: {error!r}") from error
    return Costs(path, record, costs)


def by_phase(cost: Cost) -> dict[str, np.ndarray]:
    """Seconds of each turn by phase, the whole step among them."""
    seconds = {name: np.asarray(cost.seconds[name], float) for name in PHASES if name != "step"}
    whole = seconds["forward"] + seconds["backward"] + seconds["optimizer"]
    return {name: whole if name == "step" else seconds[name] for name in PHASES}


def ratio(times: np.ndarray, others: np.ndarray) -> Ratio:
    """How many times as long as others something takes, both measured in the same turns.

    The interval lies between two of the ordered ratios, the closest pair of the same ranks from either end that holds
    the median of all turns there might be with 95 % probability or more, whatever the distribution: in the ends of 10
    the second and the ninth.
    """
    ratios = times / others
    if len(ratios) < 6:
        return Ratio(float(np.median(ratios)), math.nan, math.nan)
    found = quantile_test(ratios, q=1, p=0.5).confidence_interval(0.95)
    return Ratio(float(np.median(ratios)), float(found.low), float(found.high))


def compare(costs: Mapping[str, Cost], baseline: str) -> pd.DataFrame:
    """A row for each configuration, by label: `<phase>_ms`, its ratio to the baseline, and numbers with theirs."""
    base, rows = costs[baseline], {}
    for label, cost in costs.items():
        row: dict[str, Any] = {"baseline": baseline, "turns": len(cost.seconds["forward"])}
        for phase, seconds in by_phase(cost).items():
            row[f"{phase}_ms"] = 1e3 * float(np.median(seconds))
            found = ratio(seconds, by_phase(base)[phase])
            row |= {f"{phase}_ratio": found.median, f"{phase}_low": found.low, f"{phase}_high": found.high}
        for name in COUNTS:
            mine, other = (_number(each, name) for each in (cost, base))
            row |= {name: mine, f"{name}_ratio": mine / other if other else math.nan}
        fields = cost.numbers["receptive_field"]
        row["receptive_field"] = " ".join(f"{name}:{'-' if v is None else v}" for name, v in fields.items())
        rows[label] = row
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("configuration")


def _number(cost: Cost, name: str) -> float:
    if name in cost.seconds:  # joules, which are measured each turn
        return float(np.median(cost.seconds[name]))
    return float(cost.numbers.get(name, math.nan))
