"""Trains and evaluates a detector: `python train.py pooler=pr_roi_pool data=shapes`. See README.md."""

import contextlib
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from detpool.config import check_config, check_keys, check_overrides, overrides_of
from detpool.errors import ConfigError, exit_with_message
from detpool.study.layout import write_plan
from detpool.study.plan import command_of, drop_variants, plan_sweep, run_dir_of, summarize, wants_sweep
from detpool.study.stopping import wait_for_workers

CONFIGS = Path(__file__).parent / "configs"


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def run(config: DictConfig) -> float | None:
    """One run; in a sweep returns the validation metric that chooses its best checkpoint, for sweepers to optimise."""
    with exit_with_message():
        job = HydraConfig.get()
        drop_variants(config)
        config.run_dir = run_dir_of(config, job)
        check_keys(config, CONFIGS, "train")
        check_config(config)
        from detpool.training.sweep import recorded, train_in_sweep  # takes seconds: not before the config is checked

        if job.mode is RunMode.MULTIRUN:
            return train_in_sweep(config, command_of(job), in_worker="joblib" in job.launcher._target_)
        from detpool.training.runs import train

        with recorded(Path(config.run_dir)):
            train(config)
        return None


def main() -> None:
    arguments = overrides_of(sys.argv[1:])
    if not wants_sweep(sys.argv[1:]):
        with exit_with_message():
            check_overrides(CONFIGS, "train", arguments)
            if any(argument.startswith("study=") for argument in arguments):
                raise ConfigError("a study is a sweep: python train.py -m study=...")
        return run()
    with exit_with_message():
        sweep = plan_sweep(CONFIGS, "train", arguments)
        if sweep.names is not None:
            write_plan(sweep.folder, sweep.names)
    sys.argv += sweep.overrides
    try:
        with wait_for_workers() if sweep.in_workers else contextlib.nullcontext():
            run()
    finally:
        complete = summarize(sweep)
    sys.exit(0 if complete else 1)


if __name__ == "__main__":
    main()
