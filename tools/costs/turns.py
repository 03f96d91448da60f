"""Times several models in turns, so that a temporary slowdown of the machine affects all of them."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence

from detpool.garbage import collection_paused

LEAST_TURNS = 10
"""Minimum number of turns for a meaningful 95 % interval of a median."""

Seconds = dict[str, list[float]]
"""Seconds of each phase, turn by turn."""


def order_of(turn: int, names: Sequence[str]) -> list[str]:
    """Returns the order of the models in a turn: every second turn is reversed, and the first changes every two turns.

    Thus each model runs at each place, and after each other model, about equally often, which balances the effects of
    caches and clock rates.
    """
    first = turn // 2 % len(names)
    order = [*names[first:], *names[:first]]
    return order[::-1] if turn % 2 else order


def take_turns(
    calls: Mapping[str, Callable[[], Mapping[str, float]]],
    turns: int,
    budget: float,
    enough: Callable[[Mapping[str, Seconds]], bool] = lambda found: False,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Seconds]:
    """Calls each of `calls` once per turn; the first turn, in which caches fill, is not counted.

    Args:
        calls: functions by name; each does the same work each time, and returns its seconds by phase.
        turns: maximum number of turns.
        budget: seconds after which no further turn begins, once `LEAST_TURNS` (or `turns`, if less) are done.
        enough: function that decides from the results so far whether to stop, likewise after `LEAST_TURNS` turns.
        clock: clock for the budget, in seconds.

    Returns:
        For each name, the seconds of each turn by phase. The i-th values of all lists are from the same turn.
    """
    found: dict[str, Seconds] = {name: {} for name in calls}
    begin = clock()
    gc.collect()
    gc.freeze()  # so that garbage collection between turns skips all existing objects
    try:
        for turn in range(-1, turns):
            if turn >= LEAST_TURNS and (clock() - begin > budget or enough(found)):
                break
            gc.collect()
            with collection_paused():
                for name in order_of(turn, list(calls)):
                    seconds = calls[name]()
                    for phase, value in seconds.items() if turn >= 0 else ():
                        found[name].setdefault(phase, []).append(value)
    finally:
        gc.unfreeze()
    return found
