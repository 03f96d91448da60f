"""Helpers for the few uses of torch.distributed in the package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist
from lightning.fabric.utilities.rank_zero import rank_zero_only

T = TypeVar("T")


def rank_and_world_size() -> tuple[int, int]:
    """Returns the rank of this process and the number of processes; (0, 1) without a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gather(item: T) -> list[T] | None:
    """Gathers one item from each process. Collective: every process of the default group must call it.

    Args:
        item: picklable item of this process.

    Returns:
        On the main process the items of all processes in order of rank, on the others None.
    """
    rank, world_size = rank_and_world_size()
    if world_size == 1:
        return [item]
    gathered: list[Any] | None = [None] * world_size if rank == 0 else None
    dist.gather_object(item, gathered)
    return gathered


def compute_on_main_process(function: Callable[[], T]) -> T:
    """Calls a function on the main process and returns its result on every process. Collective.

    Args:
        function: called on the main process only; its result must be picklable.

    Raises:
        ValueError: On every process, if the function raises ValueError.
        RuntimeError: On the other processes, if the function raises another error, so that none is left waiting. The
            main process raises the original error.
    """
    rank, world_size = rank_and_world_size()
    if world_size == 1:
        return function()
    value, error = None, None
    if rank == 0:
        try:
            value = function()
        except Exception as caught:
            error = caught
    outcome: list[Any] = [value, error and (type(error).__name__, isinstance(error, ValueError), str(error))]
    dist.broadcast_object_list(outcome)
    if error is not None:
        raise error
    value, fault = outcome
    if fault is not None:
        name, is_value_error, text = fault
        raise ValueError(text) if is_value_error else RuntimeError(f"the main process ended with {name}: {text}")
    return value


def is_main_process() -> bool:
    """Returns whether this is the process that prints and writes files. Works before there is a process group."""
    return getattr(rank_zero_only, "rank", 0) == 0


def say(text: str) -> None:
    """Prints a text on the main process only."""
    if is_main_process():
        print(text, flush=True)
