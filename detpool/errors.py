"""Errors a user causes and can mend; the programs show their message without a traceback."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_MAX_LISTED = 60  # choices that a message names


class ConfigError(ValueError):
    """A config or command line that cannot be run as it stands."""


class WeightsError(RuntimeError):
    """Pretrained weights or a checkpoint that cannot be had, read, or do not fit the model."""


class MissingExtraError(ImportError):
    """A part of detpool that needs packages which only an extra installs (`detpool/extras.py`)."""


class DataError(RuntimeError):
    """Something is wrong with the files of a data set.

    The message names the file and what is wrong with it. It is built from that message alone, so that a
    ``DataLoader`` can raise it again, as itself, in the process that reads from its workers.
    """


def show(value: object) -> str:
    """What came, as a message can hold it: its `repr`, cut after 200 characters."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """`; did you mean 'x'?` with the nearest of `choices`, or, if none is near, `; choose from a, b, c`.

    Near are names that differ by a slip of the keyboard, and parts of a name, such as its beginning. Of very many
    choices only the first are listed.
    """
    choices = sorted(choices)
    folded = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.5)
    if near and _is_near(name.lower(), near[0]):
        return f"; did you mean {folded[near[0]]!r}?"
    return f"; choose from {listed(choices)}" if choices else ""


def listed(choices: Sequence[str]) -> str:
    """`a, b, c`; of very many only the first, and how many more there are."""
    more = f" and {len(choices) - _MAX_LISTED} more" if len(choices) > _MAX_LISTED else ""
    return f"{', '.join(choices[:_MAX_LISTED])}{more}"


def _is_near(name: str, choice: str) -> bool:
    ratio = difflib.SequenceMatcher(None, choice, name).ratio()
    slips = (1 - ratio) * (len(name) + len(choice))  # letters that the other does not have
    beginning = difflib.SequenceMatcher(None, choice[: len(name)], name).ratio()
    part = min(len(name), len(choice)) >= 3 and (name in choice or choice in name or beginning >= 0.8)
    return ratio >= 0.7 or part or slips < 2.5


def check_numbers(where: str, accepted: str, fits: Callable[[float], bool], **given: float | Sequence[float]) -> None:
    """Raises ConfigError unless each number, and each of a list of them, fits.

    Args:
        where: what the names of `given` are of, as a config has it: `model.rpn`.
        accepted: which numbers fit, in words that go on "must be".
    """
    for name, value in given.items():
        if not all(fits(number) for number in (value if isinstance(value, Sequence) else [value])):
            raise ConfigError(f"{where}.{name} must be {accepted}, got {value}")


@contextmanager
def writing(output: str | Path) -> Iterator[None]:
    """Raises ConfigError, which names what a program was told to write, in place of OSError."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"cannot write {output}: {error.strerror or error}") from error


@contextmanager
def exit_with_message() -> Iterator[None]:
    """Ends the program with status 2 and the message alone for an error that the user can mend.

    Those are this module's, a loss that is not finite, and whatever the construction of a configured object raises
    (with the environment variable HYDRA_FULL_ERROR=1 the latter keep their traceback).
    """
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        message = message_of(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)


def message_of(error: Exception) -> str | None:
    """The message of an error that the user can mend (see `exit_with_message`), None for any other."""
    mendable = isinstance(error, ConfigError | WeightsError | DataError | MissingExtraError | FloatingPointError)
    where = ""
    # Hydra wraps what an object's construction raised. Importing its class here would cost what it saves.
    if type(error).__name__ == "InstantiationException" and not os.environ.get("HYDRA_FULL_ERROR"):
        mendable = True
        key = re.search(r"full_key: (\S+)", str(error))
        where = f" (while building {key[1]})" if key else ""
        error = error.__cause__ if isinstance(error.__cause__, Exception) else error
    # A DataLoader worker's error arrives with the worker's traceback in its message.
    return str(error).rpartition(f"{type(error).__name__}: ")[2].strip() + where if mendable else None
