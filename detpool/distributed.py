"""The few things the package asks of torch.distributed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist
from lightning.fabric.utilities.rank_zero import rank_zero_only

T = TypeVar("T")


def rank_and_world_size() -> tuple[int, int]:
    """Number of this process and how many there are; (0, 1) where there is no process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gather(item: T) -> list[T] | None:
    """The items of all processes by rank, on the main process; None on the others.

    Collective: every process of the default group must call it.

    Args:
        item: a picklable object of this process.
    """
    rank, world_size = rank_and_world_size()
    if world_size == 1:
        return [item]
    gathered: list[Any] | None = [None] * world_size if rank == 0 else None
    dist.gather_object(item, gathered)
    return gathered


def compute_on_main_process(function: Callable[[], T]) -> T:
    """What a function returns on the main process, on every process. Collective.

    Args:
        function: called on the main process alone; what it returns must be picklable.

    Raises:
        ValueError: the function raises one, which every process then does.
        RuntimeError: on the other processes, if it raises anything else: none is left waiting.
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
    """Whether this is the process that prints and writes files; known before there is a process group."""
    return getattr(rank_zero_only, "rank", 0) == 0


def say(text: str) -> None:
    """Prints once, however many processes there are."""
    if is_main_process():
        print(text, flush=True)
