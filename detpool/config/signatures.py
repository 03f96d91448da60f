"""Which classes and functions a config may name, and which arguments they take, read from source files.

Nothing is imported for this: importing torch alone takes seconds, and `eval.py` also builds configs of run directories
that may come from untrusted sources. For the same reason this is a list of admitted packages, not of refused ones: they
hold the parts of a detector and its training, and do not start processes, load code or write to given paths.
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from typing import Any

from detpool.errors import ConfigError, did_you_mean
from detpool.own_packages import IMPORTS_VARIABLE

ADMITTED = (
    *("detpool.data", "detpool.detection", "detpool.ops", "detpool.poolers", "detpool.layers"),
    *(f"detpool.training.{name}" for name in ("averaging", "callbacks", "loggers", "picture_callbacks", "schedules")),
    *(f"lightning.fabric.{name}" for name in ("plugins", "strategies")),
    *(f"lightning.pytorch.{name}" for name in ("accelerators", "callbacks", "loggers", "plugins", "profilers")),
    *("lightning.pytorch.strategies", "lightning.pytorch.trainer", "timm.layers", "timm.optim", "timm.scheduler"),
    *("torch.nn", "torch.optim", "torchvision.models", "torchvision.ops", "torchvision.transforms"),
)
"""Packages whose classes and functions a config may name; a user can add more (`detpool/own_packages.py`)."""
_BY_NAME = tuple(f"hydra.utils.get_{kind}" for kind in ("class", "method", "object", "static_method"))
"""Hydra's functions that return the object that their argument `path` names."""


@dataclass(frozen=True)
class Definition:
    """What a name refers to: a module (`node` is None), or a class, function or value that `module` defines."""

    module: str
    node: ast.AST | None
    owner: ast.ClassDef | None = None


@dataclass(frozen=True)
class Parameter:
    """An argument: its annotation, with names as in `module`, and its default, None if it has none."""

    annotation: ast.expr | None
    module: str
    default: ast.expr | None

    @property
    def may_be_none(self) -> bool:
        """Whether the default is None, which the annotation may not say."""
        return isinstance(self.default, ast.Constant) and self.default.value is None


def parameters_of_target(path: str, node: Mapping[Any, Any], own: tuple[str, ...]) -> dict[str, Parameter] | None:
    """Returns the arguments of a `_target_` by name; None if it takes any argument or they are not known.

    Args:
        path: key of the mapping, which errors name.
        node: the mapping that holds the `_target_`.
        own: packages that the user has named (`packages_of_user`).

    Raises:
        ConfigError: If the `_target_` is not admitted, does not exist or is a module. For Hydra's functions that look
            up objects, the object that they look up is checked too.
    """
    target = node["_target_"]
    if target in _BY_NAME:
        arguments = node.get("_args_")
        first = arguments[0] if isinstance(arguments, list) and arguments else None
        _admitted(f"{path}.path", node.get("path", first), own)
        return None
    found = _admitted(f"{path}._target_", target, own)
    if found.node is None:
        raise ConfigError(f"{path}._target_={target} is a module, and no class or function")
    # A decorator in the user's own package may change the arguments.
    return None if _within(found.module, own) and getattr(found.node, "decorator_list", None) else parameters(found)


def argument_of_target(target: str, name: str, own: tuple[str, ...] = ()) -> Parameter | None:
    """Returns one argument of a `_target_`; None if it has no such argument, or is broken or not admitted."""
    try:
        return (parameters_of_target("", {"_target_": target}, own) or {}).get(name)
    except ConfigError:
        return None


def parameters(found: Definition | None) -> dict[str, Parameter] | None:
    """Returns the arguments of a class or function by name; None if it takes any argument or they are not known."""
    if found is None:
        return None
    node, module = found.node, found.module
    if isinstance(node, ast.ClassDef):
        body = {part.name: part for part in node.body if isinstance(part, ast.FunctionDef)}
        if "__init__" in body:
            return _of_function(body["__init__"], module, node)
        if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
            fields = [part for part in node.body if isinstance(part, ast.AnnAssign)]
            return {ast.unparse(part.target): Parameter(part.annotation, module, part.value) for part in fields}
        return next((parameters(base) for base in _bases(node, module)), None)
    if isinstance(node, ast.FunctionDef):
        return _of_function(node, module, found.owner)
    return None


