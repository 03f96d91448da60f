"""The files and folders of a sweep: names of run directories, the plan, and the status of runs without metrics.

Nothing here imports torch, because `train.py` uses this module to plan a sweep before any work is done.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from detpool.config.overrides import leaves
from detpool.errors import ConfigError
from detpool.files import write_json_atomically
from detpool.run_config import read_run_config

PLAN = "sweep.json"
"""File in the folder of a sweep: the names of its run directories and, for a study, the command line of each."""
STATUS = "status.json"
"""File in a run directory: how the run ended, if it ended without metrics."""
STATES = ("diverged", "failed", "interrupted")

RUN_LOCAL = ("run_dir", "ckpt_path", "task", "progress", "class_names", "logger", "imports", "keep_checkpoints")
"""Top-level keys of a config that concern the location of a run, its output and its code, not what it computes."""
PATHS = ("dirpath", "path")
"""Keys of callbacks that hold paths in the run directory."""
WITHOUT_EFFECT = {"data": ("num_workers", "pin_memory"), "evaluation": ("pictures",)}
"""Further keys that change no metric, by section: samples do not depend on the number of workers."""

_FILES = ("train_json", "val_json", "test_json", "train_xml", "val_xml", "test_xml")
_IMAGES = ("train_images", "val_images", "test_images")
_NEUTRAL: dict[str, dict[str, Any]] = {
    "data": {"split": None, "split_seed": 0, "classes": None, "drop_others": "objects"}
    | dict.fromkeys((*_FILES, *_IMAGES)),
    "model": {"weights": None, "class_agnostic": False, "roi_heads": {"box_loss": "smooth_l1", "nms": "hard"}},
    "optim": {"backbone_rate": 1.0, "frozen": []},
    "evaluation": {"diagnostics": []},
}
"""Settings that were added later, with the values that change nothing. They are left out of fingerprints, so that older
runs keep their names and their configurations in reports."""


@dataclass(frozen=True)
class Status:
    """How a run without metrics ended.

    Attributes:
        state: `diverged` (a loss that is not finite), `failed` or `interrupted`.
        error: the message; empty for a run that was interrupted by a signal (as opposed to a full disk).
    """

    state: str
    error: str


def fingerprint(config: DictConfig, seed: int | None = None) -> str:
    """Hashes everything in a composed config that affects what is computed, including the seed, to eight hex digits.

    Configs have the same fingerprint only if their runs would give the same metrics: they differ at most in the
    location of the run, what it prints and draws, and the number of processes that load data.

    Args:
        config: a composed config.
        seed: replaces the config's own seed.
    """
    raw: Any = OmegaConf.to_container(config, resolve=False)
    raw.pop("hydra", None)
    raw |= {"run_dir": ""} if seed is None else {"run_dir": "", "seed": seed}
    content: Any = OmegaConf.to_container(OmegaConf.create(raw), resolve=True)
    text = json.dumps(what_is_computed(content), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def check_same(run_dir: Path, config: DictConfig, seed: int | None = None) -> None:
    """Checks that a folder named by a number does not hold a run of another config, which would pass for this one.

    Args:
        run_dir: the folder; it need not exist.
        config: a composed config.
        seed: replaces the config's own seed.

    Raises:
        ConfigError: If the folder holds a run of another config.
    """
    try:
        before = read_run_config(run_dir / "config.yaml")
        for key, value in leaves(OmegaConf.to_container(before)):
            if f"{value}/".startswith(f"{before.run_dir}/"):  # fingerprints do not depend on the folder
                OmegaConf.update(before, key, str(value).removeprefix(before.run_dir))
        same = fingerprint(before) == fingerprint(config, seed)
    except (OSError, ValueError, YAMLError, OmegaConfBaseException):  # none, a damaged one, or not known before it runs
        return
    if not same:
        raise ConfigError(
            f"{run_dir} holds a run of another config: a sweep is resumed by the same command; further runs go to "
            f"another hydra.sweep.dir, or are added to a study"
        )


def what_is_computed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a plain config that affect what a run computes."""
    kept = {str(key): value for key, value in config.items() if key not in RUN_LOCAL}
    for section, keys in WITHOUT_EFFECT.items():
        kept[section] = {key: value for key, value in kept[section].items() if key not in keys}
    kept = without_neutral(kept)
    kept["callbacks"] = {
        name: {key: value for key, value in callback.items() if key not in PATHS}
        for name, callback in (kept.get("callbacks") or {}).items()
        if callback is not None
    }
    return kept


