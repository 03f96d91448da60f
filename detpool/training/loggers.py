"""The logs of a run's losses and metrics: Lightning's, each fitted to run directories and to sweeps."""

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
    """Lightning's CSV logger, whose file holds whole rows only, and none fewer when a disk is full.

    Lightning's own empties the file to write a longer header, and leaves part of a row where there was no room for the
    rest.
    """

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """What writes the file."""
        if self._experiment is None:
            self._experiment = _WholeRowsWriter(log_dir=self.log_dir)
        return self._experiment


class _WholeRowsWriter(ExperimentWriter):
    def save(self) -> None:
        """Writes all rows recorded so far.

        Raises:
            WriteError: they cannot be written; the file is as it was, and the rows are kept for another try.
        """
        if self.metrics:
            write_csv_atomically(self.metrics_file_path, self.metrics)


class RunWandbLogger(WandbLogger):
    """Lightning's logger of Weights & Biases, with a run there for each run here.

    Lightning's goes on with the one that the process began before, which is another run of the sweep.

    Args:
        save_dir: the run directory.
        name: default: the last two folders of the run directory.
        settings: Lightning's arguments, and those of `wandb.init`.
    """

    def __init__(self, save_dir: str, name: str | None = None, **settings: Any) -> None:
        wandb = sys.modules.get("wandb")
        if wandb is not None and wandb.run is not None:
            wandb.finish()
        super().__init__(save_dir=save_dir, name=name or _name_of(save_dir), **settings)


class RunMLFlowLogger(MLFlowLogger):
    """Lightning's logger of MLflow, with a database in the run directory where no server is named.

    Lightning's asks for a folder of files, which MLflow refuses since version 3.7.

    Args:
        save_dir: the run directory.
        run_name: default: the last two folders of the run directory.
        tracking_uri: default: the environment variable MLFLOW_TRACKING_URI, or `mlflow.db` in the run directory.
        settings: Lightning's arguments.
    """

    def __init__(
        self, save_dir: str, run_name: str | None = None, tracking_uri: str | None = None, **settings: Any
    ) -> None:
        folder = Path(save_dir).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder / 'mlflow.db'}"
        super().__init__(run_name=run_name or _name_of(save_dir), tracking_uri=uri, **settings)


def _name_of(run_dir: str) -> str:
    return "/".join(Path(run_dir).absolute().parts[-2:])[-128:]  # no more characters are taken


def log_config(loggers: Sequence[Any], config: DictConfig) -> None:
    """Gives the config of a run to those loggers that compare runs by their settings."""
    settings: Any = OmegaConf.to_container(config, resolve=True)
    for logger in loggers:
        if isinstance(logger, WandbLogger | MLFlowLogger):
            logger.log_hyperparams(settings)
