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

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from detpool.config import check_config, check_keys, check_overrides, compose_error, parse_override
from detpool.errors import ConfigError, did_you_mean
from detpool.study.layout import STATUS, read_status, run_name


@dataclass(frozen=True)
class Study:
    """A study's file: what it varies, and its variants as lists of overrides."""

    name: str
    params: dict[str, str] = field(default_factory=dict)
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


def plan_sweep(config_dir: Path, config_name: str, arguments: Sequence[str]) -> Sweep:
    """Checks a sweep and all runs of a study, and says where it goes.

    Args:
        config_dir: folder of the configs.
        config_name: the primary config.
        arguments: `key=value` arguments of the command line.

    Raises:
        ConfigError: for a typo anywhere in the command line or the study, or a run that cannot be composed; if two runs
            of a study are the same; and if a run would be several processes.
    """
    given = [parse_override(argument) for argument in arguments]
    study = _study(config_dir, given)
    _check(config_dir, config_name, arguments, study)
    _register(config_dir, study)
    with initialize_config_dir(str(config_dir.resolve()), version_base="1.3"):
        base = _compose(config_name, [o for o in given if not o.is_sweep_override()], hydra=True)
        _check_one_process(base)
        sweeper, folder = base.hydra.sweeper, Path(base.hydra.sweep.dir)
        if study.name and not any(override.key_or_group == "hydra.sweep.dir" for override in given):
            folder = Path("logs") / study.name
        overrides = [f"hydra.sweep.dir='{folder}'"]
        if study.name:
            overrides += ["hydra.sweep.subdir=.", "hydra.output_subdir=null"]
        in_workers = "joblib" in base.hydra.launcher._target_
        if not sweeper._target_.endswith(".BasicSweeper"):
            return Sweep(folder, None, overrides, in_workers)
        params = {str(key): str(value) for key, value in (sweeper.params or {}).items()}
        swept = [parse_override(f"{key}={value}") for key, value in params.items()]
        jobs = _product([*swept, *(o for o in given if not _is_hydras(o))])
        if not study.name:
            return Sweep(folder, [str(number) for number in range(len(jobs))], overrides, in_workers)
        return Sweep(folder, _check_jobs(config_dir, config_name, jobs, list(params)), overrides, in_workers)


def _check_one_process(config: DictConfig) -> None:
    """Lightning starts further processes with the command line of the first: each would begin the whole sweep."""
    devices = config.trainer.devices
    if str(devices) != "1" and not (OmegaConf.is_list(devices) and len(devices) == 1):
        raise ConfigError(f"a run of a sweep is one process: trainer.devices must be 1, got {devices!r}")


def _study(config_dir: Path, given: Sequence[Override]) -> Study:
    """The study that a command line names; one without name if it names none."""
    named = [override for override in given if override.key_or_group == "study" and override.value() is not None]
    if not named:
        return Study("")
    if len(named) > 1 or named[0].is_sweep_override() or not isinstance(named[0].value(), str):
        raise ConfigError("give one study: study=NAME")
    name = str(named[0].value())
    path = config_dir / "study" / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(
            f"study={name} does not exist{did_you_mean(name, (p.stem for p in path.parent.glob('*.yaml')))}"
        )
    content = OmegaConf.load(path)
    params = OmegaConf.select(content, "hydra.sweeper.params") or {}
    variants = OmegaConf.select(content, "variants") or {}
    if not isinstance(params, DictConfig | dict) or not isinstance(variants, DictConfig | dict):
        raise ConfigError(f"{path}: hydra.sweeper.params and variants must be mappings")
    if odd := [str(key) for key in variants if not re.fullmatch(r"[\w-]+", str(key))]:
        raise ConfigError(f"{path}: names of variants have letters, digits, _ and - only, got {odd[0]!r}")
    return Study(
        name,
        {str(key): str(value) for key, value in params.items()},
        {str(key): shlex.split(str(value)) for key, value in variants.items()},
    )


