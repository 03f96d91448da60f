"""The tables of a report, with text as cells, and the numbers behind them."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd

from detpool.evaluation.errors import ERRORS
from detpool.report.collect import Benchmark
from detpool.report.groups import Section
from detpool.report.statistics import POWER, Difference, Interval, adjust, compare, rank

MOST_CLASSES = 20
"""Maximum number of classes that get a column in a table."""
IOUS = [f"{0.5 + 0.05 * i:.2f}" for i in range(10)]
_WHOSE = "Intervals of 95 % are of seeds and images, or of seeds alone where images are not resampled."
_TWO_PAIRS = " Of two pairs, intervals of seeds and images may contain the truth in as few as 87 % of studies."
_SHIFTS = {"AP_range": "AP range over shifts", "mask_AP_range": "mask_AP range over shifts", "iou": "IoU over shifts"}
"""Results of `tools/shift.py` that are shown beside the metrics, with their headings."""
_UNTOLD = {"status", "note", "error", "tolerance", "rounds", "gigabytes", "gb_per_s", "copy_gb_per_s"}
"""Columns of a benchmark that are only in its own CSV file, not in the report."""


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        title: what the table shows.
        cells: the cells, as text.
        note: how to read the table; may be empty.
        words: number of leading columns with words; the other columns have numbers and are aligned to the right.
        listing: whether the table is only for reference, and not for papers.
        folded: whether the page shows only the title until the reader opens the table.
    """

    title: str
    cells: pd.DataFrame
    note: str = ""
    words: int = 1
    listing: bool = False
    folded: bool = False


def mean_and_std(values: pd.Series, factor: float = 100, digits: int = 1) -> str:
    """Formats mean ± sample standard deviation (n - 1) times `factor`; adds n if some values are unknown."""
    known = factor * values.dropna().astype(float)
    if known.empty:
        return "-"
    text = f"{known.mean():.{digits}f}" + (f" ± {known.std():.{digits}f}" if len(known) > 1 else "")
    return text if len(known) == len(values) else f"{text} (n = {len(known)})"


def percentage_points(found: Difference) -> str:
    """Formats a mean difference in percentage points and its interval."""
    if not found.pairs:
        return "-"
    return _points(found.difference) + (f" {interval(found.shown)}" if found.shown.is_known else "")


def interval(found: Interval) -> str:
    """Formats an interval in percentage points."""
    return f"[{_points(found.low)}, {_points(found.high)}]" if found.is_known else "-"


def _points(value: float) -> str:
    return f"{round(100 * value, 2) + 0.0:+.2f}"  # + 0.0: not -0.00


def p_value(p: float) -> str:
    """Formats a probability with three decimals."""
    return "-" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def number_needed(number: int | None) -> str:
    """Formats a number of seeds or images, rounded up to two digits; None means that no number is enough."""
    if number is None:
        return "no number of"
    unit = 10 ** max(0, len(str(number)) - 2)
    return f"{-(-number // unit) * unit:,}"


def revision(record: Mapping[str, Any]) -> str:
    """Returns the short git revision of a `detpool.run_record.provenance`, or the version if there is none."""
    git = record.get("git") or {}
    if git.get("revision"):
        return git["revision"][:10] + (" with changes" if git.get("dirty") else "")
    version = (record.get("versions") or {}).get("detpool")
    return f"detpool {version}" if version else "unknown"


def machine(record: Mapping[str, Any]) -> str:
    """Returns the processor, cores and GPUs of a `detpool.run_record.provenance` as text."""
    hardware = record.get("hardware") or {}
    return ", ".join(map(str, [hardware.get("cpu"), f"{hardware.get('cores')} cores", *(hardware.get("gpus") or [])]))


def versions(record: Mapping[str, Any]) -> str:
    """Returns the package versions of a `detpool.run_record.provenance` as text."""
    return ", ".join(f"{name} {version}" for name, version in (record.get("versions") or {}).items() if version)


