"""Times of several calls taken in turns, and what to say of them."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

PAUSE = 0.005
"""Seconds between calls: OpenMP's workers keep their cores busy for some milliseconds after a call has returned."""
LEAST_ROUNDS = 5


@dataclass(frozen=True)
class Summary:
    """Seconds of one call."""

    median: float
    p20: float
    p80: float
    rounds: int


def summarise(seconds: Sequence[float]) -> Summary:
    """Median and 20th and 80th percentile, linear between the two nearest times."""
    p20, median, p80 = np.percentile(seconds, [20, 50, 80])
    return Summary(float(median), float(p20), float(p80), len(seconds))


def interleave(calls: Mapping[str, Callable[[], object]], rounds: int, budget: float) -> dict[str, list[float]]:
    """Time each call once a round, so that whatever slows the machine down for a while slows all of them.

    The order within a round is drawn anew (from a fixed seed), lest one call always follows the same other; the first
    round is not counted.

    Args:
        calls: name to call; what it returns is dropped outside the measured time.
        rounds: the most rounds that count.
        budget: seconds after which no further round begins, once `LEAST_ROUNDS` (or `rounds`, if less) are done.

    Returns:
        The seconds of each call, round by round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    shuffle = random.Random(0).shuffle
    begin = time.perf_counter()
    collecting = gc.isenabled()
    gc.disable()
    try:
        for number in range(rounds + 1):
            if number > LEAST_ROUNDS and time.perf_counter() - begin > budget:
                break
            shuffle(order)
            for name in order:
                time.sleep(PAUSE)
                start = time.perf_counter()
                result = calls[name]()
                end = time.perf_counter()
                del result
                if number:
                    seconds[name].append(end - start)
    finally:
        if collecting:
            gc.enable()
    return seconds
