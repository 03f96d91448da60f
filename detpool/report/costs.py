"""The results of `tools/cost.py`: times measured in turns, ratios of times with intervals, and other costs."""

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
"""A step is forward, backward and optimizer. The optimizer alone, a few percent of a step, is not compared: for two
builds of the same model, its time differed by up to 4 %, consistently over turns."""
COUNTS = (
    *("parameters", "step_gflop", "inference_gflop", "step_mib", "inference_mib"),
    *("step_joules", "inference_joules", "step_rois", "inference_detections"),
)
"""Numbers reported with the times; all are per batch, except the number of trained parameters."""


class Ratio(NamedTuple):
    """The median of the ratios of all turns, and its 95 % interval; NaN below 6 turns."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Cost:
    """What one configuration costs.

    Attributes:
        label: its name in `tools/cost.py`.
        runs: fingerprints (`detpool.study.layout.fingerprint`) of the runs with this configuration.
        seconds: seconds per batch of each turn, by phase (and joules, if they were measured).
        numbers: `COUNTS` by name, and `receptive_field`, which has pixels, "image" or None for each map.
    """

    label: str
    runs: list[str]
    seconds: Mapping[str, Sequence[float]]
    numbers: Mapping[str, Any]


@dataclass(frozen=True)
class Costs:
    """The results of one call of `tools/cost.py`.

    Attributes:
        path: the file.
        record: its content, with the command and the machine it ran on.
        configurations: the costs of each configuration, in the order of the file.
    """

    path: Path
    record: Mapping[str, Any]
    configurations: list[Cost]


def read_costs(path: Path) -> Costs:
    """Reads what `tools/cost.py` wrote.

    Raises:
        ValueError: If the file is not such a record.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        costs = [Cost(**one) for one in record["configurations"]]
        _ = [(cost.numbers["receptive_field"], by_phase(cost.seconds), record["measured"]) for cost in costs]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path.name} is not a record of tools/cost.py: {error!r}") from error
    return Costs(path, record, costs)


def by_phase(measured: Mapping[str, Sequence[float]]) -> dict[str, np.ndarray]:
    """Returns the seconds of each turn by phase, including those of the whole step, from `Cost.seconds`."""
    seconds = {name: np.asarray(measured[name], float) for name in (*PHASES, "optimizer") if name != "step"}
    whole = seconds["forward"] + seconds["backward"] + seconds["optimizer"]
    return {name: whole if name == "step" else seconds[name] for name in PHASES}


def ratio(times: np.ndarray, others: np.ndarray) -> Ratio:
    """Computes the ratio of times to other times that were measured in the same turns.

    The ends of the interval are two of the sorted ratios, of equal rank from either end (of 10, the second and the
    ninth). It contains the true median with a probability of at least 95 %, whatever the distribution.
    """
    ratios = times / others
    if len(ratios) < 6:
        return Ratio(float(np.median(ratios)), math.nan, math.nan)
    found = quantile_test(ratios, q=1, p=0.5).confidence_interval(0.95)
    return Ratio(float(np.median(ratios)), float(found.low), float(found.high))


def uncertainty(seconds: Mapping[str, Mapping[str, Sequence[float]]], baseline: str) -> float:
    """Returns half the width of the widest interval of all configurations and phases; infinity below 6 turns."""
    base = by_phase(seconds[baseline])
    found = [ratio(times, base[phase]) for each in seconds.values() for phase, times in by_phase(each).items()]
    return max((one.high - one.low) / 2 if one.high >= one.low else math.inf for one in found)


def compare(costs: Mapping[str, Cost], baseline: str) -> pd.DataFrame:
    """Makes a table with one row per label: `<phase>_ms` and `COUNTS`, each with its ratio to the baseline."""
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
    if name in cost.seconds:  # joules, which are measured in each turn
        return float(np.median(cost.seconds[name]))
    return float(cost.numbers.get(name, math.nan))