def without_neutral(config: Mapping[str, Any]) -> dict[str, Any]:
    """Removes settings that were added later from a config if their values change nothing, as in older runs."""
    return _without(config, _NEUTRAL)


def _without(config: Mapping[str, Any], neutral: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without(value, neutral[key]) if isinstance(value, Mapping) and key in neutral else value
        for key, value in config.items()
        if key not in neutral or value != neutral[key]
    }


def run_name(overrides: Iterable[str], varied: Iterable[str], config: DictConfig, seed: int | None = None) -> str:
    """Returns the folder name of a study's run, `pooler=roi_pool,seed=0-3f9a1c2b`: what varies, and a fingerprint.

    Args:
        overrides: the overrides of the run, as on the command line.
        varied: the keys of the overrides that the name shows.
        config: the composed config of the run.
        seed: replaces the config's own seed.
    """
    keys = list(varied)
    shown = ",".join(override for override in overrides if override.partition("=")[0] in keys)
    readable = re.sub(r"[^\w.,=+@-]", "_", shown)[:100]
    computed = fingerprint(config, seed)
    return f"{readable}-{computed}" if readable else computed


def write_plan(
    folder: Path, names: Iterable[str], command_lines: Mapping[str, str] | None = None, inputs: str | None = None
) -> None:
    """Adds names of run directories to the plan of a sweep, which may exist from an earlier start with other seeds.

    Args:
        folder: the folder of the sweep.
        names: the names of its run directories.
        command_lines: the names of run directories by the command line of the run.
        inputs: the `recognition.hash_inputs` for which the command lines are valid; if None, they are not saved.
    """
    try:
        before = read_plan(folder)
    except (FileNotFoundError, ValueError):  # a damaged plan is replaced
        before = []
    plan: dict[str, Any] = {"runs": list(dict.fromkeys([*before, *names]))}
    if inputs is not None:
        plan |= {"inputs": inputs, "command_lines": {**read_command_lines(folder, inputs), **(command_lines or {})}}
    write_json_atomically(folder / PLAN, plan)


def read_command_lines(folder: Path, inputs: str | None) -> dict[str, str]:
    """Reads the names of a study's run directories by command line; empty if they were composed from other inputs."""
    try:
        plan = _read(folder / PLAN)
    except (FileNotFoundError, ValueError):
        return {}
    known = plan.get("command_lines")
    return known if inputs is not None and plan.get("inputs") == inputs and isinstance(known, dict) else {}


def read_plan(folder: Path) -> list[str]:
    """Reads the names of a sweep's run directories.

    Raises:
        FileNotFoundError: If there is no plan.
        ValueError: If the file is damaged; the message names it.
    """
    record = _read(folder / PLAN)
    names = record.get("runs")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{PLAN} has no list of names 'runs'")
    return names


def write_status(run_dir: Path, state: str, error: str = "", traceback: str = "") -> None:
    """Records how a run without metrics ended; `state` is one of `STATES`."""
    write_json_atomically(run_dir / STATUS, {"status": state, "error": error, "traceback": traceback})


def read_status(run_dir: Path) -> Status | None:
    """Reads how a run without metrics ended; None without a status file: it is running, was killed or never began.

    Raises:
        ValueError: If the file is damaged; the message names it.
    """
    try:
        record = _read(run_dir / STATUS)
    except FileNotFoundError:
        return None
    if record.get("status") not in STATES:
        raise ValueError(f"{STATUS}: status must be one of {', '.join(STATES)}, got {record.get('status')!r}")
    return Status(record["status"], str(record.get("error", "")))


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name} is not valid JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path.name} is not an object")
    return record
