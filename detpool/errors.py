"""Errors a user causes and can mend; the command line shows their message without a traceback."""


import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """A config or command line that cannot be run as it stands."""


class WeightsError(RuntimeError):
    """Pretrained weights or a checkpoint that cannot be had, read, or do not fit the model."""


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """`; did you mean 'x'?` with the nearest of `choices`, or, if none is near, `; choose from a, b, c`."""
    choices = sorted(choices)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; choose from {', '.join(choices)}" if choices else ""