def prefix_of(metric: str) -> str:
    """Returns the prefix of a metric: `mask_` for masks, else an empty string."""
    return "mask_" if metric.startswith("mask_") else ""


def error_shares(section: Section) -> pd.DataFrame:
    """Returns the correct detections, each kind of error and the missed objects, per object; one row per run."""
    objects = section.table["errors/objects"].replace(0, math.nan)
    return pd.DataFrame({kind: section.table[f"errors/{kind}"] / objects for kind in ("correct", *ERRORS)})


def metrics_table(section: Section, metric: str) -> Table:
    """Makes a table of the metric and COCO's usual ones, for boxes and masks: means and standard deviations."""
    kinds = (prefix_of(metric), "" if prefix_of(metric) else "mask_")
    usual = [f"{kind}AP{of}" for group in (("", "50", "75"), ("s", "m", "l")) for kind in kinds for of in group]
    shown = [metric, *(name for name in usual if name != metric and section.has(name))]
    over_shifts = {f"shift/{name}": title for name, title in _SHIFTS.items() if section.has(f"shift/{name}")}
    cells = _means(section.table[[*shown, *over_shifts]].rename(columns=over_shifts))
    cells.insert(1, "seeds", [str(len(runs)) for runs in section.runs.values()])
    note = "Percent, mean ± standard deviation over seeds (n − 1)."
    if over_shifts:
        note += (
            " Over shifts: images moved by less than the coarsest stride (tools/shift.py): the range of AP, and the "
            "mean IoU of detections with those of the image that was not moved."
        )
    return Table("Metrics", cells, note)


def configurations_table(section: Section) -> Table | None:
    """Makes a table of the settings behind the names of variants and choices; None if there are no such names."""
    if section.spelled == section.settings:
        return None
    texts = [", ".join(f"{key}={value}" for key, value in part.items()) for part in section.spelled.values()]
    cells = pd.DataFrame({"configuration": [*section.spelled], "settings": texts})
    return Table("Settings of the configurations", cells, words=2, listing=True, folded=True)


def classes_table(section: Section, metric: str) -> Table | None:
    """Makes a table of the AP of each class, or of those that differ most; None with fewer than two known classes."""
    whole = [
        name for name in (metric, f"{prefix_of(metric)}AP") if any(n.startswith(f"{name}/") for n in section.metrics)
    ]
    names = [name for name in section.metrics if whole and name.startswith(f"{whole[0]}/") and section.has(name)]
    if len(names) < 2:
        return None
    note = "Percent, mean ± standard deviation over seeds."
    if len(names) > MOST_CLASSES:
        means = section.table[names].groupby("configuration", sort=False).mean()
        spread, which = means.max() - means.min(), "whose means differ most between configurations, by that"
        if len(means) < 2:
            spread, which = -means.iloc[0], "of the lowest AP, by that"
        shown = list(spread.nlargest(MOST_CLASSES).index)
        note += f" The {len(shown)} of {len(names)} classes {which}; summary.csv has all."
        names = shown
    cells = _means(section.table[names].rename(columns=lambda name: name.partition("/")[2]))
    return Table(f"{whole[0]} by class", cells, note, folded=True)


def ranking_table(section: Section, metric: str) -> Table:
    """Makes a table of configurations from best to worst, with the ranks that cannot be told apart."""
    ranks = rank({label: section.values(label, metric) for label in section.runs})
    rows = []
    for number, (label, alike) in enumerate(ranks.items(), 1):
        shown = "-" if alike is None else f"{alike[0]}" if alike[0] == alike[1] else f"{alike[0]} to {alike[1]}"
        rows.append([label, str(number), mean_and_std(section.values(label, metric)), shown])
    cells = pd.DataFrame(rows, columns=["configuration", "rank", metric, "not told apart from"])
    note = (
        f"By mean {metric}. The last column has the ranks whose means are no further away than Tukey's honest "
        "significant difference, 5 % for all pairs together, with the seeds' standard deviation of all configurations "
        "pooled; seeds are not paired, as they are in comparisons with the baseline or the best. - : no configuration "
        "has two seeds."
    )
    return Table("Ranking", cells, note)


