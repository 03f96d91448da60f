"""Trains and evaluates a detector: `python train.py pooler=pr_roi_pool data=shapes`. See README.md."""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from detpool.config import check_config, check_keys, check_overrides, overrides_of
from detpool.errors import exit_with_message

CONFIGS = Path(__file__).parent / "configs"


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def run(config: DictConfig) -> float:
    """One run; returns the metric that chooses its best checkpoint, which Hydra's sweepers may optimise."""
    with exit_with_message():
        check_keys(config, CONFIGS, "train")
        check_config(config)
        from detpool.training.runs import train  # takes seconds: not before the config has been checked

        return train(config).get(config.evaluation.monitor, float("nan"))


if __name__ == "__main__":
    with exit_with_message():
        check_overrides(CONFIGS, "train", overrides_of(sys.argv[1:]))
    run()
