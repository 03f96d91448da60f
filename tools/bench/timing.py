"""Times several calls in turns, and summarizes the times."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.benchmark import Timer

LEAST_ROUNDS = 5


@dataclass(frozen=True)
class Summary:
    """Summary of the seconds of one call."""

    median: float
    p20: float
    p80: float
    rounds: int

    def columns(self, unit: str = "ms") -> dict[str, float]:
        """Columns for a file of results, in milliseconds or (`s`) seconds."""
        times = {"median": self.median, "p20": self.p20, "p80": self.p80}
        return {f"{name}_{unit}": time * {"ms": 1e3, "s": 1}[unit] for name, time in times.items()}


def measure(calls: Mapping[str, Callable[[], object]], rounds: int, budget: float) -> dict[str, Summary]:
    """Summaries of the times of :func:`interleave`."""
    return {name: summarize(seconds) for name, seconds in interleave(calls, rounds, budget).items()}


def summarize(seconds: Sequence[float]) -> Summary:
    """Returns median and 20th and 80th percentile, with linear interpolation."""
    p20, median, p80 = np.percentile(seconds, [20, 50, 80])
    return Summary(float(median), float(p20), float(p80), len(seconds))


def interleave(calls: Mapping[str, Callable[[], object]], rounds: int, budget: float) -> dict[str, list[float]]:
    """Time each call once per round, so that a temporary slowdown of the machine affects all of them.

    The order within each round is random (with a fixed seed), so that a call does not always follow the same other one.
    Each call is made twice before it is timed, so that threads and cached data of other calls have no influence.

    Args:
        calls: Calls by name; their results are freed outside the measured time.
        rounds: Maximum number of rounds.
        budget: Seconds after which no further round begins, once `LEAST_ROUNDS` (or `rounds`, if less) are done.

    Returns:
        The seconds of each call, round by round; on a GPU from idle until idle.
    """
    threads = torch.get_num_threads()
    timers = {
        name: Timer("result = call()", globals={"call": call}, num_threads=threads) for name, call in calls.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    shuffle, begin = random.Random(0).shuffle, time.perf_counter()
    for number in range(rounds):
        if number >= LEAST_ROUNDS and time.perf_counter() - begin > budget:
            break
        order = list(calls)
        shuffle(order)
        for name in order:
            seconds[name].append(timers[name].timeit(1).median)
    return seconds
