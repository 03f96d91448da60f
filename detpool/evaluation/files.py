"""Writing result files so that a reader never sees half of one."""

from __future__ import annotations

import os
from pathlib import Path


def write_text_atomically(path: str | Path, text: str) -> None:
    """Write `text` (UTF-8) to `path`, whole or not at all.

    The text goes to a temporary file in the same folder, which then takes the place of `path` in one step: an
    interrupted run leaves the old file or the new one. Missing parent folders are made.

    Args:
        path: the file to write or to replace.
        text: its whole content.

    Raises:
        OSError: the folder cannot be written to; no temporary file is left behind.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile: its files are readable by their owner alone, and os.replace would keep that.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
