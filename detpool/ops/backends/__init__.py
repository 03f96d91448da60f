"""Implementations of the two primitives, and the only choice between them.

A backend has ``reasons_against``, which lists why it cannot serve a call; the first of ``ORDER`` without a reason runs.
``reference`` is a composition of differentiable operations. The others have ``primitives``, with a function for each
operator of :mod:`~detpool.ops.weighted_sum` and :mod:`~detpool.ops.window_max`.
"""

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ..spec import Spec
from . import cpu, reference, triton

ORDER = ("triton", "cpu", "reference")

_BACKENDS: dict[str, Any] = {"triton": triton, "cpu": cpu, "reference": reference}
_chosen: dict[Any, str] = {}


class _Primitives(dict[str, Any]):
    def __missing__(self, name: str) -> Any:
        self[name] = import_module(f"{__name__}.{name}.primitives")
        return self[name]


PRIMITIVES = _Primitives()
"""The primitives of compiled backends, imported when first asked for: compilers take a second to import."""


class BackendError(RuntimeError):
    """A backend was asked for by name and cannot serve the call."""


def has_roi_grads(name: str, spec: Spec) -> bool:
    """Whether a compiled backend has gradients of RoIs for this description."""
    return _BACKENDS[name].has_roi_grads(spec)


def choose(backend: str | None, primitive: str, features: Tensor, spec: Spec) -> str:
    """The name of the backend that will compute ``primitive``: "weighted_sum" or "window_max".

    Raises:
        ValueError: If there is no backend of that name.
        BackendError: If the backend asked for has reasons against the call.
    """
    if torch.compiler.is_compiling():
        return _choose(backend, primitive, features, spec)
    key = (backend, primitive, features.dtype, features.device.type, spec.bins, spec.sampling, spec.ratio > 0)
    if key not in _chosen:
        _chosen[key] = _choose(backend, primitive, features, spec)
    return _chosen[key]


def list_reasons(primitive: str, features: Tensor, spec: Spec) -> dict[str, list[str]]:
    """Why each backend cannot compute ``primitive``; no reason for one that can."""
    return {name: _BACKENDS[name].reasons_against(primitive, features, spec) for name in ORDER}


def _choose(backend: str | None, primitive: str, features: Tensor, spec: Spec) -> str:
    if backend is not None and backend not in ORDER:
        raise ValueError(f"backend must be None or one of {', '.join(map(repr, ORDER))}, got {backend!r}")
    reasons = list_reasons(primitive, features, spec)
    name = backend or next(name for name in ORDER if not reasons[name])
    if not reasons[name]:
        return name
    why = "\n".join(f"  {name}: {'; '.join(r) or 'could serve this call'}" for name, r in reasons.items())
    raise BackendError(
        f"backend {backend!r} cannot compute {primitive} with bins {spec.bins!r} and sampling {spec.sampling!r} for\n"
        f"  features: {tuple(features.shape)} {features.dtype} on {features.device}\nReasons:\n{why}"
    )
