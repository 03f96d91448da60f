"""Which classes and functions a config may name.

Building a config calls what its `_target_`s name, and a run directory, whose config `eval.py` builds, may come from
elsewhere. So the names are admitted, not refused: what makes parts of a detector and of its training, in packages that
do not start processes, load code or write where they are told to.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

import hydra.utils

from detpool.errors import ConfigError

ADMITTED = (
    "detpool.data",
    "detpool.detection",
    "detpool.ops",
    "detpool.poolers",
    "detpool.layers",
    "detpool.training.callbacks",
    "detpool.training.loggers",
    "detpool.training.picture_callbacks",
    "detpool.training.schedules",
    "lightning.fabric.plugins",
    "lightning.fabric.strategies",
    "lightning.pytorch.accelerators",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
    "lightning.pytorch.plugins",
    "lightning.pytorch.profilers",
    "lightning.pytorch.strategies",
    "lightning.pytorch.trainer",
    "timm.layers",
    "timm.optim",
    "timm.scheduler",
    "torch.nn",
    "torch.optim",
    "torchvision.models",
    "torchvision.ops",
    "torchvision.transforms",
)
"""Where what a config names is defined; a user adds packages with the key `imports`, or `IMPORTS_VARIABLE`."""
IMPORTS_VARIABLE = "DETPOOL_IMPORTS"
"""Environment variable: packages, separated by commas, that configs may name."""

_BY_NAME = tuple(f"hydra.utils.get_{kind}" for kind in ("class", "method", "object", "static_method"))
"""Hydra's functions that return what their `path` names."""


def packages_of_user(imports: Iterable[str]) -> tuple[str, ...]:
    """The packages of the key `imports`, and those of the environment variable."""
    named = os.environ.get(IMPORTS_VARIABLE, "").split(",")
    return (*imports, *(name.strip() for name in named if name.strip()))


def targets(node: Any, path: str = "") -> Iterator[tuple[str, dict[Any, Any]]]:
    """Every mapping of a plain config that has a `_target_`, with its key, lists included."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for key, value in node.items():
            yield from targets(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from targets(value, f"{path}[{index}]")


def resolve(path: str, node: dict[Any, Any], own: tuple[str, ...]) -> Any:
    """The class or function that the `_target_` of a plain mapping names.

    Args:
        path: key of the mapping, to name in errors.
        node: the mapping.
        own: packages that the user has named (`packages_of_user`).

    Raises:
        ConfigError: if it is not admitted, cannot be imported or cannot be called. Of Hydra's functions that look
            objects up, what they look up is checked too.
    """
    key, target = f"{path}._target_", node["_target_"]
    if target in _BY_NAME:
        arguments = node.get("_args_")
        first = arguments[0] if isinstance(arguments, list) and arguments else None
        _located(f"{path}.path", node.get("path", first), own)
        return getattr(hydra.utils, target.rpartition(".")[2])
    found = _located(key, target, own)
    if not callable(found):
        raise ConfigError(f"{key}={target} is no class or function")
    return found


def imported(target: str) -> Any:
    """What a name stands for if its module was imported before, else None: for hints, which import nothing."""
    module, _, name = target.rpartition(".")
    return getattr(sys.modules.get(module), name, None)


def _located(key: str, target: Any, own: tuple[str, ...]) -> Any:
    """The object of a dotted name, as Hydra finds it, if it and every module on the way are admitted."""
    if not isinstance(target, str) or not all(part.isidentifier() for part in target.split(".")):
        raise ConfigError(f"{key} must be the dotted name of a class or function, got {target!r}")
    roots = {package.partition(".")[0] for package in (*ADMITTED, *own)}
    first, *parts = target.split(".")
    if first not in roots:
        raise ConfigError(_refusal(key, target, target, first))
    # Names with underscores are a package's own, and lead from any function to all of Python.
    if "__" in target or (any(part.startswith("_") for part in parts) and not _within(target, own)):
        raise ConfigError(f"{key}={target} is private: a config cannot name it")
    found = _imported(key, target, first)
    owner = None
    for end, part in enumerate(parts, start=2):
        owner = found
        if isinstance(owner, ModuleType) and not hasattr(owner, part):
            found = _imported(key, target, ".".join(target.split(".")[:end]))
        else:
            found = _attribute(key, target, owner, part)
        if isinstance(found, ModuleType) and found.__name__.partition(".")[0] not in roots:
            raise ConfigError(_refusal(key, target, found.__name__, found.__name__))
    module = _module_of(found)
    if not _within(module, (*ADMITTED, *own)):
        raise ConfigError(_refusal(key, target, module, module))
    if not _within(module, own) and not isinstance(owner, ModuleType):
        # It may be called with any object of its class, and do what the class is not built for.
        raise ConfigError(f"{key}={target} is a method: a config can name classes and functions alone")
    return found


def _module_of(found: Any) -> str:
    """Where an object is defined, whatever name it was reached by; of an object without a name, its class."""
    while isinstance(found, functools.partial):
        found = found.func
    if isinstance(found, ModuleType):
        return found.__name__
    return str(getattr(found if hasattr(found, "__qualname__") else type(found), "__module__", None))


def _within(name: str, packages: Iterable[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _refusal(key: str, target: str, defined: str, package: str) -> str:
    where = "" if target == defined else f" (defined in {defined})"
    return (
        f"{key}={target}{where} is not among what a config may name: parts of detpool, torch.nn, torch.optim, "
        f"torchvision, lightning and timm. If you know and trust it, allow it on the command line with "
        f"'imports=[{package}]' or with the environment variable {IMPORTS_VARIABLE}={package}"
    )


def _imported(key: str, target: str, module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except Exception as error:  # whatever the code of a user's module raises
        raise ConfigError(f"{key}={target} cannot be imported: {_with_place(error)}") from error


def _attribute(key: str, target: str, owner: Any, name: str) -> Any:
    try:
        return getattr(owner, name)
    except Exception as error:  # a module may import its parts when they are asked for
        raise ConfigError(f"{key}={target} cannot be imported: {_with_place(error)}") from error


def _with_place(error: Exception) -> str:
    """An error's message with the line of the user's module that raised it."""
    if isinstance(error, ImportError | AttributeError | SyntaxError):
        return f"{error}"
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({last.filename}, line {last.lineno})"
