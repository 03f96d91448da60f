"""The parameters of functions that hand further keywords on, for those who check a config against them."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from inspect import Parameter
from typing import Any, TypeVar

_F = TypeVar("_F", bound=Callable[..., Any])


def parameters_of(function: Callable[..., Any]) -> dict[str, Parameter]:
    """The parameters by name, their annotations evaluated where that is possible; others are `Any`.

    Raises:
        TypeError, ValueError: Python knows no signature of it.
    """
    signature = inspect.signature(function)
    # Of a class, the constructor that it may have from another module.
    code = inspect.unwrap(inspect.getattr_static(function, "__init__") if isinstance(function, type) else function)
    names: Mapping[str, Any] = getattr(code, "__globals__", {})
    return {
        name: parameter.replace(annotation=_evaluated(parameter.annotation, names))
        for name, parameter in signature.parameters.items()
    }


def hands_on(parameters: Mapping[str, Parameter], without: Iterable[str] = ()) -> Callable[[_F], _F]:
    """Decorates a function with `**keywords`, so that its signature names what they may be.

    Args:
        parameters: those of what the function calls, by the names that it takes them by.
        without: names that the function does not take.
    """

    def decorate(function: _F) -> _F:
        own = {name: p for name, p in parameters_of(function).items() if p.kind is not Parameter.VAR_KEYWORD}
        further = {
            name: parameter.replace(name=name, kind=Parameter.KEYWORD_ONLY)
            for name, parameter in parameters.items()
            if name not in own and name not in without
        }
        function.__signature__ = inspect.Signature([*own.values(), *further.values()])  # type: ignore[attr-defined]
        return function

    return decorate


def _evaluated(annotation: Any, names: Mapping[str, Any]) -> Any:
    if annotation is Parameter.empty:
        return Any
    if not isinstance(annotation, str):
        return annotation
    try:
        return typing.get_type_hints(type("", (), {"__annotations__": {"_": annotation}}), dict(names))["_"]
    except Exception:  # a name that only type checkers import, or anything else that an annotation may say
        return Any
