"""Joules, where the machine counts them."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

POWERCAP = Path("/sys/class/powercap")
UNAVAILABLE = "not available: no counter of energy can be read (Linux's powercap for processors, NVML for GPUs)"

Meter = Callable[[], list[float]]
"""Joules by counter, each from a moment of its own."""


def find_meter(device: torch.device, powercap: Path = POWERCAP) -> tuple[Meter, list[float]]:
    """A reading of the counters of a device, and the joules at which each of them begins anew; no counter: nothing.

    Args:
        device: of a CPU the packages of all processors (Intel's and AMD's RAPL), which count what other programs use
            too; of a GPU the one that it is, by NVML.
        powercap: where Linux shows the counters of processors.
    """
    if device.type == "cuda":
        return _nvml(device)
    # Zones below a package, intel-rapl:0:0, are parts of it.
    zones = [zone for zone in sorted(powercap.glob("*rapl:*")) if zone.name.count(":") == 1]
    files = [zone / "energy_uj" for zone in zones]
    try:
        limits = [1e-6 * float((zone / "max_energy_range_uj").read_text()) for zone in zones]
        _ = [file.read_text() for file in files]  # which root alone may do in many places
    except (OSError, ValueError):
        return list, []
    return (lambda: [1e-6 * float(file.read_text()) for file in files]), limits


def joules_between(before: list[float], after: list[float], limits: list[float]) -> float:
    """The sum over counters, each of which may have begun anew once."""
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
    except Exception:  # not installed, no driver, or a GPU that does not count
        return list, []
    return lambda: [1e-3 * pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)], [float("inf")]
