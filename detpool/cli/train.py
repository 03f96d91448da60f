"""Trains and evaluates a detector: `train.py` in a checkout, `detpool-train` in an installation."""

import contextlib
import sys
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from detpool.config import CommandLine, Configs, check, check_extras, config_folder, parse_command_line
from detpool.errors import ConfigError, exit_with_message
from detpool.run_record import shell_command
from detpool.study.launching import launch
from detpool.study.layout import write_plan
from detpool.study.plan import command_of, place_of, plan_sweep, run_dir_of, sweep_jobs
from detpool.study.stopping import wait_for_workers
from detpool.study.summary import summarize


def main() -> None:
    with exit_with_message():
        line = parse_command_line(sys.argv[1:], config_folder(), "train")
        if line.command not in ("run", "multirun", "cfg"):
            hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="train")(run)()
            return
        program = Hydra(task_name="train", config_loader=line.configs)
        GlobalHydra.instance().initialize(program)
        if line.command == "cfg":
            show_config(line, program)
        elif line.sweeps:
            sys.exit(run_sweep(line))
        else:
            check_run(line)
            program.run(line.configs.name, run, line.overrides)


def run(config: DictConfig) -> float | None:
    """Executes one run; in a sweep returns the validation metric of its best checkpoint, for sweepers to optimize."""
    with exit_with_message():
        job = HydraConfig.get()
        config.run_dir = run_dir_of(config, job)
        if job.mode is not RunMode.MULTIRUN:
            from detpool.training.resuming import check_free  # takes seconds: not before the config is checked
            from detpool.training.runs import train
            from detpool.training.sweep import recorded

            check_free(Path(config.run_dir), config.ckpt_path)
            with recorded(Path(config.run_dir)):
                train(config)
            return None
        if "BasicSweeper" not in job.sweeper._target_:  # such sweepers choose runs one by one, so not checked before
            check(config, Configs.of_job(job), [*job.overrides.hydra, *job.overrides.task])
            check_extras(config)
        from detpool.training.sweep import train_in_sweep

        place = place_of(config.run_dir, job)
        return train_in_sweep(config, command_of(job), place, in_worker="joblib" in job.launcher._target_)


def check_run(line: CommandLine) -> None:
    """Checks the command line of a single run.

    Raises:
        ConfigError: If the command line or its config is not valid.
    """
    if any(argument.startswith("study=") for argument in line.overrides):
        raise ConfigError(f"a study is a sweep: {shell_command(sys.argv[:1])} -m study=...")
    config = line.configs.compose(line.overrides)
    check(config, line.configs, line.overrides)
    check_extras(config)


def run_sweep(line: CommandLine) -> int:
    """Checks all runs of a sweep, executes the unfinished ones, and returns the exit status, 0 if all are finished."""
    sweep = plan_sweep(line.configs, line.overrides)
    if sweep.names is not None:
        write_plan(sweep.folder, sweep.names, sweep.command_lines, sweep.inputs)
    if sweep.names and sweep.is_study and (finished := len(sweep.names) - len(sweep.jobs)):
        print(
            f"{sweep.folder}: {finished} of {len(sweep.names)} runs were finished before, and are skipped", flush=True
        )
    try:
        with wait_for_workers() if sweep.in_workers else contextlib.nullcontext():
            launch(sweep, line.configs, run)
    except (KeyboardInterrupt, SystemExit):
        again = [] if sweep.is_study else [f"hydra.sweep.dir={sweep.folder}"]
        command = shell_command([*sys.argv, *again])
        print(f"\nthe sweep was interrupted; what resumes it:\n  {command}", file=sys.stderr)
        raise
    finally:
        complete = summarize(sweep)
    return 0 if complete else 1


def show_config(line: CommandLine, program: Hydra) -> None:
    """Prints the config of a command line, or of the first run of a sweep."""
    overrides = line.overrides
    if line.sweeps or any(argument.startswith("study=") for argument in overrides):
        jobs = sweep_jobs(line.configs, overrides)
        if jobs is None:
            raise ConfigError("--cfg: a sweeper chooses the runs as it goes; leave out -m and give each key one value")
        print(f"# The config of the first of {len(jobs)} runs:", *(" ".join(job) for job in jobs), sep="\n#   ")
        overrides = jobs[0]
    config = line.configs.load_configuration(line.configs.name, overrides, RunMode.RUN)
    try:
        composed = line.configs.compose(overrides)
        check(composed, line.configs, overrides)
        check_extras(composed)
    except ConfigError as error:
        print(f"note: as it stands this cannot be run: {error}", file=sys.stderr)
    HydraConfig.instance().set_config(config)
    shown: Any = program.get_sanitized_cfg(config, line.options.cfg)
    if line.options.package:
        print(f"# @package {line.options.package}")
        shown = OmegaConf.select(shown, line.options.package)
    if not OmegaConf.is_config(shown):
        raise ConfigError(f"--package {line.options.package}: the config has no such part, {shown!r} is there")
    plain = OmegaConf.to_container(shown, resolve=line.options.resolve, enum_to_str=True)
    # Mappings and lists without nested parts are printed on one line, so that a config fits on a screen.
    print(yaml.safe_dump(plain, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True), end="")
