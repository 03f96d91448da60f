"""Command-line parsing for the programs in tools/; errors about unknown words suggest similar ones."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from detpool.errors import did_you_mean
from detpool.own_packages import import_named


class Parser(argparse.ArgumentParser):
    """A parser whose help is the program's docstring and whose errors are one line without the usage.

    Args:
        description: The program's docstring.
        add_help: Whether to add ``--help``. Parsers of subcommands are instances of this class too.
    """

    def __init__(self, description: str | None = None, add_help: bool = True, **keywords: Any) -> None:
        keywords["formatter_class"] = argparse.RawDescriptionHelpFormatter
        super().__init__(description=description, add_help=add_help, allow_abbrev=False, **keywords)
        self._prefix = ""

    def add_names(self, option: str, choices: Iterable[str], text: str, count: str = "+", **keywords: Any) -> None:
        """Adds an option that takes names out of ``choices``; in its help, ALL is replaced by the list of choices."""
        known = list(choices)
        text = text.replace("ALL", ", ".join(known))
        self.add_argument(option, nargs=count, type=one_of(known), metavar="NAME", help=text, **keywords)

    def add_timing(self, rounds: int, budget: float, output: str | None = None) -> None:
        """Adds the options of every benchmark: ``--rounds``, ``--budget`` and ``--output``."""
        add = self.add_argument
        text = f"times that each call is timed at most; default: {rounds}"
        add("--rounds", type=positive_int, default=rounds, metavar="N", help=text)
        text = f"of a case, after which no further round begins; default: {budget:g}"
        add("--budget", type=positive, default=budget, metavar="SECONDS", help=text)
        text = f"default: {output or 'a new one in logs/bench_ops'}"
        add("--output", type=Path, default=output and Path(output), metavar="FOLDER", help=text)

    def add_imports(self) -> None:
        """Adds the option ``--import`` for modules, which `import_all` imports."""
        text = "of your own, which registers sampling or reductions, or which a run's config names"
        self.add_argument("--import", dest="imports", nargs="+", default=[], metavar="MODULE", help=text)

    def parse_args(self, args=None, namespace=None):
        arguments, unknown = self.parse_known_args(args, namespace)
        if unknown:
            options = [option for action in self._actions for option in action.option_strings]
            self.error(f"unknown argument {unknown[0]!r}{did_you_mean(unknown[0].partition('=')[0], options)}")
        return arguments

    def parse_with_overrides(self, argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
        """Parses options that are written ``name=value``, like those of train.py.

        Returns:
            The options, and all other words, which are overrides for Hydra.
        """
        words = sys.argv[1:] if argv is None else argv
        self._prefix = "argument --"
        names = {f"--{word.partition('=')[0]}" for word in words if "=" in word} & set(self._option_string_actions)
        return self.parse_known_args([f"--{w}" if f"--{w.partition('=')[0]}" in names else w for w in words])

    def error(self, message: str) -> NoReturn:
        print(f"error: {message.removeprefix(self._prefix)}", file=sys.stderr)
        sys.exit(2)


def import_all(modules: Iterable[str]) -> None:
    """Import the modules given by ``--import``.

    Raises:
        ConfigError: If a module does not exist or its import raises an error.
    """
    for module in modules:
        import_named(module, f"--import {module}")


def one_of(choices: Iterable[str]) -> Callable[[str], str]:
    known = list(choices)

    def convert(text: str) -> str:
        if text not in known:
            raise argparse.ArgumentTypeError(f"unknown name {text!r}{did_you_mean(text, known)}")
        return text

    return convert


def positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text!r}")
    return value


def positive_int(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a positive whole number, got {text!r}")
    return int(text)


def natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be 0 or a positive whole number, got {text!r}")
    return int(text)
