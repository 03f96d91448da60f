"""AP of every run on resampled images, computed from the matches that runs have saved."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from detpool.evaluation.matches import MATCHES, read_matches
from detpool.evaluation.resampling import resampled_ap
from detpool.report.collect import Run
from detpool.report.groups import Section
from detpool.report.statistics import RESAMPLES

_TOLERANCE = 1e-3
"""How far the AP of the matches may be from that of the run: they may have been computed on another machine."""


def resample(sections: Sequence[Section]) -> None:
    """Adds to sections their metrics on resampled images, and notes on missing or unusable matches."""
    runs = [run for section in sections for run in section.all_runs if run.matches is not None]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1) as pool:
        found = dict(zip([run.folder for run in runs], pool.map(_resample, runs), strict=True))
    for section in sections:
        for run in (run for run in section.all_runs if run.matches is not None):
            outcome = found[run.folder]
            if not isinstance(outcome, str) and section.resamples and not np.array_equal(outcome[0], section.image_ids):
                outcome = f"{run.matches} is of other images than those of runs before it"
            if isinstance(outcome, str):
                section.notes.append(f"{outcome}: it is not used.")
            else:
                section.image_ids, section.resamples[run.folder] = outcome
        if section.others and (missing := [run for run in section.all_runs if run.folder not in section.resamples]):
            section.notes.append(
                f"{len(missing)} of {len(section.all_runs)} runs have no {MATCHES} that can be used, from which images "
                "are resampled: intervals of their differences are of seeds alone. For each of them `python eval.py "
                f"ckpt_path=RUN run_dir=RUN/eval` adds it, for instance with RUN={missing[0].folder}; reports find it "
                "there."
            )


def _resample(run: Run) -> tuple[NDArray[np.int64], pd.DataFrame] | str:
    """Returns the ids of the images and a table with one row of resamples per metric; or an error message."""
    assert run.matches is not None
    try:
        matches = read_matches(run.matches)
        values = pd.DataFrame(resampled_ap(matches, RESAMPLES)).T
    except (ValueError, OSError) as error:
        return str(error)
    for name in sorted({"AP", "mask_AP"} & {*values.index} & run.metrics.keys()):
        if not np.isclose(values.loc[name, 0], run.metrics[name], rtol=0, atol=_TOLERANCE, equal_nan=True):
            return f"{run.matches} gives {name} {values.loc[name, 0]:.4f}, metrics.json {run.metrics[name]:.4f}"
    return next(iter(matches.values())).image_ids, values.drop(columns=0)
