"""Loggers of losses and metrics: Lightning's loggers, adapted to run directories and sweeps."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from omegaconf import DictConfig, OmegaConf

from detpool.files import write_csv_atomically


class WholeRowsCSVLogger(CSVLogger):
    """Lightning's CSV logger with atomic writes: the file holds only complete rows, and none is lost on a full disk.

    Lightning's logger truncates the file to write a longer header, and may leave part of a row if the disk is full.
    """

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The object that writes the file."""
        if self._experiment is None:
            self._experiment = _WholeRowsWriter(log_dir=self.log_dir)
        return self._experiment


class _WholeRowsWriter(ExperimentWriter):
    def save(self) -> None:
        """Writes all rows recorded so far.

        Raises:
            WriteError: If the rows cannot be written. The file is unchanged, and the rows are kept for the next call.
        """
        if self.metrics:
            write_csv_atomically(self.metrics_file_path, self.metrics)


class RunWandbLogger(WandbLogger):
    """Lightning's logger for Weights & Biases, which starts a new W&B run for each run.

    Lightning's logger would continue the W&B run that the process started before, which belongs to another run of the
    sweep.

    Args:
        save_dir: the run directory.
        name: name of the W&B run. Default: the last two folders of the run directory.
        settings: further arguments of Lightning's logger and of `wandb.init`.
    """

    def __init__(self, save_dir: str, name: str | None = None, **settings: Any) -> None:
        wandb = sys.modules.get("wandb")
        if wandb is not None and wandb.run is not None:
            wandb.finish()
        super().__init__(save_dir=save_dir, name=name or _name_of(save_dir), **settings)


class RunMLFlowLogger(MLFlowLogger):
    """Lightning's logger for MLflow, which uses a database in the run directory if no server is given.

    Lightning's default is a folder of files, which MLflow rejects since version 3.7.

    Args:
        save_dir: the run directory.
        run_name: name of the MLflow run. Default: the last two folders of the run directory.
        tracking_uri: URI of the server or database. Default: the environment variable MLFLOW_TRACKING_URI, or
            `mlflow.db` in the run directory.
        settings: further arguments of Lightning's logger.
    """

    def __init__(
        self, save_dir: str, run_name: str | None = None, tracking_uri: str | None = None, **settings: Any
    ) -> None:
        folder = Path(save_dir).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder / 'mlflow.db'}"
        super().__init__(run_name=run_name or _name_of(save_dir), tracking_uri=uri, **settings)


def _name_of(run_dir: str) -> str:
    return "/".join(Path(run_dir).absolute().parts[-2:])[-128:]  # longer names are rejected


def log_config(loggers: Sequence[Any], config: DictConfig) -> None:
    """Logs the config of a run with the loggers that can compare runs by their settings (W&B and MLflow)."""
    settings: Any = OmegaConf.to_container(config, resolve=True)
    for logger in loggers:
        if isinstance(logger, WandbLogger | MLFlowLogger):
            logger.log_hyperparams(settings)
