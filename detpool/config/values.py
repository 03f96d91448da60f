"""Whether a value of a config is of the type that an annotation asks for."""

from __future__ import annotations

import collections.abc
import math
import types
from dataclasses import dataclass
from typing import Annotated, Any, ForwardRef, Literal, TypeVar, Union, get_args, get_origin

_UNIONS = (Union, types.UnionType)
_LISTS = (list, tuple, set, frozenset, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)
_MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}

_OBJECT = "an object (a mapping with _target_)"


@dataclass(frozen=True)
class Between:
    """A range for numbers, `Annotated[int, Between(0, 9)]`, with its ends."""

    low: float
    high: float = math.inf

    def __str__(self) -> str:
        return f"at least {self.low}" if math.isinf(self.high) else f"in {self.low} .. {self.high}"


class Built:
    """Annotation of a mapping with a `_target_` that is called when the run begins."""


class Factory:
    """Annotation of a mapping with a `_target_`, usually `_partial_`, whose result is called later."""


UNKNOWN = object()
"""A value that is not known yet, which fits every annotation."""


def fits(value: Any, annotation: Any) -> bool:
    """Whether a plain value (of YAML) is of an annotated type; whatever is no plain type fits any mapping.

    A mapping with a `_target_` becomes an object that nothing is known of: it fits all that is not a plain type. A
    whole number is a number; true and false are none.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    is_object = isinstance(value, dict) and "_target_" in value
    if value is UNKNOWN or annotation in (Any, object) or isinstance(annotation, str | ForwardRef | TypeVar):
        return True
    if origin is Annotated:
        return fits(value, arguments[0]) and all(
            bound.low <= value <= bound.high
            for bound in arguments[1:]
            if isinstance(bound, Between) and not isinstance(value, dict | list | str | None)
        )
    if origin in _UNIONS:
        return any(fits(value, argument) for argument in arguments)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in arguments)
    if annotation in (None, type(None)):
        return value is None
    if annotation in (int, float, bool):
        if annotation is float and isinstance(value, float) and math.isnan(value):
            return False
        return isinstance(value, (int, float) if annotation is float else annotation) and (
            annotation is bool or not isinstance(value, bool)
        )
    if annotation is str:
        return isinstance(value, str)
    if annotation in (Built, Factory):
        return is_object and not (annotation is Built and value.get("_partial_"))
    if is_object:
        return True
    if (origin or annotation) in _LISTS:
        return isinstance(value, list) and _items_fit(value, origin, arguments)
    if (origin or annotation) in _MAPPINGS:
        return isinstance(value, dict) and (not arguments or all(fits(item, arguments[1]) for item in value.values()))
    return isinstance(value, annotation) if isinstance(annotation, type) else False


def _items_fit(items: list[Any], origin: Any, arguments: tuple[Any, ...]) -> bool:
    if origin is tuple and Ellipsis not in arguments:
        return len(items) == len(arguments) and all(map(fits, items, arguments))
    return not arguments or all(fits(item, arguments[0]) for item in items)


def accepted(annotation: Any) -> str:
    """What fits an annotation, in words: `a whole number or null`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return " ".join(
            [accepted(arguments[0]), *(str(bound) for bound in arguments[1:] if isinstance(bound, Between))]
        )
    if origin in _UNIONS:
        words = dict.fromkeys(accepted(argument) for argument in arguments)
        plain = [word for word in words if word not in (_OBJECT, "null")]
        return " or ".join(word for word in words if word != _OBJECT or not plain)
    if origin is Literal:
        return " or ".join(dict.fromkeys(map(str, arguments)))
    if annotation in _WORDS or annotation is None:
        return _WORDS[type(None) if annotation is None else annotation]
    if (origin or annotation) in _LISTS:
        if origin is tuple and Ellipsis not in arguments:
            return f"a list of {len(arguments)} ({', '.join(map(accepted, arguments))})"
        return f"a list ({accepted(arguments[0])} each)" if arguments and arguments[0] is not Any else "a list"
    if (origin or annotation) in _MAPPINGS:
        return "a mapping"
    if annotation is Built:
        return f"{_OBJECT} and not _partial_"
    return _OBJECT
