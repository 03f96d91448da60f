"""Energy in joules, on machines that have counters for it."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

POWERCAP = Path("/sys/class/powercap")
UNAVAILABLE = "not available: no counter of energy can be read (Linux's powercap for processors, NVML for GPUs)"

Meter = Callable[[], list[float]]
"""Function that returns the joules of each counter, since a time that is specific to the counter."""


def find_meter(device: torch.device, powercap: Path = POWERCAP) -> tuple[Meter, list[float]]:
    """Returns a function that reads the energy counters of a device, and the joules at which each counter wraps around.

    Without counters, both lists are empty.

    Args:
        device: for a CPU, the counters are those of all processor packages (RAPL of Intel and AMD), which include the
            energy of other programs; for a GPU, its own counter, read by NVML.
        powercap: folder in which Linux provides the counters of processors.
    """
    if device.type == "cuda":
        return _nvml(device)
    # Zones below a package, such as intel-rapl:0:0, are already included in it.
    zones = [zone for zone in sorted(powercap.glob("*rapl:*")) if zone.name.count(":") == 1]
    files = [zone / "energy_uj" for zone in zones]
    try:
        limits = [1e-6 * float((zone / "max_energy_range_uj").read_text()) for zone in zones]
        _ = [file.read_text() for file in files]  # on many systems, only root may read them
    except (OSError, ValueError):
        return list, []
    return (lambda: [1e-6 * float(file.read_text()) for file in files]), limits


def joules_between(before: list[float], after: list[float], limits: list[float]) -> float:
    """Joules between two readings, summed over counters, each of which may have wrapped around once."""
    return sum(
        then - now if then >= now else then - now + limit
        for now, then, limit in zip(before, after, limits, strict=True)
    )


def _nvml(device: torch.device) -> tuple[Meter, list[float]]:
    try:
        pynvml = import_module("pynvml")
        pynvml.nvmlInit()
        handle: Any = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:  # not installed, no driver, or a GPU without a counter
        return list, []
    return lambda: [1e-3 * pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)], [float("inf")]