def pivot_table(section: Section, metric: str) -> Table | None:
    """Makes a table of the metric with the values of one setting as columns; None unless several settings vary.

    Settings of an object, such as `pooler.reduction`, count as part of the object. The setting with the fewest values,
    the last of several, becomes the columns.
    """
    keys = dict.fromkeys(key for part in section.settings.values() for key in part)
    owners = {key: next((own for own in keys if key.startswith(f"{own}.")), key) for key in keys}
    factors: dict[str, dict[str, str]] = {owner: {} for owner in owners.values()}
    for label, part in section.settings.items():
        for owner in factors:
            mine = {key: value for key, value in part.items() if owners[key] == owner}
            words = [
                value if key == owner else f"{key.removeprefix(f'{owner}.')}={value}" for key, value in mine.items()
            ]
            factors[owner][label] = ", ".join(words) or "-"
    counts = {owner: len({*values.values()}) for owner, values in factors.items()}
    if len(counts) < 2 or len(section.runs) == max(counts.values()):
        return None
    column = min(reversed(counts), key=lambda owner: counts[owner])
    others = [owner for owner in factors if owner != column]
    rows = {label: tuple(factors[owner][label] for owner in others) for label in section.runs}
    means = {(rows[label], factors[column][label]): mean_and_std(section.values(label, metric)) for label in rows}
    columns = list(dict.fromkeys(factors[column].values()))
    cells = pd.DataFrame(
        [[*row, *(means.get((row, name), "-") for name in columns)] for row in dict.fromkeys(rows.values())],
        columns=[*others, *(f"{column}={name}" for name in columns)],
    )
    return Table(f"{metric} by {column}", cells, "Percent, mean ± standard deviation over seeds.", words=len(others))


def iou_table(section: Section, metric: str) -> Table:
    """Makes a table of AP at each IoU threshold."""
    names = {f"{prefix_of(metric)}AP@{iou}": iou for iou in IOUS}
    cells = _means(section.table[list(names)].rename(columns=names))
    return Table(f"{prefix_of(metric)}AP by IoU threshold", cells, "Percent, as above.")


def errors_table(section: Section) -> Table:
    """Makes a table of the kinds of errors, per 100 objects."""
    cells = _means(error_shares(section))
    return Table("Kinds of errors of boxes", cells, "Per 100 objects, mean ± standard deviation.")


def duration_table(section: Section) -> Table | None:
    """Makes a table of the minutes per run; None if they are unknown."""
    if not section.has("seconds"):
        return None
    cells = _means(section.table[["seconds"]], 1 / 60).rename(columns={"seconds": "minutes per run"})
    note = (
        "Wall time of the whole run, data and evaluation included, whatever else the machine did meanwhile: what "
        "configurations cost is measured by tools/cost.py, whose cost.json beside the runs is reported here."
    )
    return Table("Duration", cells, note, listing=True, folded=True)


def runs_table(section: Section) -> Table:
    """Makes a table of the folder, revision and command of each run."""
    cells = section.table[["folder", "revision", "command"]].reset_index().astype({"seed": str})
    cells["revision"] = [revision(run.record) for run in section.all_runs]
    return Table("Runs", cells, words=len(cells.columns), listing=True, folded=True)


