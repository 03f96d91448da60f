"""The log of a run's losses and metrics."""

from __future__ import annotations

from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

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
