"""The user's own packages that configs may name: which they are, and their import.

This module needs only the standard library, because benchmarks use it where Hydra is not installed.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from detpool.errors import ConfigError

IMPORTS_VARIABLE = "DETPOOL_IMPORTS"
"""Environment variable that lists packages, separated by commas, that configs may name."""


def packages_of_user(imports: Any) -> tuple[str, ...]:
    """Return the packages of the config key `imports` and of the environment variable."""
    return tuple(name for name, _ in _named_by_user(imports))


def check_packages(imports: Any) -> None:
    """Check that the packages that the user has named exist, without importing them.

    Raises:
        ConfigError: If one does not exist.
    """
    for name, source in _named_by_user(imports):
        package = name.partition(".")[0]
        try:
            exists = package.isidentifier() and find_spec(package) is not None
        except ValueError:  # raised for a module that was created by hand
            exists = True
        if not exists:
            raise ConfigError(f"{source}: {_absent(package)}")


def import_packages(imports: Any) -> None:
    """Import the packages that the user has named, so that the rules that they register can be used by name.

    Raises:
        ConfigError: See `import_named`.
    """
    for name, source in _named_by_user(imports):
        import_named(name, source)


def import_named(name: str, source: str) -> ModuleType:
    """Import a module of the user.

    Args:
        name: dotted name of the module.
        source: setting that named it, for error messages.

    Raises:
        ConfigError: If it does not exist or its import raises an error. The message says where.
    """
    try:
        return import_module(name)
    except Exception as error:  # whatever the module raises
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            raise ConfigError(f"{source}: {_absent(str(error.name))}") from error
        message = str(error).partition("\n")[0]
        raise ConfigError(
            f"{source}: importing {name} raises {type(error).__name__}: {message}{_place(error)}"
        ) from error


def _named_by_user(imports: Any) -> list[tuple[str, str]]:
    """Return `(name, source)` for each name in the config key `imports` and in the environment variable."""
    given = imports if isinstance(imports, Sequence) and not isinstance(imports, str) else ()
    variable: Sequence[str] = os.environ.get(IMPORTS_VARIABLE, "").split(",")
    named = [(name, f"imports=[{name}]") for name in given if isinstance(name, str)]
    return named + [(name.strip(), f"{IMPORTS_VARIABLE}={name.strip()}") for name in variable if name.strip()]


def _absent(module: str) -> str:
    return f"there is no module {module!r}; Python finds modules of folders that are on PYTHONPATH, and installed ones"


def _place(error: Exception) -> str:
    """Return the file and line where a module raised an error during its import, in parentheses."""
    if isinstance(error, SyntaxError):  # its message names the place
        return ""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__)[1:] if "importlib" not in frame.filename]
    return f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