def comparisons_table(section: Section, metric: str) -> Table:
    """Makes a table of differences from the baseline, with intervals for seeds, images and both."""
    found = adjust({label: compare(section.gains(label, metric)) for label in section.others})
    rows = [
        [
            label,
            str(each.pairs),
            _points(each.difference) if each.pairs else "-",
            *map(interval, (each.both, each.seeds, each.images)),
            p_value(each.adjusted),
            each.dominates or "-",
            _needed(each.seeds_needed()) if each.pairs > 1 else "-",
            _needed(each.images_needed()) if each.pairs > 1 and each.images_drawn else "-",
        ]
        for label, each in found.items()
    ]
    columns = ["configuration", "pairs", f"Δ {metric}", "seeds and images", "seeds", "images", "p"]
    cells = pd.DataFrame(rows, columns=[*columns, "larger error", "seeds for 1 point", "images for 1 point"])
    corrected = f"corrected for {len(rows)} comparisons with the baseline by Holm's method" if len(rows) > 1 else ""
    note = (
        f"Baseline: {section.baseline}. Percentage points, mean over the seeds that both have, with 95 % intervals: of "
        "seeds (Student's t, paired), of images (bootstrap, the same images for both and all seeds) and of both. p: of "
        f"no difference, two-sided, of seeds and images, or of seeds alone where there is no other interval"
        f"{'; ' + corrected if corrected else ''}. The last columns: seeds on these images, and images with these "
        f"seeds, that find a difference of 1 point at a power of {100 * POWER:.0f} %, at the errors measured here; "
        "none: no number would."
        f"{_TWO_PAIRS if any(each.pairs == 2 and each.both.is_known for each in found.values()) else ''}"
    )
    return Table(f"{metric} against {section.baseline}", cells, note)


def _needed(number: int | None) -> str:
    return "none" if number is None else number_needed(number)


def differences_table(section: Section, metric: str) -> Table:
    """Makes a table of paired differences from the baseline, with intervals."""
    shown = _shown(section, metric, ("AP50", "AP75", "AP@0.90"))
    found = {label: [compare(section.gains(label, name)) for name in shown] for label in section.others}
    note = f"Percentage points, mean over the seeds that both have. {_WHOSE} Baseline: {section.baseline}."
    return Table(f"Paired differences from {section.baseline}", _differences(found, shown), note)


def comparable(sections: Sequence[Section]) -> list[Section]:
    """Returns the first section and those with the same baseline and at least one other common configuration."""
    first, *rest = sections
    return [first, *(s for s in rest if s.baseline == first.baseline and {*s.others} & {*first.others})]


def across_table(sections: Sequence[Section], metric: str) -> Table:
    """Makes a table of how much further above the baseline a configuration is in later sections than in the first."""
    first, *others = sections
    shown = _shown(first, metric, ("AP50", "AP75", "AP@0.90"))
    found = {}
    for label, section in itertools.product(first.others, others):
        if label in section.runs:
            row = f"{label}, {section.value}" if len(others) > 1 else label
            found[row] = [across(first, section, label, name) for name in shown]
    values = ", ".join(section.value for section in others)
    note = (
        f"The difference at {values} minus that at {first.value}, percentage points, mean over the seeds that all four "
        f"runs have. {_WHOSE} Above zero: the gain is larger than at {first.value}."
    )
    return Table(f"Differences from {first.baseline}: change since {first.value}", _differences(found, shown), note)


def across(first: Section, second: Section, label: str, name: str) -> Difference:
    """Compares how far a configuration is above the baseline in `second` with how far it is in `first`."""
    return compare(second.gains(label, name) - first.gains(label, name))


def _shown(section: Section, metric: str, usual: Sequence[str]) -> list[str]:
    """Returns the metric, the known usual ones with the same prefix, and the AP of masks or, for masks, of boxes."""
    prefix = prefix_of(metric)
    names = [*(prefix + name for name in usual), "AP" if prefix else "mask_AP"]
    return [metric, *(name for name in names if name != metric and section.has(name))]


def _means(numbers: pd.DataFrame, factor: float = 100, digits: int = 1) -> pd.DataFrame:
    means = numbers.groupby("configuration", sort=False).agg(partial(mean_and_std, factor=factor, digits=digits))
    return means.reset_index()


