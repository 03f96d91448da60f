"""Work on all cores that PyTorch may use, for compiled code that releases the GIL.

Plain Python threads, because they sleep when idle (spinning workers would take cores from the convolutions around a
pooling call), may be used by several threads at once, and can be replaced after a fork. The calling thread works too.
"""

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    global _pool
    _pool = None


os.register_at_fork(after_in_child=_forget_pool)  # a forked child inherits the pool but none of its threads


def run(tasks: int, task: Callable[[int], None], threads: int | None = None) -> None:
    """Call ``task(0) .. task(tasks - 1)`` on up to ``threads`` threads; return when all are done.

    Default: ``torch.get_num_threads()``. Waking a thread takes longer than a little work.
    """
    global _pool
    threads = min(torch.get_num_threads() if threads is None else threads, tasks)
    if threads <= 1:
        for number in range(tasks):
            task(number)
        return
    if _pool is None:
        _pool = ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="detpool")
    numbers = itertools.count()

    def work() -> None:
        for number in numbers:
            if number >= tasks:
                return
            task(number)

    helpers = [_pool.submit(work) for _ in range(threads - 1)]
    try:
        work()
    finally:
        for helper in helpers:
            if not helper.cancel():
                helper.result()
