"""Variants with which trained weights are evaluated: all combinations of the values that a command line lists."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig

from detpool.config import apply_overrides, check, parse_override, replace_data, replace_parts
from detpool.config.other_parts import POOLERS
from detpool.errors import ConfigError, did_you_mean
from detpool.run_config import load_config

DISTANCES = ("noise", "iou")
"""Short for `model.proposals.noise` and `model.proposals.iou` of `proposals=jittered`."""
_ALONE = ("model.proposals.boxes_per_object=1", "model.proposals.background_per_object=0")


@dataclass(frozen=True)
class Variant:
    """One combination of settings.

    Attributes:
        label: the settings for which the command line lists several values; if there are none, those of poolers.
        proposals: the chosen kind of proposals; empty for the run's own.
        measure: "noise" or "iou" if proposals have a given distance from the objects, otherwise empty.
        distance: that distance, NaN if there is none.
        overrides: plain `key=value` arguments that change the config of the run.
    """

    label: str
    proposals: str
    measure: str
    distance: float
    overrides: tuple[str, ...]


def variants_of(arguments: Sequence[str]) -> list[Variant]:
    """Returns all combinations of the values that a command line lists, as in `pooler=roi_align,roi_pool`.

    If `noise` or `iou` is given, each object has one proposal and there are no background proposals, unless
    `model.proposals.*` arguments set other numbers.

    Args:
        arguments: `key=value` arguments, with keys of `DISTANCES` or as for `eval.py`, in Hydra's syntax for sweeps.

    Raises:
        ConfigError: If an argument is not `key=value` or repeats a key, or a distance is not a number or is combined
            with other proposals than `jittered`.
    """
    parsed = [parse_override(argument) for argument in arguments]
    values: dict[str, list[str]] = {}
    for argument, given in zip(arguments, parsed, strict=True):
        if given.key_or_group in values:
            raise ConfigError(f"{given.key_or_group} is given twice: list its values, {given.key_or_group}=a,b")
        values[given.key_or_group] = _values(argument, given)
        if "did you mean" in (hint := did_you_mean(given.key_or_group, ["noise"])) and "noise" not in values:
            raise ConfigError(f"there is no key or group {given.key_or_group!r}{hint}")
    measures = [name for name in DISTANCES if name in values]
    if len(measures) == 2:
        raise ConfigError("noise and iou both say how far proposals are from the objects: give one")
    if measures:
        if others := set(values.setdefault("proposals", ["jittered"])) - {"jittered"}:
            raise ConfigError(
                f"{measures[0]}: proposals are made of the objects, proposals=jittered, and not {', '.join(others)}"
            )
        for argument in _ALONE:
            key, _, value = argument.partition("=")
            values.setdefault(key, [value])
    return [
        _variant(dict(zip(values, combination, strict=True)), values)
        for combination in itertools.product(*values.values())
    ]


def configure(path: Path, variant: Variant, folder: Path) -> DictConfig:
    """Returns the config of a run with the overrides of a variant, checked.

    Args:
        path: the run directory or a checkpoint in it.
        variant: the variant.
        folder: folder of the config files.

    Raises:
        ConfigError: If there is no such run, or an override is not valid.
    """
    config = load_config(path)
    left = replace_data(config, variant.overrides, folder)
    apply_overrides(config, replace_parts(config, left, folder))
    check(config)
    return config


def _values(argument: str, given: Override) -> list[str]:
    if not given.is_sweep_override():
        return [argument.partition("=")[2]]
    try:
        return [{"True": "true", "False": "false"}.get(text, text) for text in given.sweep_string_iterator()]
    except HydraException as error:
        raise ConfigError(f"{argument}: {error}") from error


def _variant(chosen: Mapping[str, str], values: Mapping[str, Sequence[str]]) -> Variant:
    measure = next((name for name in DISTANCES if name in chosen), "")
    told = [key for key in chosen if key not in DISTANCES and len(values[key]) > 1]
    told = told or [key for key in chosen if _is_of_pooler(key)]
    words = [_word(key, chosen[key]) for key in told]
    try:
        distance = float(chosen[measure]) if measure else float("nan")
    except ValueError:
        raise ConfigError(f"{measure}={chosen[measure]} must be a number") from None
    overrides = [f"{key}={value}" for key, value in chosen.items() if key not in DISTANCES]
    overrides += [f"model.proposals.{measure}={chosen[measure]}"] if measure else []
    return Variant(", ".join(words) or "as trained", chosen.get("proposals", ""), measure, distance, tuple(overrides))


def _is_of_pooler(key: str) -> bool:
    return key.partition(".")[0] in (*POOLERS, "reduction")


def _word(key: str, value: str) -> str:
    if key == "pooler":
        return value
    return f"{key.rpartition('.')[2]}={value}" if key.startswith("pooler.") else f"{key}={value}"
