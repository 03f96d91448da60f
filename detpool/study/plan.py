"""Planning of a sweep before its first run: which runs it has, where they are written, and whether all can be run.

A study is a file `configs/study/NAME.yaml`. What it varies is in `hydra.sweeper.params`, as in plain Hydra. For whole
configurations that are not a product of choices, it may define `variants`, each the overrides of a command line:

    variants:
      align_max: pooler=roi_align pooler.operator.reduction=max
      precise: pooler=pr_roi_pool
    hydra:
      sweeper:
        params:
          variant: align_max,precise

`detpool.config.Configs` replaces a variant by its overrides, so sweepers and launchers need not support variants.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.conf import HydraConf
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from detpool.config import Configs, check, check_extras, parse_override
from detpool.errors import ConfigError
from detpool.run_record import program
from detpool.study.layout import check_same, read_command_lines, read_plan, run_name
from detpool.study.recognition import hash_inputs, is_finished


@dataclass(frozen=True)
class Sweep:
    """A sweep that is about to begin.

    Attributes:
        folder: the folder with its run directories.
        config: the config of the sweep as a whole.
        names: the names of the run directories; None if the sweeper chooses runs during the sweep.
        jobs: the command line of each run to do, without Hydra's own keys: only unfinished runs for a study, none if
            the sweeper chooses runs.
        is_study: whether run directories are named after what they compute, so that the same command resumes the sweep.
        command_lines: for a study, the name of the run directory of each command line.
        inputs: for a study, `recognition.hash_inputs`.
    """

    folder: Path
    config: DictConfig
    names: list[str] | None
    jobs: list[list[str]] = field(default_factory=list)
    is_study: bool = False
    command_lines: Mapping[str, str] = field(default_factory=dict)
    inputs: str | None = None

    @property
    def in_workers(self) -> bool:
        """Whether the runs are processes that joblib starts."""
        return "joblib" in self.config.hydra.launcher._target_


def plan_sweep(configs: Configs, arguments: Sequence[str]) -> Sweep:
    """Checks a sweep and all of its runs, and returns its plan.

    Finished runs that are in the plan of a study are neither composed nor checked again.

    Args:
        configs: the config files to which the command line refers.
        arguments: the `key=value` arguments of the command line.

    Raises:
        ConfigError: If there is a typo in the command line or the study, a run cannot be composed, two runs of a study
            are the same, a run would use several processes, or the folder of a run is given or holds another run.
    """
    base = configs.load_configuration(configs.name, _as_sweep(arguments), RunMode.MULTIRUN)
    folder, is_study = Path(base.hydra.sweep.dir), bool(base.hydra.runtime.choices.get("study"))
    _check_one_process(base)
    _check_folders(base)
    jobs = sweep_jobs(configs, arguments)
    if jobs is None:
        return Sweep(folder, base, None, is_study=is_study)
    own = len(base.hydra.overrides.hydra)
    if not is_study:
        for number, (_, config, seed) in enumerate(compose_jobs(configs, jobs)):
            check_same(folder / str(number), config, seed)
        return Sweep(folder, base, [str(number) for number in range(len(jobs))], [job[own:] for job in jobs])
    lines, inputs = [shlex.join(job) for job in jobs], hash_inputs(configs, arguments)
    known = read_command_lines(folder, inputs)
    finished = {line for line in lines if line in known and is_finished(folder / known[line])}
    names = {line: known[line] for line in finished}
    unknown = [job for line, job in zip(lines, jobs, strict=True) if line not in finished]
    varied = [str(key) for key in base.hydra.sweeper.params or {}]
    for job, config, seed in compose_jobs(configs, unknown):
        names[shlex.join(job)] = run_name(job, varied, config, seed)
    _check_distinct([(line, names[line]) for line in lines])
    left = [job[own:] for job in unknown if not is_finished(folder / names[shlex.join(job)])]
    return Sweep(folder, base, [names[line] for line in lines], left, True, names, inputs)


def sweep_jobs(configs: Configs, arguments: Sequence[str]) -> list[list[str]] | None:
    """Returns the command line of each run, including Hydra's own keys; None if the sweeper chooses runs itself.

    Raises:
        ConfigError: If there is a typo in the command line or in what the study varies, or several studies are given.
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


