"""Python's search for garbage, left out where there are many objects."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collection_paused() -> Iterator[None]:
    """Nothing is searched for cycles meanwhile; also a decorator.

    The search walks through all objects again and again as their number grows. Those that refer to each other in no
    cycle are freed without it.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
