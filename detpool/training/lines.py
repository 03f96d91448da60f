"""Prefixes the printed lines of runs that train at the same time in one terminal with the name of the run."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


class NamedLines(io.TextIOBase):
    """A text stream that writes each complete line, prefixed with a name, to another stream in a single call.

    It does not report to be a terminal, even if the other stream is one, because progress bars of several processes
    would overwrite each other.

    Args:
        stream: the stream to write to.
        name: the name in the prefix `[name] `.
    """

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream, self._prefix, self._rest = stream, f"[{name}] ", ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        if lines:
            self._stream.write("".join(f"{self._prefix}{line}\n" for line in lines))
            self._stream.flush()
        return len(text)

    def finish(self) -> None:
        """Writes the last line if it has no newline yet."""
        if self._rest:
            self.write("\n")


@contextmanager
def named_lines(name: str) -> Iterator[None]:
    """Puts `[name] ` before each line that Python prints in the block."""
    out, err = NamedLines(sys.stdout, name), NamedLines(sys.stderr, name)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            yield
        finally:
            out.finish()
            err.finish()
