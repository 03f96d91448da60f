"""Which runs belong together, and what to call them.

A *section* holds the runs that were evaluated on the same data and split and, if wished, have the same value of a
setting: only they are compared directly. A *configuration* is what the runs of a section have in common that differ
in nothing but their seed: only they are averaged.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd

from detpool.errors import ConfigError, did_you_mean
from detpool.report.collect import Run
from detpool.study.layout import PATHS, RUN_LOCAL

MOST_DRAWN = 8
"""Configurations that a plot shows: as many as there are colors and markers."""
_LOADING = {"batch_size", "eval_batch_size", "num_workers", "pin_memory", "drop_empty"}
_LOADING |= {"train_transform", "eval_transform"}
"""Keys of `data` that say how it is fed to the network, not which data it is: settings like others."""


@dataclass(eq=False)
class Section:
    """Runs that are compared with each other.

    Attributes:
        title: their data and split, and the value of the setting that sections are made by.
        data: what identifies data and split.
        value: of the setting that sections are made by, `key=value`; empty without one.
        settings: for each configuration, by its label, those in which it differs from others of its section; its
            pooler, if it is the only one. In the order of their values: numbers by size, words as they come first.
        runs: for each configuration, by seed.
        notes: runs that were left out, and why.
        baseline: the configuration that others are compared with.
        asked: configurations that plots show in any case.
    """

    title: str
    data: tuple[str, ...]
    value: str
    settings: dict[str, dict[str, str]]
    runs: dict[str, dict[int, Run]]
    notes: list[str] = field(default_factory=list)
    baseline: str = ""
    asked: list[str] = field(default_factory=list)

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
        """The numbers of all runs (`Run.numbers`), a row each, by configuration and seed; what is unknown is NaN."""
        rows = [{"configuration": label, **run.numbers()} for label in self.runs for run in self.runs[label].values()]
        return pd.DataFrame(rows).set_index(["configuration", "seed"])

    def values(self, label: str, name: str) -> pd.Series:
        """A number of each run of a configuration, by seed."""
        return self.table.loc[label, name]

    def gains(self, label: str, name: str) -> pd.Series:
        """By seed, how far a configuration is above the baseline; NaN for a seed that only one of both has."""
        return self.values(label, name) - self.values(self.baseline, name)

    def drawn(self, metric: str) -> list[str]:
        """The configurations that plots show: the baseline, those asked for and, up to `MOST_DRAWN`, the best."""
        means = self.table[metric].groupby("configuration", sort=False).mean()
        chosen = dict.fromkeys([self.baseline, *self.asked, *means.sort_values(ascending=False, kind="stable").index])
        shown = list(chosen)[: max(MOST_DRAWN, len({self.baseline, *self.asked}))]
        return [label for label in self.runs if label in shown]

    def has(self, name: str) -> bool:
        """Whether a number is known of any run."""
        return name in self.table and bool(self.table[name].notna().any())


def make_sections(
    runs: Sequence[Run], by: str | None = None, baseline: str | None = None, asked: Sequence[str] = ()
) -> list[Section]:
    """Sorts runs into sections and configurations.

    Of runs with the same settings *and* seed (a training and its evaluation by `eval.py`, say) the one with training
    curves stays, of several the one that finished last; notes of the section name the others.

    Args:
        runs: all runs.
        by: dotted key of a setting, `backbone.output_stride`, each of whose values gets a section.
        baseline: a configuration's label, or some of its `key=value` parts, separated by commas. Default, and where a
            section has none such: the first.
        asked: configurations that plots show in any case; each as the baseline is given, and may fit several.

    Raises:
        ConfigError: no run has the setting, no section has the baseline or a configuration that is asked for, or one
            has several baselines.
    """
    settings = pd.DataFrame([flatten(run.config) for run in runs]).fillna("unset")
    if by is not None and by not in settings:
        raise ConfigError(f"--by {by!r} is set in the config of no run{did_you_mean(by, settings.columns)}")
    shared = [key for key in settings if _identifies_data(key)]
    computed = [key for key in settings if key != by and key not in shared and not _is_local(key)]
    choices = pd.DataFrame([_choices(run) for run in runs])
    members = _alike(settings[[*shared, *([by] if by and by not in shared else [])]])
    if by:  # data in the order of their first run, and for each the values in theirs
        order, data = (
            _ranks(_show(value) for value in settings[by]),
            [tuple(row) for row in settings[shared].to_numpy()],
        )
        members.sort(key=lambda places: (data.index(data[places[0]]), order[_show(settings[by][places[0]])]))
    titles = differences(settings.iloc[[places[0] for places in members]][shared])
    sections = []
    for places, title in zip(members, titles, strict=True):
        part, first = settings.iloc[places][computed], settings.iloc[places[0]]
        section = _section([runs[i] for i in places], part, choices.iloc[places])
        section.data, section.value = tuple(first[shared]), f"{by}={_show(first[by])}" if by else ""
        shown = [f"{k.removeprefix('data.')}={v}" for k, v in title.items() if k not in ("data", "evaluation.split")]
        shown += [section.value] if by and by not in shared else []
        name = _show(first.get("data", "data")).removesuffix("_datamodule")
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
    parts = differences(_by_choice(settings, choices, alike))
    if len(parts) == 1:
        first = settings.iloc[0]
        parts = [{"pooler": _show(first.get("pooler.operator", first.get("pooler", "unset")))}]
    section = Section("", (), "", {}, {})
    for number in _in_order(parts):
        part, places = parts[number], alike[number]
        label = ", ".join(f"{key}={value}" for key, value in part.items())
        section.settings[label] = part
        # The last of each seed stays.
        sorted_runs = sorted((runs[i] for i in places), key=lambda run: (run.seed, not run.curves.empty, run.finished))
        chosen = section.runs[label] = {run.seed: run for run in sorted_runs}
        left_out = [(run.folder, kept.folder) for run in sorted_runs if run is not (kept := chosen[run.seed])]
        section.notes += [f"{one}: left out: it has the settings and seed of {other}" for one, other in left_out]
    section.baseline = next(iter(section.runs))
    return section


def _alike(rows: pd.DataFrame) -> list[list[int]]:
    """The places of equal rows, in the order of the first of each kind."""
    found: dict[tuple[str, ...], list[int]] = {}
    for place, row in enumerate(rows.itertuples(index=False, name=None)):
        found.setdefault(row, []).append(place)
    return list(found.values())


def _choices(run: Run) -> dict[str, str]:
    """What the run's command line chose of groups of the config: `{"head_pool": "token_cls"}`."""
    try:
        words = shlex.split(run.record.get("command") or "")
    except ValueError:
        return {}
    found = (re.fullmatch(r"(?:\w+@)?(\w+)=(\w[\w/-]*)", word) for word in words)
    return {match[1]: match[2] for match in found if match and isinstance(run.config.get(match[1]), Mapping)}


