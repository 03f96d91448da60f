"""The most memory that a call holds beyond what was held before it."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """What PyTorch's allocator had handed out at the worst moment of a call, less what it had before.

    Of a training step that is activations that the backward needs, gradients, and what operations need besides; not the
    parameters, which were there. What compiled code of others allocates for itself is not known to PyTorch. The same on
    a GPU, where it is `torch.cuda.max_memory_allocated`, and on a CPU, of which the profiler notes each allocation.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=False) as profiler:
        call()
    assert profiler.profiler is not None
    assert profiler.profiler.kineto_results is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = (event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return max(itertools.accumulate(changes, initial=0))
