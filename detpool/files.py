"""Writing files so that a reader never sees half of one, and a full disk costs no file that was there.

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
    """A file that cannot be written: the disk is full, a limit is reached, or there is no permission."""

    def __init__(self, path: str | Path, error: OSError) -> None:
        super().__init__(f"cannot write {path}: {error.strerror or error}")


def write_text_atomically(path: str | Path, text: str) -> None:
    """Writes `text` (UTF-8) as `write_bytes_atomically` writes bytes."""
    write_bytes_atomically(path, text.encode())


def write_bytes_atomically(path: str | Path, content: bytes | memoryview | Iterable[bytes]) -> None:
    """Writes `content` to `path`, whole or not at all.

    It goes to a temporary file in the same folder, which then takes the place of `path` in one step: whatever
    interrupts that leaves the old file or the new one. Missing parent folders are made.

    Args:
        path: the file to write or to replace.
        content: all of its bytes, in parts if there are many.

    Raises:
        WriteError: the file cannot be written. `path` is as it was, and no temporary file is left behind.
    """
    path = Path(path)
    # Not tempfile: its files are readable by their owner alone, and os.replace would keep that.
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
    """Writes `record` as indented JSON, as `write_bytes_atomically` writes bytes.

    Raises:
        ValueError: a number is NaN or infinite, which JSON does not have.
        WriteError: the file cannot be written.
    """
    write_text_atomically(path, json.dumps(record, indent=2, allow_nan=False) + "\n")


def write_csv_atomically(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a line per row below a header, as `write_bytes_atomically` writes bytes.

    Args:
        path: the file to write or to replace.
        rows: cells by column. Columns are the keys of any row, in order of appearance; a cell that is absent or None is
            empty.

    Raises:
        WriteError: the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text_atomically(path, text.getvalue())


def remove_temporary_files(folder: Path) -> None:
    """Removes what a process that was killed while it wrote has left in a folder and those below it."""
    for path in folder.rglob(f".*{_TEMPORARY}"):
        path.unlink(missing_ok=True)


@contextmanager
def naming_full_disks(folder: str | Path) -> Iterator[None]:
    """Raises WriteError in place of an OSError that says that there is no room, whoever wrote.

    Args:
        folder: what the message names where the error names no file.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise WriteError(error.filename or folder, error) from error
        raise
