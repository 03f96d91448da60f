"""Which runs belong together.

A *section* holds runs with comparable metrics: they were evaluated on the same images of the same data and split, at
the same size, with the same limit on detections per image. Only runs of the same section are compared directly. What
was trained, on how much data and for how long distinguishes configurations, not sections. The same holds for the image
size or another setting of the evaluation if one sweep varies it, since it is then what is studied. Optionally, sections
are also split by the value of a further setting.

A *configuration* is a group of runs of a section that differ only in their seed. Only such runs are averaged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from detpool.errors import ConfigError, did_you_mean
from detpool.report.collect import Run
from detpool.report.names import by_choice, choices_of, differences, flatten, in_order, label_of, ranks, show
from detpool.report.statistics import Sample
from detpool.study.layout import PATHS, RUN_LOCAL, WITHOUT_EFFECT, without_neutral

MOST_DRAWN = 8
"""Maximum number of configurations in a plot, which is the number of colors and markers."""
_NOT_EVALUATED = {"batch_size", "eval_batch_size", *WITHOUT_EFFECT["data"], "drop_empty", "group_orientations"}
_NOT_EVALUATED |= {"masks", "cache", "seed", "val_proposals", "test_proposals"}
"""Keys of `data` that do not affect which images are evaluated; keys that begin with `train_` do not either."""
_PROTOCOL = ("data.eval_transform", "evaluation.max_dets", "evaluation.voc_iou_threshold")
"""Further settings besides the detector that affect metrics; they split runs into sections unless a sweep varies them.
"""
_ASKED = tuple(f"evaluation.{key}" for key in ("iou_types", "voc", "backend", "diagnostics"))
"""Which metrics are computed, and how; these settings do not distinguish configurations unless a sweep varies them."""


@dataclass(eq=False)
class Section:
    """Runs that are compared with each other.

    Attributes:
        title: the data and split of the runs, and the value of the setting by which sections are split.
        data: the settings besides the detector that affect metrics: images, split and how they are evaluated.
        value: `key=value` of the setting by which sections are split; empty without one.
        settings: the settings in which each configuration differs from others of the section, by label; its pooler, if
            it is the only one. Sorted by value: numbers by size, words in the order of their first occurrence.
        spelled: the same, with the settings behind variants and choices in place of their names.
        runs: the runs of each configuration, by label and seed.
        notes: runs that were left out, and why, and other caveats.
        baseline: label of the configuration that others are compared with.
        asked: labels of configurations that plots always show.
        image_ids: ids of the images that were resampled; empty if none were.
        resamples: for runs with resampled images, by folder, a table with one row of resamples per metric.
    """

    title: str
    data: tuple[str, ...]
    value: str
    settings: dict[str, dict[str, str]]
    spelled: dict[str, dict[str, str]]
    runs: dict[str, dict[int, Run]]
    notes: list[str] = field(default_factory=list)
    baseline: str = ""
    asked: list[str] = field(default_factory=list)
    image_ids: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    resamples: dict[Path, pd.DataFrame] = field(default_factory=dict)

    @property
    def others(self) -> list[str]:
        """All configurations but the baseline."""
        return [label for label in self.runs if label != self.baseline]

    @cached_property
    def all_runs(self) -> list[Run]:
        return [run for by_seed in self.runs.values() for run in by_seed.values()]

    @cached_property
    def metrics(self) -> list[str]:
        return list(dict.fromkeys(name for run in self.all_runs for name in run.metrics))

    @cached_property
    def table(self) -> pd.DataFrame:
        """The numbers of all runs (`Run.numbers`), one row per configuration and seed; unknown numbers are NaN."""
        rows = [{"configuration": label, **run.numbers()} for label in self.runs for run in self.runs[label].values()]
        return pd.DataFrame(rows).set_index(["configuration", "seed"])

    def values(self, label: str, name: str) -> pd.Series:
        """Returns one number of each run of a configuration, by seed; NaN where it is unknown."""
        of_label = self.table.loc[label]
        return of_label[name] if name in of_label else pd.Series(math.nan, of_label.index)

    def sample(self, label: str, name: str) -> Sample:
        """Returns one number of each run of a configuration, and its values on resampled images."""
        known = {seed: self.resamples.get(run.folder) for seed, run in self.runs[label].items()}
        rows = {seed: table.loc[name] for seed, table in known.items() if table is not None and name in table.index}
        return Sample(self.values(label, name), pd.DataFrame(rows).T, self.image_ids)

    def gains(self, label: str, name: str, over: str | None = None) -> Sample:
        """Returns how far a configuration is above another (default: the baseline); NaN for seeds only one has."""
        return self.sample(label, name) - self.sample(over or self.baseline, name)

    def drawn(self, metric: str) -> list[str]:
        """Returns the configurations to plot: the baseline, those asked for and, up to `MOST_DRAWN`, the best."""
        means = self.table[metric].groupby("configuration", sort=False).mean()
        chosen = dict.fromkeys([self.baseline, *self.asked, *means.sort_values(ascending=False, kind="stable").index])
        shown = list(chosen)[: max(MOST_DRAWN, len({self.baseline, *self.asked}))]
        return [label for label in self.runs if label in shown]

    def has(self, name: str) -> bool:
        """Returns whether a number is known for any run."""
        return name in self.table and bool(self.table[name].notna().any())


def make_sections(
    runs: Sequence[Run], by: str | None = None, baseline: str | None = None, asked: Sequence[str] = ()
) -> list[Section]:
    """Sorts runs into sections and configurations.

    Of runs with the same settings *and* seed (such as a training and its evaluation by `eval.py`), the one with
    training curves is kept, or the one that finished last of several; notes of the section name the others. Metrics and
    matches that only an evaluation has are added to the run that is kept.

    Args:
        runs: all runs.
        by: dotted key of a setting such as `backbone.output_stride`; each of its values gets its own sections.
        baseline: label of a configuration, or some of its parts, separated by commas: `key=value` or the name of a
            variant. The default, also for sections without such a configuration, is the first one.
        asked: configurations that plots always show, each given like `baseline`; each may match several.

    Raises:
        ConfigError: If no run has the setting `by`, no section has the baseline or a configuration of `asked`, or the
            baseline matches several configurations of a section.
    """
    settings = pd.DataFrame([flatten(without_neutral(run.config)) for run in runs]).fillna("unset")
    if by is not None and by not in settings:
        raise ConfigError(f"--by {by!r} is set in the config of no run{did_you_mean(by, settings.columns)}")
    shared = [key for key in settings if _splits(key, settings, runs)]
    apart = [*shared, *(key for key in settings if key in _ASKED and not _is_swept(key, settings, runs))]
    computed = [key for key in settings if key != by and key not in apart and not _is_local(key)]
    choices = pd.DataFrame([choices_of(run) for run in runs])
    members = _alike(settings[[*shared, *([by] if by and by not in shared else [])]])
    if by:  # sections by data, in the order of the first run, then by value
        order, data = (
            ranks(show(value) for value in settings[by]),
            [tuple(row) for row in settings[shared].to_numpy()],
        )
        members.sort(key=lambda places: (data.index(data[places[0]]), order[show(settings[by][places[0]])]))
    titles = differences(settings.iloc[[places[0] for places in members]][shared])
    sections = []
    for places, title in zip(members, titles, strict=True):
        part, first = settings.iloc[places][computed], settings.iloc[places[0]]
        section = _section([runs[i] for i in places], part, choices.iloc[places])
        section.data, section.value = tuple(first[shared]), f"{by}={show(first[by])}" if by else ""
        shown = [f"{k.removeprefix('data.')}={v}" for k, v in title.items() if k not in ("data", "evaluation.split")]
        shown += [section.value] if by and by not in shared else []
        name = show(first.get("data", "data")).removesuffix("_datamodule")
        section.title = f"{name}, {section.all_runs[0].split} split" + (f" ({', '.join(shown)})" if shown else "")
        sections.append(section)
    if baseline is not None:
        _choose_baseline(sections, baseline)
    for wanted in asked:
        fitting = [(section, label) for section in sections for label in _fitting(section, wanted)]
        if not fitting:
            labels = [label for section in sections for label in section.runs]
            raise ConfigError(f"--show {wanted!r} is no configuration of these runs{did_you_mean(wanted, labels)}")
        for section, label in fitting:
            section.asked.append(label)
    return sections


def _section(runs: Sequence[Run], settings: pd.DataFrame, choices: pd.DataFrame) -> Section:
    alike = _alike(settings)
    spelled, parts = (
        differences(settings.iloc[[places[0] for places in alike]]),
        differences(by_choice(settings, choices, alike)),
    )
    if len(parts) == 1:
        first = settings.iloc[0]
        parts = [{"pooler": show(first.get("pooler.operator", first.get("pooler", "unset")))}]
        spelled = parts
    section = Section("", (), "", {}, {}, {})
    for number in in_order(parts):
        part, places = parts[number], alike[number]
        label = label_of(part)
        section.settings[label], section.spelled[label] = part, spelled[number]
        # The last run of each seed is kept.
        sorted_runs = sorted((runs[i] for i in places), key=lambda run: (run.seed, not run.curves.empty, run.finished))
        chosen = section.runs[label] = {run.seed: run for run in sorted_runs}
        for run in [run for run in sorted_runs if run is not chosen[run.seed]]:
            kept = chosen[run.seed]
            more = {name: value for name, value in run.metrics.items() if name not in kept.metrics}
            matches = run.matches if kept.matches is None else None
            if run.curves.empty and (more or matches):
                chosen[run.seed] = _with_more(kept, more, matches)
                what = [*(["matches"] if matches else []), *([f"metrics {', '.join(more)}"] if more else [])]
                section.notes.append(
                    f"{kept.folder} has its {' and '.join(what)} from {run.folder}, an evaluation of it"
                )
            else:
                section.notes.append(f"{run.folder}: left out: it has the settings and seed of {kept.folder}")
    section.baseline = next(iter(section.runs))
    return section


def _with_more(run: Run, metrics: Mapping[str, float], matches: Path | None) -> Run:
    """Returns a run with the metrics and matches that only an evaluation of it has."""
    record = run.record | {"metrics": {**run.metrics, **metrics}}
    return replace(run, record=record, matches=run.matches or matches)


def _alike(rows: pd.DataFrame) -> list[list[int]]:
    """Returns the indices of equal rows, one list per distinct row, in the order of first occurrence."""
    found: dict[tuple[str, ...], list[int]] = {}
    for place, row in enumerate(rows.itertuples(index=False, name=None)):
        found.setdefault(row, []).append(place)
    return list(found.values())


def _fitting(section: Section, wanted: str) -> list[str]:
    """Returns the configurations with this label, or with all these parts: names of choices or the settings behind."""
    parts = {part.strip() for part in wanted.split(",")}
    known = {
        label: {label_of({key: value}) for key, value in [*part.items(), *section.spelled[label].items()]}
        | {f"{key}={value}" for key, value in part.items()}
        for label, part in section.settings.items()
    }
    return [label for label in known if label == wanted or parts <= known[label]]


def _choose_baseline(sections: Sequence[Section], wanted: str) -> None:
    lacking = []
    for section in sections:
        fitting = _fitting(section, wanted)
        if len(fitting) > 1:
            listed = "; ".join(fitting)
            raise ConfigError(f"--baseline {wanted!r} fits {len(fitting)} configurations of {section.title}: {listed}")
        if fitting:
            section.baseline = fitting[0]
        else:
            lacking.append(section)
            section.notes.append(f"No configuration here is {wanted}: the first one is the baseline.")
    if len(lacking) == len(sections):
        labels = [label for section in sections for label in section.runs]
        raise ConfigError(f"--baseline {wanted!r} is no configuration of these runs{did_you_mean(wanted, labels)}")


def _splits(key: str, settings: pd.DataFrame, runs: Sequence[Run]) -> bool:
    """Returns whether runs that differ in a setting belong to different sections."""
    first, *rest = key.split(".")
    if key in _PROTOCOL or key.startswith(tuple(f"{part}." for part in _PROTOCOL)):
        return not _is_swept(key, settings, runs)
    if first == "trainer" and rest in (["limit_val_batches"], ["limit_test_batches"]):  # of the evaluated split only
        return bool((settings["evaluation.split"] == f'"{rest[0].split("_")[1]}"').any())
    if key == "data.year" and "data.eval_year" in settings:  # VOC: only the years of training if `eval_year` is set
        return bool((settings["data.eval_year"] == "unset").any())
    evaluated = first == "data" and not (rest and (rest[0] in _NOT_EVALUATED or rest[0].startswith("train_")))
    return evaluated or key == "evaluation.split"


def _is_swept(key: str, settings: pd.DataFrame, runs: Sequence[Run]) -> bool:
    """Returns whether runs of one sweep differ in a setting."""
    swept = [place for place, run in enumerate(runs) if run.is_of_sweep]
    folders = [runs[place].folder.parent for place in swept]
    return bool((settings[key].iloc[swept].groupby(folders).nunique() > 1).any())


def _is_local(key: str) -> bool:
    """Returns whether a setting cannot change a number except by chance: seeds, paths and other local settings."""
    words = key.split(".")
    local = words[0] in RUN_LOCAL or key in ("seed", "data.seed") or words[-1] in WITHOUT_EFFECT.get(words[0], ())
    return local or (words[0] == "callbacks" and words[-1] in PATHS)
