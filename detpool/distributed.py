"""The few things the package asks of torch.distributed."""

from __future__ import annotations

from typing import TypeVar

import torch.distributed as dist
from lightning.fabric.utilities.rank_zero import rank_zero_only

T = TypeVar("T")


def rank_and_world_size() -> tuple[int, int]:
    """Number of this process and how many there are; (0, 1) where there is no process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gather_lists(items: list[T]) -> list[T]:
    """The lists of all processes, concatenated by rank; `items` itself where there is no process group.

    Collective: every process of the default group must call it, and every process gets the whole list.

    Args:
        items: picklable objects of this process; lengths may differ between processes.
    """
    _, world_size = rank_and_world_size()
    if world_size == 1:
        return items
    gathered: list[list[T]] = [[] for _ in range(world_size)]
    dist.all_gather_object(gathered, items)
    return [item for part in gathered for item in part]


def is_main_process() -> bool:
    """Whether this is the process that prints and writes files; known before there is a process group."""
    return getattr(rank_zero_only, "rank", 0) == 0


def say(text: str) -> None:
    """Prints once, however many processes there are."""
    if is_main_process():
        print(text, flush=True)
