"""Names for what distinguishes configurations: settings by short keys, and choices of the command line."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from detpool.report.collect import Run

VARIANT = "variant"
"""Key under which a study names whole configurations; a row is labeled with the name alone."""
OFF = ("own", "none")
"""Choices of a part that leave it out of the config."""


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flattens a config to settings by dotted key, as JSON; an object's own key holds `@` and its function.

    Nulls are left out: a setting that a later revision added and that is off does not change an older run.
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
    """Returns for each of several configs (one row of `flatten` each) the settings in which the configs differ.

    Objects of different functions differ as a whole: they are named by their function, and arguments are compared only
    among objects of the same function. Keys are as short as possible: `pooler=roi_pool`, `optimizer.lr=0.01`. A further
    pooler, such as `mask_pooler`, is left out if it differs in the same way as the `pooler`.
    """
    varying = [key for key in configs if configs[key].nunique() > 1]
    found: dict[str, pd.Series] = {}
    for key in varying:
        values = configs[key]
        if parents := [parent for parent in varying if key.startswith(f"{parent}.")]:
            values = values[configs.groupby(parents)[key].transform("nunique") > 1]
        shown = values.map(show)
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


def label_of(part: Mapping[str, str]) -> str:
    """Returns the label of a configuration with these settings."""
    return ", ".join(value if key == VARIANT else f"{key}={value}" for key, value in part.items())


def show(text: str) -> str:
    """Formats a value of `flatten` for display."""
    return text[1:].rpartition(".")[2] if text.startswith("@") else text.strip('"')


def choices_of(run: Run) -> dict[str, str]:
    """Returns the config group choices and the variant of a run's command line: `{"head_pool": "token_cls"}`."""
    try:
        words = shlex.split(run.record.get("command") or "")
    except ValueError:
        return {}
    found = (re.fullmatch(r"(?:\w+@)?(\w+)=(\w[\w/-]*)", word) for word in words)
    chosen = {match[1]: match[2] for match in found if match}
    parts = {key for key, value in run.config.items() if isinstance(value, Mapping)}
    off = {key for key, name in chosen.items() if name in OFF and run.config.get(key) is None}
    return {key: name for key, name in chosen.items() if key == VARIANT or key in parts | off}


def by_choice(settings: pd.DataFrame, choices: pd.DataFrame, alike: Sequence[Sequence[int]]) -> pd.DataFrame:
    """Returns one row of settings per configuration, in which the name of a choice replaces the settings behind it.

    This is done if every configuration has exactly one choice of the group, and choices and their settings correspond
    one to one. A variant stands for all varying settings that are the same wherever it was chosen.
    """
    first = settings.iloc[[places[0] for places in alike]]
    for group in sorted(choices, key=lambda group: group != VARIANT):
        names = [choices[group].iloc[places].dropna().unique() for places in map(list, alike)]
        if any(len(found) != 1 for found in names):
            continue
        chosen = [found[0] for found in names]
        below = [key for key in first if _belongs(first, key, group, chosen)]
        what = list(first[below].itertuples(index=False, name=None)) if below else []
        if len({*chosen}) == len({*what}) == len({*zip(chosen, what, strict=True)}):
            following = [key for key in first if _follows(first, key)] if group == "pooler" else []
            first = first.drop(columns=[*below[1:], *following]).rename(columns={below[0]: group})
            first[group] = chosen
    return first


def _belongs(configs: pd.DataFrame, key: str, group: str, chosen: Sequence[str]) -> bool:
    """Returns whether a setting is one of those behind a choice."""
    if group != VARIANT:
        return key == group or key.startswith(f"{group}.")
    return configs[key].nunique() > 1 and bool((configs[key].groupby(list(chosen)).nunique() == 1).all())


def _follows(configs: pd.DataFrame, key: str) -> bool:
    """Returns whether this setting of a further pooler, such as `mask_pooler`, always equals that of the `pooler`."""
    first, _, rest = key.partition(".")
    own = f"pooler.{rest}" if rest else "pooler"
    return first.endswith("_pooler") and own in configs and configs[key].equals(configs[own])


def in_order(parts: Sequence[Mapping[str, str]]) -> list[int]:
    """Returns the indices of configurations, sorted by their settings."""
    keys = dict.fromkeys(key for part in parts for key in part)
    places = {key: ranks(part.get(key, "") for part in parts) for key in keys}
    return sorted(range(len(parts)), key=lambda i: [places[key][parts[i].get(key, "")] for key in keys])


def ranks(values: Iterable[str]) -> dict[str, tuple[float, int]]:
    """Returns sort keys of values: numbers by size, then words in the order of their first occurrence."""
    found: dict[str, tuple[float, int]] = {}
    for place, value in enumerate(values):
        try:
            found.setdefault(value, (float(value), 0))
        except ValueError:
            found.setdefault(value, (math.inf, place))
    return found
