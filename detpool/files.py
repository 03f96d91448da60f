"""Writing files so that a reader never sees half of one, and a full disk costs no file that was there.

Nothing here imports torch.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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


def write_bytes_atomically(path: str | Path, content: bytes | memoryview) -> None:
    """Writes `content` to `path`, whole or not at all.

    It goes to a temporary file in the same folder, which then takes the place of `path` in one step: whatever
    interrupts that leaves the old file or the new one. Missing parent folders are made.

    Args:
        path: the file to write or to replace.
        content: all of its bytes.

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
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise WriteError(path, error) from error


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