def _by_choice(settings: pd.DataFrame, choices: pd.DataFrame, alike: Sequence[Sequence[int]]) -> pd.DataFrame:
    """The settings of each configuration, a row each; what a choice stands for goes by the name of the choice.

    That is where each configuration is known by a choice, and a choice and its settings are one and the same.
    """
    first = settings.iloc[[places[0] for places in alike]]
    for group in choices:
        names = [choices[group].iloc[places].dropna().unique() for places in map(list, alike)]
        below = [key for key in first if key == group or key.startswith(f"{group}.")]
        what = list(first[below].itertuples(index=False, name=None)) if below else []
        chosen = [found[0] for found in names if len(found) == 1]
        if len(chosen) == len(alike) and len({*chosen}) == len({*what}) == len({*zip(chosen, what, strict=True)}):
            following = [key for key in first if _follows(first, key)] if group == "pooler" else []
            first = first.drop(columns=[*below[1:], *following]).rename(columns={below[0]: group})
            first[group] = chosen
    return first


def _follows(configs: pd.DataFrame, key: str) -> bool:
    """Whether this setting of a `mask_pooler` or `iou_pooler` is always that of the `pooler`."""
    first, _, rest = key.partition(".")
    own = f"pooler.{rest}" if rest else "pooler"
    return first.endswith("_pooler") and own in configs and configs[key].equals(configs[own])


