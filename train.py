"""Trains and evaluates a detector: `python train.py pooler=pr_roi_pool data=shapes`. See README.md."""

import contextlib
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from detpool.config import CommandLine, Configs, check_config, check_keys, origin_of_job, parse_command_line
from detpool.errors import ConfigError, exit_with_message
from detpool.study.layout import write_plan
from detpool.study.plan import Sweep, command_of, drop_variants, plan_sweep, run_dir_of, summarize, sweep_jobs
from detpool.study.stopping import wait_for_workers

CONFIGS = Path(__file__).parent / "configs"


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def run(config: DictConfig) -> float | None:
    """One run; in a sweep returns the validation metric that chooses its best checkpoint, for sweepers to optimise."""
    with exit_with_message():
        job = HydraConfig.get()
        drop_variants(config)
        config.run_dir = run_dir_of(config, job)
        check_keys(config, Configs.of_job(job))
        check_config(config, origin_of_job())
        from detpool.training.sweep import recorded, train_in_sweep  # takes seconds: not before the config is checked

        if job.mode is RunMode.MULTIRUN:
            return train_in_sweep(config, command_of(job), in_worker="joblib" in job.launcher._target_)
        from detpool.training.runs import train

        with recorded(Path(config.run_dir)):
            train(config)
        return None


def main() -> None:
    with exit_with_message():
        line = parse_command_line(sys.argv[1:], CONFIGS, "train")
        sweep = plan(line)
        overrides = shown(line) if line.shows_config else line.overrides
        if sweep and sweep.names is not None:
            write_plan(sweep.folder, sweep.names)
    multirun = ["--multirun", *sweep.overrides] if sweep else []
    # Hydra's own options first: it does not find those that stand among `key=value`.
    sys.argv[1:] = [*line.options, *multirun, *overrides]
    if sweep is None:
        return run()
    try:
        with wait_for_workers() if sweep.in_workers else contextlib.nullcontext():
            run()
    finally:
        complete = summarize(sweep)
    sys.exit(0 if complete else 1)


def plan(line: CommandLine) -> Sweep | None:
    """Checks a command line; if it asks for several runs, says what they are.

    Raises:
        ConfigError: if it cannot be run as it stands.
    """
    if line.asks or line.shows_config:
        return None
    if line.sweeps:
        return plan_sweep(line.configs, line.overrides)
    if line.study:
        raise ConfigError("a study is a sweep: python train.py -m study=...")
    config = line.configs.compose(line.overrides)
    check_keys(config, line.configs)
    check_config(config, line.configs.origin(line.overrides))
    return None


def shown(line: CommandLine) -> list[str]:
    """The `key=value` of the config that a command line wants to see: of a sweep that of its first run."""
    if not line.sweeps and not line.study:
        line.configs.compose(line.overrides)
        return line.overrides
    jobs = sweep_jobs(line.configs, line.overrides)
    if jobs is None:
        raise ConfigError("--cfg: a sweeper chooses the runs as it goes; leave out -m and give each key one value")
    print(f"# The config of the first of {len(jobs)} runs:", *(" ".join(job) for job in jobs), sep="\n#   ")
    return jobs[0]


if __name__ == "__main__":
    main()