def resolve(expression: ast.expr, module: str) -> Definition | None:
    """Returns what a dotted name in the source of a module refers to; None if that is not found."""
    try:
        return _find(f"{module}.{ast.unparse(expression)}", module.count(".") + 1)
    except ConfigError:
        return None


def _of_function(node: ast.FunctionDef, module: str, owner: ast.ClassDef | None) -> dict[str, Parameter] | None:
    arguments = [*node.args.posonlyargs, *node.args.args]
    defaults = [*[None] * (len(arguments) - len(node.args.defaults)), *node.args.defaults]
    pairs = [*zip(arguments, defaults, strict=True), *zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)]
    static = any(ast.unparse(decorator) == "staticmethod" for decorator in node.decorator_list)
    found = {
        argument.arg: Parameter(argument.annotation, module, default)
        for argument, default in pairs[0 if owner is None or static else 1 :]
    }
    if node.args.kwarg is None:
        return found
    # `**keywords` may hold the arguments of the call that they are passed on to.
    for call in ast.walk(node):
        if isinstance(call, ast.Call) and any(
            keyword.arg is None and ast.unparse(keyword.value) == node.args.kwarg.arg for keyword in call.keywords
        ):
            further = _of_call(call, module, owner)
            if further is None:
                return None
            positional = takewhile(lambda argument: not isinstance(argument, ast.Starred), call.args)
            given = {keyword.arg for keyword in call.keywords} | {
                name for name, _ in zip(further, positional, strict=False)
            }
            return found | {name: parameter for name, parameter in further.items() if name not in given}
    return None


def _of_call(call: ast.Call, module: str, owner: ast.ClassDef | None) -> dict[str, Parameter] | None:
    if ast.unparse(call.func) == "super().__init__" and owner is not None:
        return next((parameters(base) for base in _bases(owner, module)), None)
    return parameters(resolve(call.func, module))


def _bases(node: ast.ClassDef, module: str) -> Iterator[Definition]:
    return (found for base in node.bases if (found := resolve(base, module)) and found.node is not None)


def _admitted(key: str, target: Any, own: tuple[str, ...]) -> Definition:
    """Returns what a dotted name refers to.

    Raises:
        ConfigError: If the name, or the module that defines it, is not admitted or cannot be found.
    """
    if not isinstance(target, str) or not all(part.isidentifier() for part in target.split(".")):
        raise ConfigError(f"{key} must be the dotted name of a class or function, got {target!r}")
    roots = {package.partition(".")[0] for package in (*ADMITTED, *own)}
    if target.partition(".")[0] not in roots:
        raise ConfigError(_refusal(key, target, target, target.partition(".")[0]))
    # Private names lead from any function to all of Python.
    if "__" in target or (any(part.startswith("_") for part in target.split(".")) and not _within(target, own)):
        raise ConfigError(f"{key}={target} is private: a config cannot name it")
    try:
        found = _find(target)
    except (ConfigError, SyntaxError, UnicodeDecodeError) as error:
        raise ConfigError(f"{key}={target} cannot be imported: {error}") from error
    if found.module.partition(".")[0] not in roots or (found.node and not _within(found.module, (*ADMITTED, *own))):
        raise ConfigError(_refusal(key, target, found.module, found.module))
    if found.owner is not None and not _within(found.module, own):
        # A method may be called with any object, and so do things that its class is not meant for.
        raise ConfigError(f"{key}={target} is a method: a config can name classes and functions alone")
    return found


@cache
def _find(target: str, beginning: int = 1) -> Definition:
    """Returns what a dotted name refers to, as Python would find it; its first `beginning` parts are a module."""
    parts = target.split(".")
    found, at = Definition(".".join(parts[:beginning]), None), beginning
    if _source(found.module) is None:
        raise ConfigError(f"there is no package or module {found.module!r}")
    while at < len(parts):
        name, at = parts[at], at + 1
        if found.node is None:
            inner = _in_module(found.module, name)
            if inner is None:
                names = [known for known in _names(found.module) if not known.startswith("_")]
                raise ConfigError(f"{found.module} has no {name!r}{did_you_mean(name, names)}")
            found = inner
        elif isinstance(found.node, ast.ClassDef):
            methods = {part.name: part for part in found.node.body if isinstance(part, ast.FunctionDef)}
            found = Definition(found.module, methods.get(name, found.node), found.node)
        else:
            raise ConfigError(f"{'.'.join(parts[: at - 1])} has no part {name!r}")
    return found


