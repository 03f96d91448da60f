"""Records of runs and benchmarks: their numbers, and what is needed to judge and reproduce them."""

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

import detpool
from detpool.files import write_json_atomically

_PACKAGES = ("torch", "torchvision", "lightning")


def write_metrics(
    path: str | Path,
    metrics: Mapping[str, float],
    *,
    seconds: float,
    errors: Mapping[str, int] | None = None,
    mask_errors: Mapping[str, int] | None = None,
    step_seconds: float | None = None,
    peak_memory_bytes: int | None = None,
    command: Sequence[str] | None = None,
    validation: Mapping[str, float] | None = None,
    checkpoint: str | None = None,
    images: Mapping[str, int] | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Writes `metrics.json` atomically.

    The file holds `metrics` (NaN and infinity, which JSON does not support, become null), the arguments below by name
    (null for what was not measured) and the result of `provenance`.

    Args:
        path: the file.
        metrics: metrics by name, e.g. the result of `DetectionEvaluator.compute`.
        seconds: wall-clock time of the run in seconds, rounded to milliseconds.
        errors: error counts of the boxes, from `detpool.evaluation.errors.error_decomposition`.
        mask_errors: error counts of the masks, likewise.
        step_seconds: median wall-clock time of a training step in seconds.
        peak_memory_bytes: peak memory of the training steps in bytes.
        command: the command line. Default: that of this process.
        validation: the metric that selects the best epoch, for the evaluated weights on the validation set.
        checkpoint: the file of the evaluated weights, relative to the run directory if it is inside it.
        images: number of images of each split that was read: `train`, `val`, `test`.
        notes: sentences that a reader of the metrics should know.

    Raises:
        WriteError: If the file cannot be written.
    """
    record = {
        "metrics": _finite(metrics),
        "validation": None if validation is None else _finite(validation),
        "checkpoint": checkpoint,
        "images": None if images is None else dict(images),
        "notes": list(notes),
        "errors": None if errors is None else dict(errors),
        "mask_errors": None if mask_errors is None else dict(mask_errors),
        "seconds": round(float(seconds), 3),
        "step_seconds": step_seconds,
        "peak_memory_bytes": peak_memory_bytes,
        **provenance(command),
    }
    write_json_atomically(path, record)


def read_metrics(path: str | Path) -> dict[str, Any]:
    """Reads a record that `write_metrics` wrote, with NaN for metrics that are null.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not JSON or not such a record. The message names the file and the fault.
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


def provenance(command: Sequence[str] | None = None, packages: Iterable[str] = ()) -> dict[str, Any]:
    """Returns the command, code and hardware that produced some numbers, to store in a JSON file beside them.

    Args:
        command: the words of the command line. Default: those of this process.
        packages: packages to record the versions of, in addition to torch, torchvision and Lightning.

    Returns:
        A dict of `command`; `git`, the `git_state` of detpool's own checkout; `versions` of Python, detpool (which
        identifies the code of an installed detpool) and the packages, None for one that is not installed; and
        `hardware`: `platform`, `cpu` (model), `cores` that this process may use, and `gpus` (models).
    """
    import torch  # takes seconds, and reading records does not need it

    versions: dict[str, str | None] = {"python": platform.python_version(), "detpool": detpool.__version__}
    for package in dict.fromkeys((*_PACKAGES, *packages)):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "command": shlex.join(sys.argv if command is None else command),
        "git": git_state(Path(detpool.__file__).parents[1]),
        "versions": versions,
        "hardware": {
            "platform": platform.platform(),
            "cpu": _cpu_model(),
            # A container or a scheduler may have limited them.
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
    }


def program(script: str) -> str:
    """Returns the first word of a command line: the script in a checkout, `detpool-NAME` in an installation.

    Args:
        script: path of the script relative to the checkout: `train.py`, `tools/report.py`.
    """
    return script if (Path(detpool.__file__).parents[1] / script).is_file() else f"detpool-{Path(script).stem}"


def shell_command(words: Sequence[str]) -> str:
    """Returns a command line as typed in a shell: `python train.py ...`, or `detpool-train ...` in an installation.

    Args:
        words: the program and its arguments, as in `sys.argv`.
    """
    first = Path(words[0])
    return shlex.join(["python", *words] if first.suffix == ".py" else [first.name, *words[1:]])


def git_state(checkout: Path) -> dict[str, Any]:
    """Returns the revision of a git checkout, and whether its files differ from it.

    Args:
        checkout: the top folder of the checkout.

    Returns:
        `revision` (40 hex digits) and `dirty` (true if a tracked file differs or a file is neither tracked nor
        ignored). Both are None if git is missing, or if `checkout` is not the top of a checkout with a commit: a
        package installed inside somebody else's repository does not have that repository's revision.
    """
    top = _git(checkout, "rev-parse", "--show-toplevel")
    if top is not None and Path(top) == checkout.resolve():
        revision, changes = _git(checkout, "rev-parse", "HEAD"), _git(checkout, "status", "--porcelain")
        if revision is not None and changes is not None:
            return {"revision": revision, "dirty": bool(changes)}
    return {"revision": None, "dirty": None}


def _git(folder: Path, *arguments: str) -> str | None:
    """Returns the output of a git command; None if git is missing or fails."""
    # Inside a git hook these variables point at another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    # Without locks, because `git status` would write to the index, and truncate it on a full disk.
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    return {name: float(value) if math.isfinite(value) else None for name, value in metrics.items()}
