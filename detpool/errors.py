"""Errors that a user can fix, for which the programs print a message without a traceback."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_MAX_LISTED = 60  # choices in a message


class ConfigError(ValueError):
    """A config or command line is not valid."""


class WeightsError(RuntimeError):
    """Pretrained weights or a checkpoint cannot be downloaded or read, or do not fit the model."""


class MissingExtraError(ImportError):
    """A part of detpool needs packages that only an extra installs (`detpool/extras.py`)."""


class DataError(RuntimeError):
    """Something is wrong with the files of a data set.

    The message names the file and the fault. The error is built from the message alone, so that a ``DataLoader`` can
    raise an error of the same class in the process that reads from its workers.
    """


def show(value: object) -> str:
    """Returns the `repr` of a value for an error message, cut after 200 characters."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Returns `; did you mean 'x'?` with the choice most similar to `name`, or else `; choose from a, b, c`.

    A choice is similar if it differs by a typo, or if one name is part of the other. At most 60 choices are listed.
    Without choices the result is empty.
    """
    choices = sorted(choices)
    folded = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.5)
    if near and _is_near(name.lower(), near[0]):
        return f"; did you mean {folded[near[0]]!r}?"
    return f"; choose from {listed(choices)}" if choices else ""


def listed(choices: Sequence[str]) -> str:
    """Returns `a, b, c`; of more than 60 choices only the first 60 and the number of the others."""
    more = f" and {len(choices) - _MAX_LISTED} more" if len(choices) > _MAX_LISTED else ""
    return f"{', '.join(choices[:_MAX_LISTED])}{more}"


def _is_near(name: str, choice: str) -> bool:
    ratio = difflib.SequenceMatcher(None, choice, name).ratio()
    slips = (1 - ratio) * (len(name) + len(choice))  # letters that only one of them has
    beginning = difflib.SequenceMatcher(None, choice[: len(name)], name).ratio()
    part = min(len(name), len(choice)) >= 3 and (name in choice or choice in name or beginning >= 0.8)
    return ratio >= 0.7 or part or slips < 2.5


def check_numbers(where: str, accepted: str, fits: Callable[[float], bool], **given: float | Sequence[float]) -> None:
    """Checks numbers of a config.

    Args:
        where: key of the config that holds the names of `given`: `model.rpn`.
        accepted: the accepted numbers in words, to follow "must be".
        fits: returns whether a number is accepted.
        given: numbers, or sequences of numbers, by name.

    Raises:
        ConfigError: If a number is not accepted.
    """
    for name, value in given.items():
        if not all(fits(number) for number in (value if isinstance(value, Sequence) else [value])):
            raise ConfigError(f"{where}.{name} must be {accepted}, got {value}")


@contextmanager
def writing(output: str | Path) -> Iterator[None]:
    """Turns an OSError into a ConfigError that names the output file or folder of a program."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"cannot write {output}: {error.strerror or error}") from error


@contextmanager
def exit_with_message() -> Iterator[None]:
    """Ends the program with exit status 2 and only the message on an error that the user can fix.

    These are the errors of this module, a loss that is not finite (FloatingPointError), and all errors raised while a
    configured object is built (with the environment variable HYDRA_FULL_ERROR=1 the latter keep their traceback).
    Ctrl-C ends the program with exit status 130.
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
    """Returns the message of an error that the user can fix (see `exit_with_message`), None for any other error."""
    mendable = isinstance(error, ConfigError | WeightsError | DataError | MissingExtraError | FloatingPointError)
    where = ""
    # Hydra wraps errors raised while an object is built. Compared by name, because importing the class is slow.
    if type(error).__name__ == "InstantiationException" and not os.environ.get("HYDRA_FULL_ERROR"):
        mendable = True
        key = re.search(r"full_key: (\S+)", str(error))
        where = f" (while building {key[1]})" if key else ""
        error = error.__cause__ if isinstance(error.__cause__, Exception) else error
    # A DataLoader worker's error arrives with the worker's traceback in its message.
    return str(error).rpartition(f"{type(error).__name__}: ")[2].strip() + where if mendable else None