def _differences(found: Mapping[str, Sequence[Difference]], metrics: Sequence[str]) -> pd.DataFrame:
    rows = [[label, str(row[0].pairs), *map(percentage_points, row)] for label, row in found.items()]
    return pd.DataFrame(rows, columns=["configuration", "pairs", *(f"Δ {name}" for name in metrics)])


def summary(section: Section) -> pd.DataFrame:
    """Returns the mean and standard deviation of each metric over seeds, and its difference from the baseline."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for name in section.metrics:
        compared = adjust({label: compare(section.gains(label, name)) for label in section.others})
        found |= {(label, name): _numbers(each) for label, each in compared.items() if each.pairs}
    rows = []
    for label, name in itertools.product(section.runs, section.metrics):
        values, of = section.values(label, name), {"configuration": label, "metric": name}
        numbers = {"seeds": values.count(), "mean": values.mean(), "std": values.std(), "baseline": section.baseline}
        rows.append({"data": section.title, **of, **numbers, **found.get((label, name), {})})
    return pd.DataFrame(rows)


def _numbers(found: Difference) -> dict[str, float]:
    """Returns a difference and its intervals by the column names of CSV files."""
    intervals = {"seeds": found.seeds, "images": found.images, "both": found.both}
    ends = {f"{name}_{end}": getattr(each, end) for name, each in intervals.items() for end in ("low", "high")}
    return {"pairs": found.pairs, "difference": found.difference, **ends, "p": found.p, "p_holm": found.adjusted}


def across_summary(sections: Sequence[Section]) -> pd.DataFrame:
    """Returns `across` of all metrics and sections; p is corrected over the configurations of a pair of sections."""
    first, *others = sections
    rows = []
    for section, name in itertools.product(others, first.metrics):
        labels = [label for label in first.others if label in section.runs and name in section.metrics]
        found = adjust({label: across(first, section, label, name) for label in labels})
        of = {"from": first.title, "to": section.title}
        of_metric = {"metric": name, "baseline": first.baseline}
        rows += [{**of, "configuration": label, **of_metric, **_numbers(each)} for label, each in found.items()]
    return pd.DataFrame(rows)


def measurement_table(benchmark: Benchmark) -> Table:
    """Makes a table of how a benchmark was measured."""
    record = benchmark.record
    facts = {"command": record["command"], "revision": revision(record), "machine": machine(record)}
    cells = pd.DataFrame([*facts.items(), ("versions", versions(record))], columns=["", ""])
    return Table("How it was measured", cells, words=2, listing=True)


def times_table(benchmark: Benchmark) -> Table:
    """Makes a table of the times of a benchmark, with columns of words first, then of numbers."""
    timed = benchmark.rows[benchmark.rows["status"] == "timed"].replace("", None)
    told = timed.drop(columns=_UNTOLD, errors="ignore").dropna(axis=1, how="all")
    told = told[[name for name in told if name not in ("dtype", "threads") or told[name].nunique() > 1]]
    numbers = told.apply(pd.to_numeric, errors="coerce").notna().sum() == told.notna().sum()
    cells = told[[*told.columns[~numbers], *told.columns[numbers]]].fillna("")
    return Table("Times", cells, words=int((~numbers).sum()), listing=True)


def untimed(benchmark: Benchmark) -> list[str]:
    """Returns a list with a sentence on the rows of a benchmark without a time; empty if there are none."""
    rows = benchmark.rows[benchmark.rows["status"] != "timed"]
    if rows.empty:
        return []
    counts = Counter(zip(rows.get("implementation", rows["status"]), rows["status"], strict=True))
    listed = "; ".join(f"{name}: {count} {status}" for (name, status), count in counts.items())
    return [f"{len(rows)} rows were not timed ({listed}); the benchmark's own CSV file says why."]