@cache
def _in_module(module: str, name: str) -> Definition | None:
    """Returns what a name in a module refers to: a definition or import in its source, or a submodule."""
    if _source(module) is None or module.partition(".")[0] in sys.stdlib_module_names:
        return Definition(module, ast.Constant(None))  # nothing that a config may name
    node = _names(module).get(name)
    if isinstance(node, tuple):
        imported, attribute = node
        if attribute is None:
            return Definition(imported, None)
        if node != (module, name):
            return _in_module(imported, attribute)
    elif isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.expr):
        value = node.value
        while isinstance(value, ast.Call) and value.args and ast.unparse(value.func).endswith("partial"):
            value = value.args[0]
        # An alias or a partial of something belongs to the module that defines the original.
        named = resolve(value, module) if isinstance(value, ast.Name | ast.Attribute) else None
        if named is None:
            return Definition(module, node)
        return named if value is node.value else Definition(named.module, node)
    elif node is not None:
        return Definition(module, node)
    if _source(f"{module}.{name}") is not None:
        return Definition(f"{module}.{name}", None)
    for star in _names(module).get("*", ()):
        if found := _in_module(star, name):
            return found
    return None


@cache
def _names(module: str) -> dict[str, Any]:
    """Returns the names that a module's source binds.

    Each is a node, or (module, name) for an import; "*" lists the modules of `from module import *`.
    """
    source = _source(module)
    if source is None or source.suffix != ".py":
        return {}
    found: dict[str, Any] = {}
    package = module.split(".") if source.name == "__init__.py" else module.split(".")[:-1]

    def read(statements: Iterable[ast.stmt]) -> None:
        for node in statements:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found[node.name] = node
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                    found[ast.unparse(target)] = node
            elif isinstance(node, ast.Import):
                for name in node.names:
                    found[name.asname or name.name.partition(".")[0]] = (
                        name.name if name.asname else name.name.partition(".")[0],
                        None,
                    )
            elif isinstance(node, ast.ImportFrom):
                base = package[: len(package) - node.level + 1] if node.level else []
                origin = ".".join([*base, *([node.module] if node.module else [])])
                for name in node.names:
                    if name.name == "*":
                        found.setdefault("*", []).append(origin)
                    else:
                        found[name.asname or name.name] = (origin, name.name)
            elif isinstance(node, ast.If | ast.With | ast.Try):
                # The branch without errors comes last, so its bindings take precedence.
                for handler in getattr(node, "handlers", ()):
                    read(handler.body)
                read(getattr(node, "orelse", ()))
                read(node.body)

    read(ast.parse(source.read_text(encoding="utf-8"), filename=str(source)).body)
    return found


@cache
def _source(module: str) -> Path | None:
    """Returns the file of a module, found without importing it or its parent packages; None if there is none."""
    first, *parts = module.split(".")
    try:
        spec = find_spec(first)
    except ValueError:  # raised for a module that was created by hand
        return None
    if spec is None:
        return None
    if not parts:
        return Path(spec.origin) if spec.origin and os.path.isfile(spec.origin) else None
    for folder in spec.submodule_search_locations or ():
        path = Path(folder, *parts)
        for file in (path / "__init__.py", path.with_suffix(".py")):
            if file.is_file():
                return file
    return None


def _within(name: str, packages: Iterable[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _refusal(key: str, target: str, defined: str, package: str) -> str:
    where = "" if target == defined else f" (defined in {defined})"
    return (
        f"{key}={target}{where} is not among what a config may name: parts of detpool, torch.nn, torch.optim, "
        f"torchvision, lightning and timm. If you know and trust it, allow it on the command line with "
        f"'imports=[{package}]' or with the environment variable {IMPORTS_VARIABLE}={package}"
    )
