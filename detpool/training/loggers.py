"""The log of a run's losses and metrics."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from detpool.files import WriteError, to_csv, write_text_atomically


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
        """Appends the rows recorded since the last call.

        Raises:
            WriteError: they cannot be written; the file is as it was, and the rows are kept for another try.
        """
        if not self.metrics:
            return
        path = Path(self.metrics_file_path)
        keys = sorted({*self.metrics_keys, *(key for row in self.metrics for key in row)})
        if keys != self.metrics_keys or not path.is_file():
            write_text_atomically(path, to_csv([*_read(path), *self.metrics], keys))
        else:
            _append(path, to_csv(self.metrics, keys, header=False))
        self.metrics, self.metrics_keys = [], keys


def _read(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _append(path: Path, text: str) -> None:
    size = path.stat().st_size
    try:
        with path.open("ab") as file:
            file.write(text.encode())
    except OSError as error:
        os.truncate(path, size)  # which needs no room
        raise WriteError(path, error) from error
