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

`detpool.config.Configs` puts what a variant stands for in its place, so sweepers and launchers need not know of them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.conf import HydraConf
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from detpool.config import Configs, check, parse_override
from detpool.errors import ConfigError
from detpool.study.layout import STATUS, read_status, run_name


@dataclass(frozen=True)
class Sweep:
    """A sweep that is about to begin.

    Attributes:
        folder: holds its run directories.
        names: of the run directories; None if a sweeper chooses what to run as it goes.
        overrides: its command line, as Hydra is given it.
        is_study: whether run directories are named after what they compute, so that the same command resumes it.
        in_workers: whether the runs are processes that joblib starts.
    """

    folder: Path
    names: list[str] | None
    overrides: list[str]
    is_study: bool
    in_workers: bool


def plan_sweep(configs: Configs, arguments: Sequence[str]) -> Sweep:
    """Checks a sweep and all of its runs, and says where it goes.

    What is composed here is what Hydra runs: `configs` hands it on.

    Args:
        configs: the config files that the command line sees.
        arguments: `key=value` arguments of the command line.

    Raises:
        ConfigError: for a typo anywhere in the command line or the study, or a run that cannot be composed; if two runs
            of a study are the same; and if a run would be several processes.
    """
    overrides = _as_sweep(arguments)
    base = configs.load_configuration(configs.name, overrides, RunMode.MULTIRUN)
    study = base.hydra.runtime.choices.get("study")
    _check_one_process(base)
    names = None
    jobs = sweep_jobs(configs, arguments)
    if jobs is not None:
        names = _check_jobs(configs, jobs, [str(key) for key in base.hydra.sweeper.params or {}] if study else None)
    in_workers = "joblib" in base.hydra.launcher._target_
    return Sweep(Path(base.hydra.sweep.dir), names, overrides, bool(study), in_workers)


def sweep_jobs(configs: Configs, arguments: Sequence[str]) -> list[list[str]] | None:
    """The command line of each run of a sweep, Hydra's own keys included; None if a sweeper chooses as it goes.

    Raises:
        ConfigError: for a typo in the command line or in what the study varies.
    """
    named = [argument for argument in arguments if argument.startswith("study=")]
    if len(named) > 1 or any(parse_override(argument).is_sweep_override() for argument in named):
        raise ConfigError(f"give one study: study=NAME, got {' '.join(named)}")
    base = configs.load_configuration(configs.name, _as_sweep(arguments), RunMode.MULTIRUN)
    if not base.hydra.sweeper._target_.endswith(".BasicSweeper"):
        return None
    params = base.hydra.sweeper.params or {}
    if not isinstance(params, DictConfig | dict):
        raise ConfigError(f"study {named}: hydra.sweeper.params must be a mapping")
    lines = [*(f"{key!s}={value}" for key, value in params.items()), *base.hydra.overrides.task]
    (jobs,) = BasicSweeper.split_arguments([parse_override(line) for line in lines], None)
    return [[*base.hydra.overrides.hydra, *job] for job in jobs]


def _as_sweep(arguments: Sequence[str]) -> list[str]:
    return [*(line for line in arguments if not line.startswith("hydra.mode=")), "hydra.mode=MULTIRUN"]


def _check_one_process(config: DictConfig) -> None:
    """Lightning starts further processes with the command line of the first: each would begin the whole sweep."""
    devices = config.trainer.devices
    if str(devices) != "1" and not (OmegaConf.is_list(devices) and len(devices) == 1):
        raise ConfigError(f"a run of a sweep is one process: trainer.devices must be 1, got {devices!r}")


def _check_jobs(configs: Configs, jobs: Sequence[Sequence[str]], varied: Sequence[str] | None) -> list[str]:
    """The names of a sweep's runs, all of which compose and pass the checks of a single run.

    Args:
        varied: the keys that the names of a study's runs show; None: runs are numbered.
    """
    composed = []
    checked: set[tuple[str, ...]] = set()
    for job in jobs:
        try:
            composed.append(configs.load_configuration(configs.name, list(job), RunMode.RUN))
            without_seed = tuple(argument for argument in job if not argument.startswith("seed="))
            if without_seed not in checked:
                checked.add(without_seed)
                check(configs.compose(job), configs, job)
        except ConfigError as error:
            raise ConfigError(f"{error} (of the run {' '.join(job)})" if len(jobs) > 1 else str(error)) from error
    if varied is None:
        return [str(number) for number in range(len(jobs))]
    found: dict[str, tuple[str, str]] = {}
    for job, config in zip(jobs, composed, strict=True):
        name, text = run_name(job, varied, config), " ".join(job)
        computes = name.rpartition("-")[2]
        if computes in found:
            raise ConfigError(f"two runs of the study are the same: {found[computes][1]!r} and {text!r}")
        found[computes] = name, text
    return [name for name, _ in found.values()]


def run_dir_of(config: DictConfig, hydra: HydraConf) -> str:
    """Where a run goes: where Hydra says or, if it is a study's, to a folder named after what it computes."""
    if hydra.mode is not RunMode.MULTIRUN or not hydra.runtime.choices.get("study"):
        return str(config.run_dir)
    varied = [str(key) for key in hydra.sweeper.get("params") or {}]
    return str(Path(hydra.sweep.dir) / run_name(hydra.overrides.task, varied, config))


def command_of(hydra: HydraConf) -> list[str]:
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