def _check(config_dir: Path, config_name: str, arguments: Sequence[str], study: Study) -> None:
    """Names any typo in the arguments, in what the study varies, and in its variants."""
    chosen = [f"study={study.name}"] if study.name else []
    params = [f"{key}={value}" for key, value in study.params.items()]
    for argument in [*params, *arguments]:
        override = parse_override(argument)
        if override.key_or_group == "variant":
            if not study.variants:
                raise ConfigError(f"{argument}: only a study has variants, and not every one")
            for choice in override.sweep_string_iterator() if override.is_sweep_override() else [str(override.value())]:
                if choice not in study.variants:
                    raise ConfigError(f"variant={choice} does not exist{did_you_mean(choice, study.variants)}")
    check_overrides(config_dir, config_name, [a for a in arguments if not a.startswith("variant=")])
    check_overrides(config_dir, config_name, chosen + [p for p in params if not p.startswith("variant=")])
    for name, overrides in study.variants.items():
        try:
            check_overrides(config_dir, config_name, chosen + overrides)
        except ConfigError as error:
            raise ConfigError(f"variant {name} of study {study.name}: {error}") from error


def _register(config_dir: Path, study: Study) -> None:
    """Makes the variants a config group that Hydra finds, in the processes of its launchers too."""
    for name, arguments in study.variants.items():
        defaults: list[Any] = []
        values = OmegaConf.create()
        for argument in arguments:
            override = parse_override(argument)
            key = override.get_key_element().lstrip("+~")
            if override.type is OverrideType.DEL or override.is_sweep_override():
                raise ConfigError(f"variant {name} of study {study.name}: {argument!r} is not a plain key=value")
            if (config_dir / key.split("@")[0]).is_dir():
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


def _check_jobs(config_dir: Path, config_name: str, jobs: Sequence[Sequence[str]], varied: Sequence[str]) -> list[str]:
    """The names of a study's runs, all of which compose and have known arguments only."""
    names: dict[str, str] = {}
    checked: set[tuple[str, ...]] = set()
    for job in jobs:
        config = _compose(config_name, [parse_override(argument) for argument in job])
        without_seed = tuple(argument for argument in job if not argument.startswith("seed="))
        if without_seed not in checked:
            checked.add(without_seed)
            check_keys(config, config_dir, config_name)
            check_config(config)
        name, text = run_name(job, varied, config), " ".join(job)
        same = next((other for n, other in names.items() if n.rpartition("-")[2] == name.rpartition("-")[2]), None)
        if same is not None:
            raise ConfigError(f"two runs of the study are the same: {same!r} and {text!r}")
        names[name] = text
    return list(names)


def _compose(config_name: str, overrides: Sequence[Override], hydra: bool = False) -> DictConfig:
    lines = [str(override.input_line) for override in overrides]
    try:
        config = compose(config_name, overrides=lines, return_hydra_config=hydra)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"{' '.join(lines)}: {compose_error(error)}") from error
    if not hydra:
        drop_variants(config)
        config.run_dir = ""  # only a run knows it
    return config


def drop_variants(config: DictConfig) -> None:
    """Removes a study's list of variants, which says nothing of the run, from the run's config."""
    OmegaConf.set_struct(config, False)
    config.pop("variants", None)
    OmegaConf.set_struct(config, True)


def _is_hydras(override: Override) -> bool:
    return override.key_or_group.replace("/", ".").split(".")[0] == "hydra"


def wants_sweep(argv: Sequence[str]) -> bool:
    """Whether a command line asks Hydra for several runs."""
    return any(argument in ("-m", "--multirun", "hydra.mode=MULTIRUN") for argument in argv)


def run_dir_of(config: DictConfig, hydra: DictConfig) -> str:
    """Where a run goes: where Hydra says or, if it is a study's, to a folder named after what it computes."""
    if hydra.mode is not RunMode.MULTIRUN or not hydra.runtime.choices.get("study"):
        return str(config.run_dir)
    varied = [str(key) for key in hydra.sweeper.get("params") or {}]
    return str(Path(hydra.sweep.dir) / run_name(hydra.overrides.task, varied, config))


def command_of(hydra: DictConfig) -> list[str]:
    """The command line of one run of a sweep, which is not that of the process; `-m` if it is a study's."""
    sweep = ["-m"] if hydra.runtime.choices.get("study") else []
    return ["train.py", *sweep, *hydra.overrides.task]


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
