"""Compiling kernels with numba, cached on disk where a folder can be written."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba

# numba looks at the file of a kernel only, not at those of the kernels that it calls, to see whether a cache is stale.
_SOURCES = hashlib.sha256(
    b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
).hexdigest()


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, compiled, to be called from Python; releases the GIL."""
    return _compile(function, _FAST)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, compiled, to be called from kernels only: from Python it would crash.

    As in :func:`kernel`, reductions over channels may be reordered, always in the same way, so that they vectorise, and
    products and sums may be fused; NaN and infinity are kept.
    """
    return _compile(function, _FAST, **_INNER)


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, its body put where kernels call it, and compiled as they are.

    For what inner loops hand tuples of arrays to: such a call takes longer than the little that it does.
    """
    return _compile(function, False, inline="always", **_INNER)


def exact_kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """As :func:`kernel`, with each operation rounded as it is written.

    Where bins lie must not depend on the compiler.
    """
    return _compile(function, False)


def exact(function: Callable[..., Any]) -> Callable[..., Any]:
    """As :func:`exact_kernel`, to be called from kernels only."""
    return _compile(function, False, **_INNER)


_FAST = {"contract", "reassoc", "nsz"}
_INNER = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}  # half of the time that compiling takes


def _compile(function: Callable[..., Any], fastmath: set[str] | bool, **options: bool | str) -> Callable[..., Any]:
    # Division by 0 as in NumPy: Python's error for it would keep loops from being vectorised.
    rest: dict[str, Any] = {"nogil": True, "fastmath": fastmath, "error_model": "numpy", **options}
    function.__qualname__ += f"_{_SOURCES[:16]}"  # part of the name of the cache's files
    try:
        return numba.njit(cache=True, **rest)(function)
    except RuntimeError:  # no folder to cache in can be written
        return numba.njit(**rest)(function)
