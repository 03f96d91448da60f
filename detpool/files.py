"""Writes files so that a reader never sees a partly written file, and a full disk does not destroy an existing one.

Nothing here imports torch.
"""

from __future__ import annotations

import csv
import errno
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from detpool.errors import ConfigError

_NO_ROOM = {errno.ENOSPC, errno.EFBIG, errno.EROFS, getattr(errno, "EDQUOT", errno.ENOSPC)}
_TEMPORARY = ".tmp"


class WriteError(ConfigError):
    """A file cannot be written: the disk is full, a limit is reached, or permission is missing."""

    def __init__(self, path: str | Path, error: OSError) -> None:
        super().__init__(f"cannot write {path}: {error.strerror or error}")


def write_text_atomically(path: str | Path, text: str) -> None:
    """Writes `text` in UTF-8 with `write_bytes_atomically`."""
    write_bytes_atomically(path, text.encode())


def write_bytes_atomically(path: str | Path, content: bytes | memoryview | Iterable[bytes]) -> None:
    """Writes `content` to `path`, whole or not at all.

    The content is written to a temporary file in the same folder, which then replaces `path` in one step: after any
    interruption, `path` is either the old or the new file. Missing parent folders are created.

    Args:
        path: the file to write or replace.
        content: the bytes of the file, or an iterable of its parts.

    Raises:
        WriteError: If the file cannot be written. `path` is then unchanged, and no temporary file is left behind.
    """
    path = Path(path)
    # Not tempfile: its files are readable only by their owner, and os.replace would keep that.
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_TEMPORARY}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(path.parent, error) from error
    try:
        try:
            with temporary.open("wb") as file:
                file.writelines([content] if isinstance(content, bytes | memoryview) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise WriteError(path, error) from error


def write_json_atomically(path: str | Path, record: Mapping[str, Any]) -> None:
    """Writes `record` as indented JSON with `write_bytes_atomically`.

    Raises:
        ValueError: If a number is NaN or infinite, which JSON does not support.
        WriteError: If the file cannot be written.
    """
    write_text_atomically(path, json.dumps(record, indent=2, allow_nan=False) + "\n")


def write_csv_atomically(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a CSV file with a header and one line per row, with `write_bytes_atomically`.

    Args:
        path: the file to write or replace.
        rows: cells by column. The columns are the keys of all rows in order of appearance; a cell that is absent or
            None is empty.

    Raises:
        WriteError: If the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text_atomically(path, text.getvalue())


def remove_temporary_files(folder: Path) -> None:
    """Removes temporary files that killed processes have left in a folder and its subfolders."""
    for path in folder.rglob(f".*{_TEMPORARY}"):
        path.unlink(missing_ok=True)


@contextmanager
def naming_full_disks(folder: str | Path) -> Iterator[None]:
    """Turns an OSError about a full or read-only disk into a WriteError, whichever code wrote the file.

    Args:
        folder: the folder that the message names if the error names no file.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise WriteError(error.filename or folder, error) from error
        raise
