"""What a call costs a GPU: time from idle to idle, time without the CPU in the way, its main kernel, its waits.

With the CPU as the device (Triton's interpreter) the same code runs, so that it is known to work before it meets a GPU;
the numbers are then those of the CPU and mean nothing.
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
    """What a profile says of one call."""

    kernels: float
    """launched, copies and fills included"""
    waits: float
    """of the CPU for the GPU"""
    busy_ms: float
    """of all kernels"""
    main_ms: float
    """of the kernel that takes longest"""
    main: str
    """its name"""


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
    """A call that replays the kernels of ``call`` as one CUDA graph; on a CPU ``call`` itself.

    Raises:
        RuntimeError: if the call waits for the GPU, or does something else that a graph cannot hold.
    """
    if device != "cuda":
        return call
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # as PyTorch asks for: what is made at the first calls must not be part of the graph
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def profile_call(call: Call, device: str, calls: int) -> Profile:
    """Kernels and waits of a call, averages of so many; it has been made before."""
    synchronize(device)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities) as record:
        for _ in range(calls):
            call()
        synchronize(device)
    kind = torch.profiler.DeviceType.CUDA if device == "cuda" else torch.profiler.DeviceType.CPU
    durations: dict[str, float] = {}
    kernels, waits = 0, -1 if device == "cuda" else 0  # without the one for the end
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
