"""The log of a run's losses and metrics."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from detpool.files import WriteError, write_text_atomically


class WholeRowsCSVLogger(CSVLogger):
    """Lightning's CSV logger, whose file holds whole rows only, and none fewer when a disk is full.

    Lightning's own empties the file to write a longer header, and leaves part of a row where there was no room for the
    rest.
    """

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
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
        path, known = Path(self.metrics_file_path), len(self.metrics_keys)
        self._record_new_keys()
        if len(self.metrics_keys) > known or not path.is_file():
            write_text_atomically(path, self._text([*_read(path), *self.metrics], header=True))
        else:
            _append(path, self._text(self.metrics, header=False))
        self.metrics = []

    def _text(self, rows: Iterable[Mapping[str, Any]], header: bool) -> str:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames=self.metrics_keys)
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()


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
