"""Lines of runs that are trained at the same time and print to one terminal: each names its run."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


class NamedLines(io.TextIOBase):
    """A stream that hands lines on to another as soon as they are whole, each in one piece, with a name before it.

    It is no terminal, whatever the other one is: progress bars of several processes would overwrite each other.
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
        """Ends the line that is not whole, if there is one."""
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
