"""Measures calls on a GPU: time from idle to idle, time without overhead of the CPU, the main kernel, and waits.

With the CPU as the device (Triton's interpreter), the same code runs, so that it can be tested without a GPU; the
numbers are then meaningless.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

Call = Callable[[], object]

WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "hipStreamSynchronize")


@dataclass(frozen=True)
class Profile:
    """Profile of one call."""

    kernels: float
    """Number of launched kernels, including copies and fills."""
    waits: float
    """Number of times that the CPU waits for the GPU."""
    busy_ms: float
    """Milliseconds of all kernels."""
    main_ms: float
    """Milliseconds of the kernel that takes longest."""
    main: str
    """Name of that kernel."""


def synchronize(device: str) -> None:
    """Wait until the device is idle; a CPU always is."""
    if device == "cuda":
        torch.cuda.synchronize()


def time_from_idle(call: Call, device: str, rounds: int) -> float:
    """Median milliseconds from an idle device until it is idle again."""
    seconds = []
    for _ in range(rounds):
        synchronize(device)
        begin = time.perf_counter()
        call()
        synchronize(device)
        seconds.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(seconds)


def capture(call: Call, device: str) -> Call:
    """Returns a function that replays the kernels of ``call`` as one CUDA graph; on a CPU, ``call`` itself.

    Raises:
        RuntimeError: If the call waits for the GPU, or does something else that a graph cannot contain.
    """
    if device != "cuda":
        return call
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # PyTorch requires warm-up calls: their initialization must not be part of the graph
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def profile_call(call: Call, device: str, calls: int) -> Profile:
    """Profiles a call, averaged over `calls` calls; it must have been made before, so that kernels are compiled."""
    synchronize(device)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities) as record:
        for _ in range(calls):
            call()
        synchronize(device)
    kind = torch.profiler.DeviceType.CUDA if device == "cuda" else torch.profiler.DeviceType.CPU
    durations: dict[str, float] = {}
    kernels, waits = 0, -1 if device == "cuda" else 0  # not counting the synchronization at the end
    for event in record.profiler.kineto_results.events():
        waits += event.name() in WAITS
        if event.device_type() == kind:
            kernels += 1
            durations[event.name()] = durations.get(event.name(), 0.0) + event.duration_ns() / 1e6
    main = max(durations, key=lambda name: durations[name], default="")
    return Profile(
        kernels=kernels / calls,
        waits=waits / calls,
        busy_ms=sum(durations.values()) / calls,
        main_ms=durations.get(main, 0.0) / calls,
        main=main,
    )
