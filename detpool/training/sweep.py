"""A run of a sweep: skipped if finished, resumed if that gives the same result; its failure does not end the others."""

from __future__ import annotations

import contextlib
import math
import shutil
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from detpool.distributed import is_main_process, say
from detpool.errors import ConfigError, message_of
from detpool.files import WriteError, naming_full_disks
from detpool.run_record import read_metrics
from detpool.study.layout import check_same, fingerprint, read_status, write_status
from detpool.study.stopping import Worker
from detpool.training.checkpoints import find_last
from detpool.training.lines import named_lines
from detpool.training.runs import train

try:
    import fcntl
except ImportError:  # on Windows, the user must not start two sweeps in the same folders
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"


def train_in_sweep(config: DictConfig, command: Sequence[str], place: str, in_worker: bool) -> float | None:
    """Trains in `config.run_dir`, unless the run there is finished, and returns the metric that sweepers optimize.

    The metric is `evaluation.monitor` on the validation set, for the evaluated weights, even if another split is
    evaluated.

    A run that was interrupted or killed is resumed from its last checkpoint. A run that failed, or whose checkpoint
    lacks a validation, starts again. A run that fails writes its error to `status.json` and returns None.

    Args:
        config: the composed config. Existing files in its `run_dir` belong to a run with the same config.
        command: the command line of this run alone, for `metrics.json`.
        place: number of this run and of all runs, such as `2 of 4`.
        in_worker: whether this process is a worker for runs. If so, it survives an interrupted run but starts no
            further one, and the lines that it prints name the run.

    Raises:
        ConfigError: If the config names a checkpoint: runs of a sweep find their checkpoints in their own folders.
    """
    if config.ckpt_path is not None:
        raise ConfigError(
            f"ckpt_path={config.ckpt_path}: runs of a sweep find their own checkpoints; the same command resumes a "
            f"study, and without -m and study a single run is resumed"
        )
    if not in_worker:
        return _train(config, command, place)
    if Worker.stopped:
        return None
    try:
        with Worker.run(), named_lines(place):
            return _train(config, command, place)
    except (KeyboardInterrupt, SystemExit):
        Worker.stopped = True
        return None


def _train(config: DictConfig, command: Sequence[str], place: str) -> float | None:
    run_dir = Path(config.run_dir)
    try:
        with naming_full_disks(run_dir), _locked(run_dir) as free:
            if not free:
                say(f"{run_dir}: another process is working on it, skipped")
                return None
            if not run_dir.name.endswith(fingerprint(config)):
                check_same(run_dir, config)
            if (record := _finished(run_dir)) is not None:
                say(f"{run_dir}: finished, skipped")
                return _value(record, config)
            say(f"run {place}: {run_dir}")
            config.ckpt_path = _prepare(run_dir)
            with recorded(run_dir):
                train(config, command)
                return _value(read_metrics(run_dir / "metrics.json"), config)
    except Exception as error:
        message = message_of(error)
        if message is None:
            traceback.print_exc()
        print(f"{run_dir}: error: {message or repr(error)}", file=sys.stderr)
        return None


def _value(record: Mapping[str, Any], config: DictConfig) -> float | None:
    """The metric on the validation set, whichever split is reported; None if it is missing or NaN."""
    of = record["metrics"] if config.evaluation.split == "val" else record.get("validation") or {}
    value = of.get(config.evaluation.monitor)
    return None if value is None or math.isnan(value) else float(value)


@contextmanager
def recorded(run_dir: Path) -> Iterator[None]:
    """Records in `status.json` how a run ended if it does not finish, and re-raises the error.

    Errors caused by a full disk are raised as `WriteError`, wherever they occur.
    """
    try:
        with naming_full_disks(run_dir):
            yield
    except FloatingPointError as error:
        _record(run_dir, "diverged", str(error))
        raise
    except WriteError as error:
        # "interrupted", so that the run is resumed from its last checkpoint once there is space again.
        with contextlib.suppress(WriteError):  # the disk is still full, which is already reported
            write_status(run_dir, "interrupted", str(error))
        raise
    except Exception as error:
        message = message_of(error)
        if type(error).__name__ == "UncompletedJobError":  # raised by submitit when SLURM is about to end the job
            _record(run_dir, "interrupted")
        else:
            _record(run_dir, "failed", message or repr(error), "" if message else traceback.format_exc())
        raise
    except BaseException:  # Ctrl-C, or SystemExit after a signal, when the run has saved a checkpoint
        _record(run_dir, "interrupted")
        raise


def _record(run_dir: Path, state: str, error: str = "", text: str = "") -> None:
    if is_main_process():
        try:
            write_status(run_dir, state, error, text)
        except WriteError as write_error:  # must not hide how the run ended
            print(f"warning: {write_error}", file=sys.stderr)


def _finished(run_dir: Path) -> dict[str, Any] | None:
    try:
        return read_metrics(run_dir / "metrics.json")
    except FileNotFoundError:
        return None
    except ValueError as error:
        say(f"{error}; the run begins anew")
        return None


def _prepare(run_dir: Path) -> str | None:
    """Returns the checkpoint from which to resume a run, or empties its folder and returns None."""
    if _may_be_resumed(run_dir) and (last := find_last(run_dir)) is not None:
        say(f"{run_dir}: resumed from {last.relative_to(run_dir)}")
        return str(last)
    for path in run_dir.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()
    return None


def _may_be_resumed(run_dir: Path) -> bool:
    try:
        status = read_status(run_dir)
    except ValueError as error:
        say(f"{run_dir}: {error}; the run begins anew")
        return False
    return status is None or status.state == "interrupted"


@contextmanager
def _locked(run_dir: Path) -> Iterator[bool]:
    """Locks a folder for the block, and yields whether this succeeded: False if another process holds the lock."""
    run_dir.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield True
        return
    with (run_dir / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:  # the file system has no locks: the user must not start two sweeps in the same folders
            pass
        yield True
