"""Implementations of the two primitives, and the choice between them.

A backend is a module of this package with ``reasons_against``, which lists why it cannot serve a call, and functions
for the calls that it can serve: those of ``reference``, or of ``triton``, which begins with bins where the others take
taps. The first backend of ``ORDER`` without a reason runs; modules are imported when first asked.
"""

from importlib import import_module
from types import ModuleType

from torch import Tensor

ORDER = ("triton", "cpu", "reference")


class BackendError(RuntimeError):
    """A backend was asked for by name and cannot serve the call."""


def check_name(backend: str | None) -> str:
    """``backend`` as the primitives take it: a known name, or the empty string for the first that can serve."""
    if backend is None:
        return ""
    if backend not in ORDER:
        raise ValueError(f"backend must be None or one of {', '.join(map(repr, ORDER))}, got {backend!r}")
    return backend


def _ask(name: str, primitive: str, tensors: dict[str, Tensor]) -> tuple[ModuleType | None, list[str]]:
    try:
        module = import_module(f"{__name__}.{name}")
    except ImportError as error:
        return None, [f"it cannot be imported: {error}"]
    return module, module.reasons_against(primitive, tensors)


def choose(backend: str, primitive: str, tensors: dict[str, Tensor]) -> ModuleType:
    """The module that will compute ``primitive`` on these tensors.

    Raises:
        BackendError: the backend asked for, or every backend, has reasons against the call.
    """
    reasons: dict[str, list[str]] = {}
    for name in (backend,) if backend else ORDER:
        module, reasons[name] = _ask(name, primitive, tensors)
        if module is not None and not reasons[name]:
            return module
    for name in ORDER:
        if name not in reasons:
            reasons[name] = _ask(name, primitive, tensors)[1]
    got = "\n".join(f"  {k}: {tuple(t.shape)} {t.dtype} on {t.device}" for k, t in tensors.items())
    why = "\n".join(f"  {name}: {'; '.join(r) or 'could serve this call'}" for name, r in reasons.items())
    who = f"backend {backend!r} cannot" if backend else "no backend can"
    raise BackendError(f"{who} compute {primitive} for\n{got}\nReasons:\n{why}")
