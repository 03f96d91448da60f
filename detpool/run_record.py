"""metrics.json: the numbers of a run and what is needed to judge them later."""

from __future__ import annotations

import json
import math
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import detpool
from detpool.files import write_text_atomically

_PACKAGES = ("detpool", "torch", "torchvision", "lightning")


def write_metrics(
    path: str | Path,
    metrics: Mapping[str, float],
    *,
    seconds: float,
    errors: Mapping[str, int] | None = None,
    step_seconds: float | None = None,
    peak_memory_bytes: int | None = None,
    command: Sequence[str] | None = None,
    validation: Mapping[str, float] | None = None,
    checkpoint: str | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Write metrics.json atomically.

    The file holds `metrics` (NaN and infinity, which JSON lacks, become null), the arguments below by their names (null
    for what was not measured), `git` (`revision` and `dirty` of detpool's own checkout, null where it is none),
    `versions` and `hardware`.

    Args:
        path: the file.
        metrics: name to number, e.g. what `DetectionEvaluator.compute` returns.
        seconds: wall-clock time of the run.
        errors: counts of `detpool.evaluation.errors.error_decomposition`.
        step_seconds: median wall-clock time of a training step.
        peak_memory_bytes: most memory that a training step took.
        command: the command line, default that of this process.
        validation: the metric that chooses epochs, of the evaluated weights on the validation set.
        checkpoint: the file of the evaluated weights, relative to the run directory where it is below it.
        notes: sentences on what to beware of in the metrics.

    Raises:
        WriteError: the file cannot be written.
    """
    record = {
        "metrics": {name: _finite(float(value)) for name, value in metrics.items()},
        "validation": None if validation is None else {name: _finite(float(v)) for name, v in validation.items()},
        "checkpoint": checkpoint,
        "notes": list(notes),
        "errors": None if errors is None else dict(errors),
        "seconds": round(float(seconds), 3),
        "step_seconds": step_seconds,
        "peak_memory_bytes": peak_memory_bytes,
        "command": shlex.join(sys.argv if command is None else command),
        "git": git_state(Path(detpool.__file__).parents[1]),
        "versions": versions(_PACKAGES),
        "hardware": hardware(),
    }
    write_text_atomically(path, json.dumps(record, indent=2, allow_nan=False) + "\n")


def read_metrics(path: str | Path) -> dict[str, Any]:
    """What `write_metrics` wrote, with NaN for the metrics that are null.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not JSON or not such a record; the message names the file and what is wrong.
    """
    path = Path(path)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # includes JSONDecodeError and UnicodeDecodeError
        raise ValueError(f"{path} is not valid JSON (a run that was cut off?): {error}") from error
    metrics = record.get("metrics") if isinstance(record, dict) else None
    if not isinstance(metrics, dict):
        raise ValueError(f"{path} is not a metrics file: it has no object 'metrics'")
    for name, value in metrics.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"{path}: metric {name!r} must be a number or null, got {value!r}")
    return {**record, "metrics": {name: math.nan if value is None else value for name, value in metrics.items()}}


def git_state(checkout: Path) -> dict[str, Any]:
    """Revision of a git checkout, and whether its files differ from it.

    Args:
        checkout: the top folder of the checkout.

    Returns:
        `revision` (40 hex digits) and `dirty` (true if a tracked file differs or a file is neither tracked nor
        ignored). Both are None where git is missing, or `checkout` is not the top of a checkout with a commit: a
        package installed below somebody else's repository has not that repository's revision.
    """
    unknown = {"revision": None, "dirty": None}
    top = _git(checkout, "rev-parse", "--show-toplevel")
    if top is None or Path(top) != checkout.resolve():
        return unknown
    revision, changes = _git(checkout, "rev-parse", "HEAD"), _git(checkout, "status", "--porcelain")
    if revision is None or changes is None:
        return unknown
    return {"revision": revision, "dirty": bool(changes)}


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints; None if it is missing or fails."""
    # Inside a git hook these variables point at another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            # Without locks: git's status would write to the checkout's index, and leave half of it on a full disk.
            ["git", "--no-optional-locks", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            env=environment,
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Versions of Python and of installed packages, None for one that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def hardware() -> dict[str, Any]:
    """The platform, the processor's model, the cores this process may use, and the models of the GPUs."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"platform": platform.platform(), "cpu": _cpu_model(), "cores": _cores(), "gpus": gpus}


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _cores() -> int:
    """Cores this process may use, which a container or a scheduler may have limited."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
