"""What evaluation needs from torch.distributed."""

from __future__ import annotations

from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")


def gather_lists(items: list[T]) -> list[T]:
    """The lists of all processes, concatenated by rank; `items` itself where there is no process group.

    Collective: every process of the default group must call it, and every process gets the whole list.

    Args:
        items: picklable objects of this process; lengths may differ between processes.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return items
    gathered: list[list[T]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, items)
    return [item for part in gathered for item in part]