def sweep_folder(configs: Configs, arguments: Sequence[str]) -> Path:
    """Returns the folder of a sweep's runs, which is the same each time for a study."""
    return Path(configs.load_configuration(configs.name, _as_sweep(arguments), RunMode.MULTIRUN).hydra.sweep.dir)


def _as_sweep(arguments: Sequence[str]) -> list[str]:
    return [*(line for line in arguments if not line.startswith("hydra.mode=")), "hydra.mode=MULTIRUN"]


def _check_one_process(config: DictConfig) -> None:
    """Rejects several devices: Lightning starts each process with the same command line, that is the whole sweep."""
    devices = config.trainer.devices
    if str(devices) != "1" and not (OmegaConf.is_list(devices) and len(devices) == 1):
        raise ConfigError(f"a run of a sweep is one process: trainer.devices must be 1, got {devices!r}")


def _check_folders(config: DictConfig) -> None:
    """Rejects one `run_dir` for all runs: the second run would take the first for itself, already finished."""
    run_dir = OmegaConf.to_container(config, resolve=False)["run_dir"]  # type: ignore[index,call-overload]
    if run_dir != "${hydra:runtime.output_dir}":
        raise ConfigError(f"run_dir={run_dir}: runs of a sweep have folders of their own, in hydra.sweep.dir=...")


def compose_jobs(configs: Configs, jobs: Sequence[list[str]]) -> Iterator[tuple[list[str], DictConfig, int | None]]:
    """Composes runs and yields each with its config and seed; runs that differ only in the seed are checked once."""
    checked: set[int] = set()
    for job in jobs:
        try:
            config, seed = configs.load_without_seed(job)
            if id(config) not in checked:
                checked.add(id(config))
                composed = configs.compose(job)
                check(composed, configs, job)
                check_extras(composed)
        except ConfigError as error:
            raise ConfigError(f"{error} (of the run {' '.join(job)})" if len(jobs) > 1 else str(error)) from error
        yield job, config, seed


def _check_distinct(runs: Sequence[tuple[str, str]]) -> None:
    """Checks that command lines, each with the name of its run directory, compute different things."""
    found: dict[str, str] = {}
    for line, name in runs:
        computes = name.rpartition("-")[2]
        if computes in found:
            raise ConfigError(f"two runs of the study are the same: {found[computes]!r} and {line!r}")
        found[computes] = line


def run_dir_of(config: DictConfig, hydra: HydraConf) -> str:
    """Returns the run directory: Hydra's or, for a run of a study, a folder named after what is computed."""
    if hydra.mode is not RunMode.MULTIRUN or not hydra.runtime.choices.get("study"):
        return str(config.run_dir)
    varied = [str(key) for key in hydra.sweeper.get("params") or {}]
    return str(Path(hydra.sweep.dir) / run_name(hydra.overrides.task, varied, config))


def command_of(hydra: HydraConf) -> list[str]:
    """Returns the command line of one run of a sweep, with `-m` if the sweep is a study."""
    sweep = ["-m"] if hydra.runtime.choices.get("study") else []
    further = [str(source.path) for source in hydra.runtime.config_sources if source.provider == "command-line"]
    folders = [part for folder in further for part in ("--config-dir", folder)]
    searchpath = [line for line in hydra.overrides.hydra if line.startswith("hydra.searchpath=")]
    return [program("train.py"), *sweep, *folders, *searchpath, *hydra.overrides.task]


def place_of(run_dir: str, hydra: HydraConf) -> str:
    """Returns the number of a run in its sweep, including finished runs: `2 of 4`."""
    folder = Path(run_dir)
    try:
        names = read_plan(folder.parent)
        return f"{names.index(folder.name) + 1} of {len(names)}"
    except (FileNotFoundError, ValueError):  # the sweeper chooses runs itself; it may know how many
        number = str(hydra.job.num + 1)
        return f"{number} of {hydra.sweeper.n_trials}" if "n_trials" in hydra.sweeper else number
