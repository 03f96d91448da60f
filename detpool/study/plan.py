"""A sweep before its first run: what it consists of, where it goes, and whether all of it can be run.

A study is a file `configs/study/NAME.yaml`. What it varies stands in `hydra.sweeper.params`, as plain Hydra has it. For
whole configurations, which are no product of choices, it may name `variants`, each the overrides of a command line:

    variants:
      align_max: pooler=roi_align pooler.operator.reduction=max
      precise: pooler=pr_roi_pool
    hydra:
      sweeper:
        params:
          variant: align_max,precise

Hydra gets them as a config group `variant`, so that sweepers and launchers need not know of them.
"""

from __future__ import annotations

import itertools
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override, OverrideType
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from detpool.config import Configs, check_config, check_keys, parse_override
from detpool.config.overrides import is_hydras
from detpool.errors import ConfigError, did_you_mean
from detpool.study.layout import STATUS, read_status, run_name


@dataclass(frozen=True)
class Study:
    """A study's file: its variants as lists of overrides."""

    name: str
    variants: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Sweep:
    """A sweep that is about to begin.

    Attributes:
        folder: holds its run directories.
        names: of the run directories; None if a sweeper chooses what to run as it goes.
        overrides: further ones that tell Hydra of the folder and, for a study, of run directories of our own.
        in_workers: whether the runs are processes that joblib starts.
    """

    folder: Path
    names: list[str] | None
    overrides: list[str]
    in_workers: bool


def plan_sweep(configs: Configs, arguments: Sequence[str]) -> Sweep:
    """Checks a sweep and all of its runs, and says where it goes.

    Args:
        configs: the config files that the command line sees.
        arguments: `key=value` arguments of the command line.

    Raises:
        ConfigError: for a typo anywhere in the command line or the study, or a run that cannot be composed; if two runs
            of a study are the same; and if a run would be several processes.
    """
    jobs = sweep_jobs(configs, arguments)
    given = [parse_override(argument) for argument in arguments]
    base = configs.compose([str(o.input_line) for o in given if not o.is_sweep_override()], hydra=True)
    _check_one_process(base)
    folder, study = Path(base.hydra.sweep.dir), base.hydra.runtime.choices.get("study")
    if study and not any(override.key_or_group == "hydra.sweep.dir" for override in given):
        folder = Path("logs") / study
    overrides = [f"hydra.sweep.dir='{folder}'"]
    if study:
        overrides += ["hydra.sweep.subdir=.", "hydra.output_subdir=null"]
    in_workers = "joblib" in base.hydra.launcher._target_
    if jobs is None:
        return Sweep(folder, None, overrides, in_workers)
    names = _check_jobs(configs, jobs, [str(key) for key in base.hydra.sweeper.params or {}] if study else None)
    return Sweep(folder, names, overrides, in_workers)


def sweep_jobs(configs: Configs, arguments: Sequence[str]) -> list[list[str]] | None:
    """The command line of each run of a sweep, Hydra's own keys included; None if a sweeper chooses as it goes.

    What a study calls its variants is a config group from here on.

    Raises:
        ConfigError: for a typo in the command line or in what the study varies.
    """
    given = [parse_override(argument) for argument in arguments]
    study = _study(configs, given)
    _register(configs, study)
    for override in given:
        _check_choices(configs, override, study)
    base = configs.compose([str(o.input_line) for o in given if not o.is_sweep_override()], hydra=True)
    for override in given:
        if override.is_sweep_override() and not configs.choices(override.key_or_group) and not _adds(override):
            configs.check_key(base, override.key_or_group)
    if not base.hydra.sweeper._target_.endswith(".BasicSweeper"):
        return None
    params = {str(key): str(value) for key, value in (base.hydra.sweeper.params or {}).items()}
    varied = [parse_override(f"{key}={value}") for key, value in params.items()]
    for override in varied:
        _check_choices(configs, override, study)
    ours = [str(override.input_line) for override in given if is_hydras(override)]
    return [[*ours, *job] for job in _product([*varied, *(o for o in given if not is_hydras(o))])]


def _check_choices(configs: Configs, override: Override, study: Study) -> None:
    if override.key_or_group == "variant" and not study.variants:
        raise ConfigError(f"{override.input_line}: only a study has variants, and not every one")
    configs.check_choices(override)


def _adds(override: Override) -> bool:
    return override.is_add() or override.is_force_add()


def _check_one_process(config: DictConfig) -> None:
    """Lightning starts further processes with the command line of the first: each would begin the whole sweep."""
    devices = config.trainer.devices
    if str(devices) != "1" and not (OmegaConf.is_list(devices) and len(devices) == 1):
        raise ConfigError(f"a run of a sweep is one process: trainer.devices must be 1, got {devices!r}")


def _study(configs: Configs, given: Sequence[Override]) -> Study:
    """The study that a command line names; one without name if it names none."""
    named = [override for override in given if override.key_or_group == "study" and override.value() is not None]
    if not named:
        return Study("")
    if len(named) > 1 or named[0].is_sweep_override() or not isinstance(named[0].value(), str):
        raise ConfigError("give one study: study=NAME")
    configs.check_choices(named[0])
    name = str(named[0].value())
    found = configs.read(f"study/{name}")
    if found is None:
        raise ConfigError(f"study={name} does not exist{did_you_mean(name, configs.choices('study'))}")
    path, content = found
    params = OmegaConf.select(content, "hydra.sweeper.params") or {}
    variants = OmegaConf.select(content, "variants") or {}
    if not isinstance(params, DictConfig | dict) or not isinstance(variants, DictConfig | dict):
        raise ConfigError(f"{path}: hydra.sweeper.params and variants must be mappings")
    if odd := [str(key) for key in variants if not re.fullmatch(r"[\w-]+", str(key))]:
        raise ConfigError(f"{path}: names of variants have letters, digits, _ and - only, got {odd[0]!r}")
    return Study(name, {str(key): shlex.split(str(value)) for key, value in variants.items()})


