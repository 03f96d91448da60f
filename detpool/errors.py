"""Errors a user causes and can mend; the programs show their message without a traceback."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class ConfigError(ValueError):
    """A config or command line that cannot be run as it stands."""


class WeightsError(RuntimeError):
    """Pretrained weights or a checkpoint that cannot be had, read, or do not fit the model."""


class DataError(RuntimeError):
    """Something is wrong with the files of a data set.

    The message names the file and what is wrong with it. It is built from that message alone, so that a
    ``DataLoader`` can raise it again, as itself, in the process that reads from its workers.
    """


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """`; did you mean 'x'?` with the nearest of `choices`, or, if none is near, `; choose from a, b, c`."""
    choices = sorted(choices)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; choose from {', '.join(choices)}" if choices else ""


@contextmanager
def exit_with_message() -> Iterator[None]:
    """Ends the program with status 2 and the message alone for an error that the user can mend."""
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        # Hydra wraps what an object's construction raised.
        cause = error.__cause__ if type(error).__name__ == "InstantiationException" else error
        if not isinstance(cause, ConfigError | WeightsError | DataError | FloatingPointError):
            raise
        # A DataLoader worker's error arrives with the worker's traceback in its message.
        message = str(cause).rpartition(f"{type(cause).__name__}: ")[2].strip()
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)
