"""Checks whether a value of a config has the type of an annotation, which is read from a source file."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Sequence
from typing import Any

from detpool.config.signatures import Parameter, resolve

LATER = "\0"
"""Placeholder for values that only a running Hydra job knows; it fits every type."""
OBJECT = "an object (a mapping with _target_)"

Kind = tuple[str, Callable[[Any], bool]]
"""A type in words, and a function that tells whether a plain value (of YAML) has this type."""


def fits(value: Any, parameter: Parameter) -> bool:
    """Returns whether a parameter accepts a plain value.

    A mapping with a `_target_` becomes an object of unknown type, which fits every type except plain ones. An integer
    fits `float`; true and false fit neither `int` nor `float`.
    """
    if (value is None and parameter.may_be_none) or (isinstance(value, str) and LATER in value):
        return True
    return _any(value, _kinds(parameter.annotation, parameter.module))


def words(parameter: Parameter) -> str:
    """Returns in words what a parameter accepts: `a whole number or null`."""
    found = dict.fromkeys(word for word, _ in _kinds(parameter.annotation, parameter.module))
    plain = [word for word in found if word not in (OBJECT, "null")]
    return " or ".join(word for word in found if word != OBJECT or not plain)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and "_target_" in value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


_ANYTHING: Kind = ("anything", lambda value: True)
_SOME_OBJECT: Kind = (OBJECT, _is_object)
_PLAIN: dict[str, Kind] = {
    "int": ("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    "float": ("a number", _is_number),
    "bool": ("true or false", lambda value: isinstance(value, bool)),
    "str": ("text", lambda value: isinstance(value, str)),
    "None": ("null", lambda value: value is None),
    "Path": ("text", lambda value: isinstance(value, str)),
    "Object": (f"{OBJECT} and not _partial_", lambda value: _is_object(value) and not value.get("_partial_")),
    "Any": _ANYTHING,
    "object": _ANYTHING,
}
_LISTS = ("list", "tuple", "set", "frozenset", "sequence", "iterable", "collection")
_MAPPINGS = ("dict", "mapping", "mutablemapping")


def _in_words(kinds: Sequence[Kind]) -> str:
    return " or ".join(word for word, _ in kinds)


def _any(value: Any, kinds: Sequence[Kind]) -> bool:
    return any(test(value) for _, test in kinds)


def _kinds(annotation: ast.expr | None, module: str) -> list[Kind]:
    """Returns the alternatives of an annotation in a module; an annotation that is not understood accepts anything."""
    match annotation:
        case ast.Constant(value=None):
            return [_PLAIN["None"]]
        case ast.Constant(value=str(text)):
            return _kinds(ast.parse(text, mode="eval").body, module)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return [*_kinds(left, module), *_kinds(right, module)]
        case ast.Subscript(value=generic, slice=inner):
            items = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            return _generic(ast.unparse(generic).rpartition(".")[2], items, module)
        case ast.Name() | ast.Attribute():
            name = ast.unparse(annotation).rpartition(".")[2]
            if name in _PLAIN:
                return [_PLAIN[name]]
            if name.lower() in (*_LISTS, *_MAPPINGS):
                return _generic(name, [], module)
            found = resolve(annotation, module)
            if found and isinstance(found.node, ast.Assign | ast.AnnAssign):
                return _kinds(found.node.value, found.module)
            if name == "Callable" or (found and isinstance(found.node, ast.ClassDef)):
                return [_SOME_OBJECT]
    return [_ANYTHING]


def _generic(name: str, items: Sequence[ast.expr], module: str) -> list[Kind]:
    inner = [_kinds(item, module) for item in items if not (isinstance(item, ast.Constant) and item.value is ...)]
    if name in ("Union", "Optional"):
        return [kind for kinds in inner for kind in kinds] + ([_PLAIN["None"]] if name == "Optional" else [])
    if name == "Literal":
        return [_literal(item.value) for item in items if isinstance(item, ast.Constant)]
    if name == "Annotated" and isinstance(items[1], ast.Call):
        return [_between(kind, *map(ast.literal_eval, items[1].args)) for kind in inner[0]]
    if name.lower() in _MAPPINGS:
        of = inner[1] if len(inner) == 2 else [_ANYTHING]
        return [("a mapping", lambda value: isinstance(value, dict) and all(_any(item, of) for item in value.values()))]
    if name.lower() == "tuple" and inner and len(inner) == len(items):
        each = ", ".join(map(_in_words, inner))
        return [_list(f" of {len(inner)} ({each})", lambda v: len(v) == len(inner) and all(map(_any, v, inner)))]
    if name.lower() in _LISTS:
        of = inner[0] if inner else [_ANYTHING]
        each = "" if of == [_ANYTHING] else f" ({_in_words(of)} each)"
        return [_list(each, lambda v: all(_any(item, of) for item in v))]
    return [_SOME_OBJECT] if name in ("Callable", "type", "Type") else [_ANYTHING]


def _literal(choice: Any) -> Kind:
    return (str(choice), lambda value: value == choice and type(value) is type(choice))


def _list(words: str, test: Callable[[list[Any]], bool]) -> Kind:
    return (f"a list{words}", lambda value: _is_object(value) or (isinstance(value, list) and test(value)))


def _between(kind: Kind, low: float, high: float = math.inf) -> Kind:
    word, test = kind
    limits = f"at least {low}" if high == math.inf else f"in {low} .. {high}"
    return (f"{word} {limits}", lambda value: test(value) and low <= value <= high)