def _register(configs: Configs, study: Study) -> None:
    """Makes the variants a config group that Hydra finds, in the processes of its launchers too."""
    ConfigStore.instance().repo.pop("variant", None)
    for name, arguments in study.variants.items():
        defaults: list[Any] = []
        values = OmegaConf.create()
        for argument in arguments:
            try:
                override = parse_override(argument)
                if override.type is OverrideType.DEL or override.is_sweep_override():
                    raise ConfigError(f"{argument!r} is not a plain key=value")
                configs.check_choices(override)
            except ConfigError as error:
                raise ConfigError(f"variant {name} of study {study.name}: {error}") from error
            key = override.get_key_element().lstrip("+~")
            if configs.choices(key.split("@")[0]):
                defaults.append({f"{'' if override.is_add() else 'override '}/{key}": override.value()})
            else:
                OmegaConf.update(values, key, override.value(), force_add=True)
        content = {"defaults": [*defaults, "_self_"], **OmegaConf.to_container(values)}  # type: ignore[dict-item]
        ConfigStore.instance().store(group="variant", name=name, node=content, package="_global_")


def _product(overrides: Sequence[Override]) -> list[list[str]]:
    """The overrides of each run, in the order and spelling of Hydra's own sweeper."""
    choices: dict[str, list[str]] = {}
    for override in overrides:
        key = override.get_key_element()
        if override.is_sweep_override():
            choices[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            choices[key] = [f"{key}={override.get_value_element_as_str()}"]
    return [list(job) for job in itertools.product(*choices.values())]


def _check_jobs(configs: Configs, jobs: Sequence[Sequence[str]], varied: Sequence[str] | None) -> list[str]:
    """The names of a sweep's runs, all of which compose and pass the checks of a single run.

    Args:
        varied: the keys that the names of a study's runs show; None: runs are numbered.
    """
    composed = [_compose(configs, job) for job in jobs]
    checked: set[tuple[str, ...]] = set()
    for job, config in zip(jobs, composed, strict=True):
        without_seed = tuple(argument for argument in job if not argument.startswith("seed="))
        if without_seed not in checked:
            checked.add(without_seed)
            check_keys(config, configs)
            check_config(config, configs.origin(job))
    if varied is None:
        return [str(number) for number in range(len(jobs))]
    names: dict[str, str] = {}
    for job, config in zip(jobs, composed, strict=True):
        name, text = run_name(job, varied, config), " ".join(job)
        same = next((other for n, other in names.items() if n.rpartition("-")[2] == name.rpartition("-")[2]), None)
        if same is not None:
            raise ConfigError(f"two runs of the study are the same: {same!r} and {text!r}")
        names[name] = text
    return list(names)


def _compose(configs: Configs, job: Sequence[str]) -> DictConfig:
    try:
        config = configs.compose(job)
    except ConfigError as error:
        raise ConfigError(f"{' '.join(job)}: {error}") from error
    drop_variants(config)
    config.run_dir = ""  # only a run knows it
    return config


def drop_variants(config: DictConfig) -> None:
    """Removes a study's list of variants, which says nothing of the run, from the run's config."""
    OmegaConf.set_struct(config, False)
    config.pop("variants", None)
    OmegaConf.set_struct(config, True)


def run_dir_of(config: DictConfig, hydra: DictConfig) -> str:
    """Where a run goes: where Hydra says or, if it is a study's, to a folder named after what it computes."""
    if hydra.mode is not RunMode.MULTIRUN or not hydra.runtime.choices.get("study"):
        return str(config.run_dir)
    varied = [str(key) for key in hydra.sweeper.get("params") or {}]
    return str(Path(hydra.sweep.dir) / run_name(hydra.overrides.task, varied, config))


def command_of(hydra: DictConfig) -> list[str]:
    """The command line of one run of a sweep, which is not that of the process; `-m` if it is a study's."""
    sweep = ["-m"] if hydra.runtime.choices.get("study") else []
    further = [str(source.path) for source in hydra.runtime.config_sources if source.provider == "command-line"]
    folders = [part for folder in further for part in ("--config-dir", folder)]
    searchpath = [line for line in hydra.overrides.hydra if line.startswith("hydra.searchpath=")]
    return ["train.py", *sweep, *folders, *searchpath, *hydra.overrides.task]


def summarize(sweep: Sweep) -> bool:
    """Prints what became of a sweep, and says whether all of its runs are finished, as far as it knows of them."""
    if sweep.names is None:
        folders = sorted(path.parent for path in sweep.folder.glob(f"*/{STATUS}"))
    else:
        folders = [sweep.folder / name for name in sweep.names]
    unfinished = [folder for folder in folders if not (folder / "metrics.json").is_file()]
    statuses = {folder: read_status(folder) for folder in unfinished}
    failed = {folder: status for folder, status in statuses.items() if status and status.state != "interrupted"}
    for folder, status in failed.items():
        print(f"{folder}: {status.state}: {status.error}", file=sys.stderr)
    if sweep.names is not None:
        finished, rest = len(folders) - len(unfinished), len(unfinished) - len(failed)
        print(f"{sweep.folder}: {finished} of {len(folders)} runs finished, {len(failed)} failed, {rest} not finished")
    return not unfinished
