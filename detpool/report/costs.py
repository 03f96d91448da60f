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
PHASES = ("forward", "backward", "step", "inference")
"""A step is forward, backward and optimizer. That of the optimizer alone is not compared: where weights lie in memory
makes it some percent faster or slower, by which the same model differs from itself."""
COUNTS = (
    *("parameters", "step_gflop", "inference_gflop", "step_mib", "inference_mib"),
    *("step_joules", "inference_joules", "step_rois", "inference_detections"),
)
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
        _ = [(cost.numbers["receptive_field"], by_phase(cost.seconds), record["measured"]) for cost in costs]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path.name} is not a record of tools/cost.py: {error!r}") from error
    return Costs(path, record, costs)


def by_phase(measured: Mapping[str, Sequence[float]]) -> dict[str, np.ndarray]:
    """Seconds of each turn by phase, as `Cost` has them, and those of the whole step."""
    seconds = {name: np.asarray(measured[name], float) for name in (*PHASES, "optimizer") if name != "step"}
    whole = seconds["forward"] + seconds["backward"] + seconds["optimizer"]
    return {name: whole if name == "step" else seconds[name] for name in PHASES}


def ratio(times: np.ndarray, others: np.ndarray) -> Ratio:
    """How many times as long as others something takes, both measured in the same turns.

    The interval lies between two of the ordered ratios, of the same rank from either end, which hold the median of all
    turns there might be with 95 % probability or more, whatever the distribution: of 10 the second and the ninth.
    """
    ratios = times / others
    if len(ratios) < 6:
        return Ratio(float(np.median(ratios)), math.nan, math.nan)
    found = quantile_test(ratios, q=1, p=0.5).confidence_interval(0.95)
    return Ratio(float(np.median(ratios)), float(found.low), float(found.high))


def uncertainty(seconds: Mapping[str, Mapping[str, Sequence[float]]], baseline: str) -> float:
    """Half the width of the widest interval of a ratio, of all configurations and phases; infinity below 6 turns."""
    base = by_phase(seconds[baseline])
    found = [ratio(times, base[phase]) for each in seconds.values() for phase, times in by_phase(each).items()]
    return max((one.high - one.low) / 2 if one.high >= one.low else math.inf for one in found)


def compare(costs: Mapping[str, Cost], baseline: str) -> pd.DataFrame:
    """A row for each configuration, by label: `<phase>_ms`, its ratio to the baseline, and numbers with theirs."""
    base, rows = costs[baseline], {}
    times = by_phase(base.seconds)
    for label, cost in costs.items():
        row: dict[str, Any] = {"baseline": baseline, "turns": len(cost.seconds["forward"])}
        for phase, seconds in by_phase(cost.seconds).items():
            row[f"{phase}_ms"] = 1e3 * float(np.median(seconds))
            found = ratio(seconds, times[phase])
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
