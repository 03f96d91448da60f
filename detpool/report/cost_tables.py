"""Tables of the costs of configurations, and the search for the costs that belong to a report's configurations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from detpool.report.costs import PHASES, Cost, Costs, compare
from detpool.report.groups import Section
from detpool.report.tables import Table, machine
from detpool.study.layout import fingerprint

_COUNTS = {
    "parameters": ("parameters, M", 1e-6, 3),
    "step_gflop": ("GFLOP a step", 1, 2),
    "inference_gflop": ("GFLOP, inference", 1, 2),
    "step_mib": ("MiB a step", 1, 1),
    "inference_mib": ("MiB, inference", 1, 1),
    "step_joules": ("J a step", 1, 1),
    "inference_joules": ("J, inference", 1, 1),
    "step_rois": ("RoIs a step", 1, 0),
    "inference_detections": ("detections", 1, 0),
}
"""For each number its heading with the unit, the factor to that unit, and the number of decimals."""
_TIMES_NOTE = (
    "Milliseconds per batch, the median over turns, and in brackets the median over turns of the ratio to {baseline}, "
    "both of the same turn, with its 95 % interval (order statistics). {measured}"
)
_COUNTS_NOTE = (
    "Of a batch, in brackets the ratio to the baseline where it is not 1. Parameters are those that are trained; GFLOP "
    "and MiB of a step are of forward and backward: multiplications and additions of convolutions, matrices and RoI "
    "poolings, and the most memory that PyTorch had handed out beyond what the model itself holds. The receptive field "
    "is that of a cell of each map, in rows of the image, of several maps each number once."
)


@dataclass(frozen=True)
class Measured:
    """The costs of the configurations of a section.

    Attributes:
        costs: costs by label, without configurations that were not measured.
        source: the file from which they were read.
        rows: the table of `compare`, with the section's baseline or, if that was not measured, the first that was.
    """

    costs: dict[str, Cost]
    source: Costs
    rows: pd.DataFrame

    def tables(self) -> tuple[Table, Table]:
        """Returns the tables of times and of counts; the first names the command and the machine of the measurement."""
        record = self.source.record
        where = f"{record['measured']}; by `{record.get('command')}`, {machine(record)}."
        return times_table(self.rows, where), counts_table(self.rows)


def times_table(rows: pd.DataFrame, measured: str) -> Table:
    """Makes a table of times and their ratios to the baseline.

    Args:
        rows: the table of `compare`.
        measured: how they were measured, as text that begins with a capital letter.
    """
    cells = {
        f"{phase}, ms": [
            f"{row[f'{phase}_ms']:.1f}" + ("" if label == row["baseline"] else f"\n{_interval(row, phase)}")
            for label, row in rows.iterrows()
        ]
        for phase in PHASES
    }
    note = _TIMES_NOTE.format(baseline=rows["baseline"].iloc[0], measured=measured)
    return Table("Time of a training step and of inference", pd.DataFrame({"configuration": rows.index, **cells}), note)


def counts_table(rows: pd.DataFrame) -> Table:
    """Makes a table of parameters, operations, memory, energy if it was measured, and receptive fields."""
    cells = {
        title: [_count(row, name, factor, digits) for _, row in rows.iterrows()]
        for name, (title, factor, digits) in _COUNTS.items()
        if rows[name].notna().any()
    }
    reaches = [dict.fromkeys(one.partition(":")[2] for one in text.split()) for text in rows["receptive_field"]]
    fields = {"receptive field, px": [" / ".join(values) for values in reaches]}
    return Table("Memory and operations", pd.DataFrame({"configuration": rows.index, **cells, **fields}), _COUNTS_NOTE)


def _interval(row: Mapping[str, Any], phase: str) -> str:
    text = f"{row[f'{phase}_ratio']:.3f}"
    low, high = row[f"{phase}_low"], row[f"{phase}_high"]
    return f"({text})" if math.isnan(low) else f"({text} [{low:.3f}, {high:.3f}])"


def _count(row: Mapping[str, Any], name: str, factor: float, digits: int) -> str:
    """Formats a number, followed by its ratio to the baseline's number if that is not 1."""
    relative = row[f"{name}_ratio"]
    number = f"{factor * row[name]:.{digits}f}"
    return number if math.isnan(relative) or round(relative, 3) == 1 else f"{number}\n({relative:.3f})"


def match(section: Section, found: Sequence[Costs]) -> Measured | None:
    """Finds the costs of a section's configurations in the file with most of them, the last of several; else None."""
    prints = {
        label: {fingerprint(OmegaConf.create(run.config)) for run in runs.values()}
        for label, runs in (section.runs.items() if found else ())
    }
    best: Measured | None = None
    for source in found:
        known: dict[str, Cost] = {}
        for label, mine in prints.items():
            if fitting := [cost for cost in source.configurations if mine & {*cost.runs}]:
                known[label] = fitting[0]
        if known and (best is None or len(known) >= len(best.costs)):
            baseline = section.baseline if section.baseline in known else next(iter(known))
            best = Measured(known, source, compare(known, baseline))
    return best
