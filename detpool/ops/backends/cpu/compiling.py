"""Compiling kernels with numba, cached on disk where a folder can be written."""

from collections.abc import Callable
from typing import Any

import numba


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` as a kernel that releases the GIL.

    Reductions over channels may be reordered, always in the same way, so that they vectorise, and products and sums may
    be fused; NaN and infinity are kept.
    """
    return _compile(function, {"contract", "reassoc", "nsz"})


def exact(function: Callable[..., Any]) -> Callable[..., Any]:
    """As :func:`compiled`, with each operation rounded as it is written: where bins lie must not depend on the
    compiler."""
    return _compile(function, False)


def _compile(function: Callable[..., Any], fastmath: set[str] | bool) -> Callable[..., Any]:
    # Division by 0 as in NumPy: Python's error for it would keep loops from being vectorised.
    options: dict[str, Any] = {"nogil": True, "fastmath": fastmath, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder to cache in can be written
        return numba.njit(**options)(function)
