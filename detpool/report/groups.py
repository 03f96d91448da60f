"""Which runs belong together, and what to call them.

A *section* holds the runs that were evaluated on the same data and split and, if wished, have the same value of a
setting: only they are compared. A *group* holds the runs of a section that differ in nothing but their seed: only they
are averaged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from detpool.errors import ConfigError, did_you_mean
from detpool.report.collect import Problem, Run
from detpool.study.layout import PATHS, RUN_LOCAL

_LOADING = (
    "batch_size",
    "eval_batch_size",
    "num_workers",
    "pin_memory",
    "seed",
    "drop_empty",
    "train_transform",
    "eval_transform",
)
"""Keys of `data` that say how it is fed to the network, not which data it is: settings like others."""
_UNSET = object()
Part = tuple[str, str]
"""A key and its value, as shown."""


@dataclass
class Group:
    """Runs that differ in nothing but their seed.

    Attributes:
        parts: the settings in which the group differs from others of its section; its pooler, if it is the only one.
        runs: by seed.
    """

    parts: list[Part]
    runs: dict[int, Run]

    @property
    def label(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.parts)

    def values(self, metric: str) -> dict[int, float]:
        return {seed: run.metrics[metric] for seed, run in self.runs.items()}


@dataclass
class Section:
    """Runs that are compared with each other, in the order of the first run of each group.

    Attributes:
        title: their data and split, and the value of the setting that sections are made by.
        data: what identifies data and split.
        groups: at least one.
        problems: runs that were left out.
    """

    title: str
    data: str
    groups: list[Group]
    problems: list[Problem] = field(default_factory=list)

    @property
    def runs(self) -> list[Run]:
        return [run for group in self.groups for run in group.runs.values()]


def make_sections(runs: Sequence[Run], by: str | None = None) -> list[Section]:
    """Sorts runs into sections and groups.

    Of runs with the same settings *and* seed (a training and its evaluation by `eval.py`, say) the one with training
    curves stays, of several the one that finished last; the others become problems of the section.

    Args:
        runs: all runs.
        by: dotted key of a setting, `backbone.output_stride`, each of whose values gets a section.

    Raises:
        ConfigError: no run has the setting.
    """
    if by is not None and by not in (known := {key for run in runs for key in _dotted(run.config)}):
        raise ConfigError(f"--by {by!r} is set in the config of no run{did_you_mean(by, known)}")
    members: dict[str, list[Run]] = {}
    for run in runs:
        members.setdefault(_key(_comparable(run, by)), []).append(run)
    titles = differences([_comparable(alike[0], by) for alike in members.values()])
    return [_section(alike, parts) for alike, parts in zip(members.values(), titles, strict=True)]


def _section(runs: Sequence[Run], parts: Sequence[Part]) -> Section:
    problems: list[Problem] = []
    by_settings: dict[str, dict[int, list[Run]]] = {}
    for run in runs:
        by_settings.setdefault(_key(_settings(run)), {}).setdefault(run.seed, []).append(run)
    members: list[dict[int, Run]] = []
    for by_seed in by_settings.values():
        chosen = {seed: max(same, key=lambda run: (bool(run.curves), run.finished)) for seed, same in by_seed.items()}
        members.append(dict(sorted(chosen.items())))
        for seed, same in by_seed.items():
            reason = f"left out: it has the settings and seed of {chosen[seed].folder}"
            problems += [Problem(run.folder, reason) for run in same if run is not chosen[seed]]
    names = differences([_settings(next(iter(seeds.values()))) for seeds in members])
    if len(names) == 1:
        names = [_pooler(runs[0])]
    groups = [Group(name, seeds) for name, seeds in zip(names, members, strict=True)]
    name = _function(runs[0].config["data"]).removesuffix("_datamodule") or "data"
    shown = ", ".join(f"{key}={value}" for key, value in parts if key not in ("_target_", "split"))
    title = f"{name}, {runs[0].split} split" + (f" ({shown})" if shown else "")
    return Section(title, _key(_identity(runs[0])), groups, problems)


def find_baseline(section: Section, wanted: str | None) -> Group | None:
    """The group that others are compared with: the first by default, None if none is what was wanted.

    Args:
        section: where to look.
        wanted: a group's label, or some of its `key=value` parts, separated by commas.

    Raises:
        ConfigError: several groups are what was wanted.
    """
    if wanted is None:
        return section.groups[0]
    parts = {part.strip() for part in wanted.split(",")}
    fitting = [g for g in section.groups if g.label == wanted or parts <= {f"{k}={v}" for k, v in g.parts}]
    if len(fitting) > 1:
        labels = "; ".join(group.label for group in fitting)
        raise ConfigError(f"--baseline {wanted!r} fits {len(fitting)} configurations of {section.title}: {labels}")
    return fitting[0] if fitting else None


def check_baseline(sections: Sequence[Section], wanted: str | None) -> None:
    """Raises ConfigError if no section has the baseline that was wanted, or one has several."""
    found = [find_baseline(section, wanted) for section in sections]
    if found == [None] * len(sections):
        labels = [group.label for section in sections for group in section.groups]
        raise ConfigError(f"--baseline {wanted!r} is no configuration of these runs{did_you_mean(str(wanted), labels)}")


def _identity(run: Run) -> dict[str, Any]:
    """Which data a run was evaluated on."""
    return {**{k: v for k, v in run.config["data"].items() if k not in _LOADING}, "split": run.split}


def _comparable(run: Run, by: str | None) -> dict[str, Any]:
    """What all runs of a section have in common."""
    return {**_identity(run), **{key: value for key, value in _dotted(run.config).items() if key == by}}


def _dotted(node: Mapping[str, Any]) -> dict[str, Any]:
    """All settings below a node by their dotted keys, but for those that are null."""
    found = {}
    for key, value in node.items():
        if value is not None:
            found[str(key)] = value
        if isinstance(value, dict):
            found.update({f"{key}.{rest}": below for rest, below in _dotted(value).items()})
    return found


def _settings(run: Run) -> dict[str, Any]:
    """What a run computes: its config without seeds, without its data's identity and without paths of its own.

    Without nulls too: a setting that a later revision added, and that is off, leaves a run what it was before.
    """
    settings = {key: value for key, value in run.config.items() if key not in (*RUN_LOCAL, "seed")}
    settings["data"] = {k: v for k, v in run.config["data"].items() if k in _LOADING and k != "seed"}
    settings["evaluation"] = {k: v for k, v in run.config["evaluation"].items() if k not in ("split", "pictures")}
    settings["callbacks"] = {
        name: {k: v for k, v in callback.items() if k not in PATHS}
        for name, callback in (run.config.get("callbacks") or {}).items()
        if callback is not None
    }
    return _without_nulls(settings)


def _without_nulls(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    return {key: _without_nulls(value) for key, value in node.items() if value is not None}


def _pooler(run: Run) -> list[Part]:
    pooler = run.config.get("pooler") or {}
    return [("pooler", _function(pooler.get("operator") or pooler) or "unset")]


def _key(node: Any) -> str:
    return json.dumps(node, sort_keys=True, default=str)


def differences(trees: Sequence[Mapping[str, Any]]) -> list[list[Part]]:
    """For each of several configs the settings in which they are not all the same.

    Configs are compared leaf by leaf. Objects of different functions (`_target_`) differ as wholes: they are named by
    their function, and their arguments are compared only among objects of the same function. Keys are as short as they
    can be: `pooler=roi_pool`, `optimizer.lr=0.01`. A `mask_pooler` or `iou_pooler` that differs wherever, and as, the
    `pooler` does is not named.
    """
    found = _compare([(i, tree) for i, tree in enumerate(trees)], ())
    values: dict[tuple[str, ...], dict[int, str]] = {}
    for path, index, value in found:
        values.setdefault(path, {})[index] = value
    following = [p for p in values if p[0].endswith("_pooler") and values[p] == values.get(("pooler", *p[1:]))]
    found = [entry for entry in found if entry[0] not in following]
    paths = list(dict.fromkeys(path for path, _, _ in found))
    names = {path: _short(path) for path in paths}
    names = {p: n if list(names.values()).count(n) == 1 else ".".join(p) for p, n in names.items()}
    parts: list[list[Part]] = [[] for _ in trees]
    for path, index, value in found:
        parts[index].append((names[path], value))
    return parts


def _compare(nodes: list[tuple[int, Any]], path: tuple[str, ...]) -> list[tuple[tuple[str, ...], int, str]]:
    """(path, number of the config, value) wherever `nodes`, (number of the config, subtree), differ."""
    if len({_key(node) if node is not _UNSET else None for _, node in nodes}) == 1:
        return []
    if not all(isinstance(node, dict) for _, node in nodes):
        return [(path, index, _show(node)) for index, node in nodes]
    functions = {index: node.get("_target_") for index, node in nodes}
    found = []
    if len(set(functions.values())) > 1:
        found += [((*path, "_target_"), index, _function(node) or "unset") for index, node in nodes]
        for function in dict.fromkeys(functions.values()):
            found += _compare([(index, node) for index, node in nodes if functions[index] == function], path)
        return found
    for key in dict.fromkeys(key for _, node in nodes for key in node):
        found += _compare([(index, node.get(key, _UNSET)) for index, node in nodes], (*path, str(key)))
    return found


def _short(path: tuple[str, ...]) -> str:
    """The last two words of a path, or the last of an object's; a pooler's operator is the pooler."""
    words = [word for word in path if word not in ("operator", "_target_")]
    return ".".join(words[-1:] if path[-1] == "_target_" else words[-2:]) or ".".join(path)


def _function(node: Mapping[str, Any]) -> str:
    return str(node.get("_target_") or "").rpartition(".")[2]


def _show(value: Any) -> str:
    if value is _UNSET:
        return "unset"
    if isinstance(value, dict) and "_target_" in value:
        arguments = ", ".join(f"{k}={_show(v)}" for k, v in value.items() if not str(k).startswith("_"))
        return f"{_function(value)}({arguments})"
    return value if isinstance(value, str) else json.dumps(value)
