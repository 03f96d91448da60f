"""Times of several models taken in turns, so that whatever slows the machine down for a while slows all of them."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence

from detpool.garbage import collection_paused

LEAST_TURNS = 10
"""Fewer would leave no 95 % interval of a median worth the name."""

Seconds = dict[str, list[float]]
"""Of each phase, turn by turn."""


def order_of(turn: int, names: Sequence[str]) -> list[str]:
    """Who goes when: each second turn the other way round, each third begins with the next one.

    So a model comes after each other and at each place, whose caches and clock rates it finds, about equally often.
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
    """Calls all of `calls` once a turn; a first turn, in which caches fill, is not counted.

    Args:
        calls: by name; each returns its seconds by phase, and does the same work each time.
        turns: the most.
        budget: seconds after which no further turn begins, once `LEAST_TURNS` (or `turns`, if less) are done.
        enough: told what was found so far, whether that will do, asked likewise.
        clock: which tells the budget's seconds.

    Returns:
        for each name the seconds of each turn: those of one turn stand at the same place of all lists.
    """
    found: dict[str, Seconds] = {name: {} for name in calls}
    begin = clock()
    gc.collect()
    gc.freeze()  # the search between turns then passes over all that is there now, which would take it long
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