def _in_order(parts: Sequence[Mapping[str, str]]) -> list[int]:
    """Places of configurations, in the order of their settings."""
    keys = dict.fromkeys(key for part in parts for key in part)
    ranks = {key: _ranks(part.get(key, "") for part in parts) for key in keys}
    return sorted(range(len(parts)), key=lambda i: [ranks[key][parts[i].get(key, "")] for key in keys])


def _ranks(values: Iterable[str]) -> dict[str, tuple[float, int]]:
    """Sort keys of values: numbers by their size, then words as they come first."""
    found: dict[str, tuple[float, int]] = {}
    for place, value in enumerate(values):
        try:
            found.setdefault(value, (float(value), 0))
        except ValueError:
            found.setdefault(value, (math.inf, place))
    return found


def _fitting(section: Section, wanted: str) -> list[str]:
    """The configurations with this label or these `key=value` parts, separated by commas."""
    parts = {part.strip() for part in wanted.split(",")}
    shown = {label: {f"{key}={value}" for key, value in part.items()} for label, part in section.settings.items()}
    return [label for label in shown if label == wanted or parts <= shown[label]]


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


def _identifies_data(key: str) -> bool:
    first, *rest = key.split(".")
    return key == "evaluation.split" or (first == "data" and key != "data.seed" and not _LOADING & {*rest[:1]})


def _is_local(key: str) -> bool:
    """Whether a setting changes no number but by chance: seeds, and what a run says of its own folder."""
    words = key.split(".")
    local = words[0] in RUN_LOCAL or key in ("seed", "data.seed", "evaluation.pictures")
    return local or (words[0] == "callbacks" and words[-1] in PATHS)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Settings by dotted keys, as JSON; that of an object has its function, `@` before it.

    Without nulls: a setting that a later revision added, and that is off, leaves a run what it was before.
    """
    found: dict[str, str] = {}
    for key, value in config.items():
        path = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping):
            found |= flatten(value, path)
        elif value is not None:
            found |= {prefix: f"@{value}"} if key == "_target_" else {path: json.dumps(value, default=str)}
    return found


def differences(configs: pd.DataFrame) -> list[dict[str, str]]:
    """For each of several configs (`flatten`, a row each) the settings in which they are not all the same.

    Objects of different functions differ as wholes: they are named by their function, and their arguments are compared
    only among objects of the same function. Keys are as short as they can be: `pooler=roi_pool`, `optimizer.lr=0.01`. A
    `mask_pooler` or `iou_pooler` that differs wherever, and as, the `pooler` does is not named.
    """
    varying = [key for key in configs if configs[key].nunique() > 1]
    found: dict[str, pd.Series] = {}
    for key in varying:
        values = configs[key]
        if parents := [parent for parent in varying if key.startswith(f"{parent}.")]:
            values = values[configs.groupby(parents)[key].transform("nunique") > 1]
        shown = values.map(_show)
        found[key] = shown if shown.nunique() == values.nunique() else values.str.removeprefix("@")
    for key in varying:
        first, *rest = key.split(".")
        if first.endswith("_pooler") and found[key].equals(found.get(".".join(["pooler", *rest]))):
            del found[key]
    names = {}
    for key in found:  # the last two words, or the last of an object's; a pooler's operator is the pooler
        words = [word for word in key.split(".") if word != "operator"]
        is_object = (configs[key].str.startswith("@") | (configs[key] == "unset")).all()
        names[key] = ".".join(words[-1:] if is_object else words[-2:])
    names = {key: name if list(names.values()).count(name) == 1 else key for key, name in names.items()}
    return [{name: found[key][i] for key, name in names.items() if i in found[key]} for i in configs.index]


def _show(text: str) -> str:
    return text.rpartition(".")[2] if text.startswith("@") else text.strip('"')
