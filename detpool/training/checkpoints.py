"""Checkpoints of a run: writing them atomically, finding the last and the best, and removing what is not needed."""

from __future__ import annotations

import contextlib
import io
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.core.override_parser.types import Quote, QuotedString
from lightning import Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from detpool.distributed import say
from detpool.errors import ConfigError, WeightsError, did_you_mean
from detpool.files import write_bytes_atomically
from detpool.run_record import read_metrics

_TRAINING_STATE = ("optimizer_states", "lr_schedulers", "loops", "current_model_state", "averaging_state")
"""Keys of a checkpoint that are needed only to resume training."""


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to a temporary file in the target's folder and moves it into place atomically.

    Lightning writes it to the system's temporary folder instead. If that is on another file system, the final move is a
    copy, which, when interrupted, leaves a truncated checkpoint in place of the last good one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes the checkpoint; if that fails, raises WriteError and leaves an existing file unchanged."""
        if "://" in str(path):
            return super().save_checkpoint(checkpoint, path, storage_options)
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write_bytes_atomically(path, content.getbuffer())


def use_whole_checkpoints(trainer: Trainer) -> None:
    """Makes a trainer write its checkpoints with `WholeCheckpointIO`, unless it has a checkpoint plugin of its own."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = WholeCheckpointIO()


@dataclass(frozen=True)
class Chosen:
    """The weights of a finished training that are evaluated.

    Attributes:
        path: checkpoint that holds the weights; None for the weights at the end of the training.
        metric: name of the metric by which the epoch was chosen, such as `val/AP`; None if no epoch was chosen.
        score: value of the metric at that epoch; NaN if no epoch was chosen.
        reason: sentence that says why no epoch was chosen; empty if one was.
    """

    path: Path | None
    metric: str | None = None
    score: float = math.nan
    reason: str = ""


def choose_weights(trainer: Trainer, monitor: str) -> Chosen:
    """Returns the best checkpoint of a finished training, according to its checkpoint callback.

    Args:
        trainer: a trainer after `fit`.
        monitor: the metric, such as `val/AP`, whose callback decides if several callbacks monitor a metric. If none
            monitors this metric, the first callback decides.
    """
    callbacks = [callback for callback in _checkpoint_callbacks(trainer.callbacks) if callback.monitor is not None]  # type: ignore[attr-defined]
    callbacks.sort(key=lambda callback: callback.monitor != monitor)
    if not callbacks:
        return Chosen(None, reason="No callback keeps the best checkpoint")
    callback = callbacks[0]
    score = math.nan if callback.best_model_score is None else float(callback.best_model_score)
    if callback.best_model_path and math.isfinite(score):
        return Chosen(Path(callback.best_model_path), callback.monitor, score)
    value = trainer.callback_metrics.get(str(callback.monitor))
    if value is None:
        return Chosen(None, reason="No validation was run while training")
    if not math.isfinite(value):
        return Chosen(None, reason=f"{callback.monitor} was never a number, so no epoch could be chosen")
    return Chosen(None, reason="No checkpoint of the best epoch was kept")


def last_checkpoint(trainer: Trainer) -> Path | None:
    """Returns the checkpoint of the last epoch of a finished training, or None if there is none."""
    callbacks = [callback for callback in _checkpoint_callbacks(trainer.callbacks) if callback.monitor is None]  # type: ignore[attr-defined]
    return next((Path(callback.best_model_path) for callback in callbacks if callback.best_model_path), None)


def keep_weights(trainer: Trainer, run_dir: Path, evaluated: Path) -> None:
    """Reduces the checkpoints of a finished run to what is needed to evaluate it.

    The state that is needed only to resume training, such as that of the optimizer, is removed from all checkpoints.
    The last checkpoint is deleted, unless it is the evaluated one or a callback is set to keep several without a
    metric.

    Args:
        trainer: a trainer after `fit`.
        run_dir: the directory that holds the checkpoints.
        evaluated: the checkpoint for which the run reports its metrics.
    """
    several = [c for c in _checkpoint_callbacks(trainer.callbacks) if c.monitor is None and c.save_top_k != 1]  # type: ignore[attr-defined]
    last = None if several else last_checkpoint(trainer)
    for path in _checkpoints(run_dir):
        if last is not None and path.resolve() == last.resolve() != evaluated.resolve():
            path.unlink()
    for path in _checkpoints(run_dir):
        with contextlib.suppress(WeightsError):  # not a checkpoint of a run
            content = read_checkpoint(path)
            if has_training_state(content):
                weights = {key: value for key, value in content.items() if key not in _TRAINING_STATE}
                WholeCheckpointIO().save_checkpoint(weights, path)


def has_training_state(content: Mapping[str, Any]) -> bool:
    """Whether the content of a checkpoint includes the state that is needed to resume training."""
    return _TRAINING_STATE[0] in content


def check_callbacks(callbacks: Sequence[Any], metrics: Sequence[str], validates: bool = True) -> None:
    """Checks the callbacks of a trainer before the first step, rather than at the first checkpoint.

    Args:
        callbacks: the callbacks of the trainer.
        metrics: names of the validation metrics without prefix, such as `AP`.
        validates: whether validation runs during training.

    Raises:
        ConfigError: If a callback monitors an unknown metric, or has the wrong `mode` for its metric; if early stopping
            monitors validation and `validates` is false; or if checkpoints of one callback, or of two callbacks, would
            replace each other because they have the same file name.
    """
    names: dict[tuple[str, str], ModelCheckpoint] = {}
    for callback in callbacks:
        stage, _, metric = (getattr(callback, "monitor", None) or "").partition("/")
        if stage == "val" and metric not in (*metrics, "iou_pearson") and not metric.startswith("loss"):
            raise ConfigError(
                f"callbacks: monitor={callback.monitor} is not a metric of this evaluation"
                f"{did_you_mean(callback.monitor or '', [f'val/{name}' for name in (*metrics, 'loss')])}"
            )
        best = "min" if metric.startswith("loss") else "max"
        if (stage == "val" or best == "min") and getattr(callback, "mode", best) != best:
            raise ConfigError(
                f"callbacks: monitor={callback.monitor} with mode={callback.mode} takes the worst for the best: "
                f"mode={best}"
            )
        if stage == "val" and isinstance(callback, EarlyStopping) and not validates:
            raise ConfigError(
                f"callbacks: early stopping by {callback.monitor} needs validations, and trainer.limit_val_batches is 0"
            )
    for callback in _checkpoint_callbacks(callbacks):
        name = callback.filename or "{epoch}-{step}"
        distinct = "{epoch" in name or "{step" in name or callback._enable_version_counter
        if callback.monitor is not None and callback.save_top_k not in (0, 1) and not distinct:
            raise ConfigError(
                f"callbacks: filename={name} is the name of each of the best {callback.save_top_k} checkpoints "
                f"(save_top_k), which would replace one another: put {{epoch}} into it, such as {name}-{{epoch}}"
            )
        place = (str(callback.dirpath), name)
        if callback.save_top_k != 0 and names.setdefault(place, callback) is not callback:
            raise ConfigError(
                f"callbacks: two keep their checkpoints as {name}.ckpt in {callback.dirpath}, and would replace each "
                f"other's: give one of them another filename"
            )


def _checkpoint_callbacks(callbacks: Sequence[Any]) -> list[ModelCheckpoint]:
    return [callback for callback in callbacks if isinstance(callback, ModelCheckpoint)]


def resume_argument(checkpoint: str | Path) -> str:
    """Returns the argument `ckpt_path=...`, with the path quoted for Hydra and for the shell."""
    text = str(checkpoint)
    if not re.fullmatch(r"[\w/.+-]+", text, re.ASCII):
        text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)  # otherwise an interpolation for OmegaConf
        text = QuotedString(text, Quote.double).with_quotes()
    return shlex.quote(f"ckpt_path={text}")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint. Tensors are memory-mapped: they are read from the file when they are used.

    Raises:
        WeightsError: If the file is damaged or is not a checkpoint of a run.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever a damaged file raises
        raise WeightsError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict) or not {"callbacks", "global_step"} <= content.keys():
        raise WeightsError(f"{path} holds no state of a run to resume: it has weights only")
    return content


def find_last(run_dir: Path) -> Path | None:
    """Returns the latest checkpoint from which a run continues as if it had not been stopped, or None.

    Checkpoints that were kept for their metric, or saved when a validation was interrupted, are skipped, since they
    were written before the epoch had ended. So are checkpoints that hold only weights.
    """
    found: list[tuple[int, int, Path]] = []
    for path in _checkpoints(run_dir):
        try:
            content = read_checkpoint(path)
        except WeightsError as error:
            say(f"{error}; it is not resumed from")
            continue
        states = content["callbacks"]
        if not has_training_state(content):
            continue
        if path.name not in _kept_as_best(states) and not states.get("SaveOnInterrupt", {}).get("validation_cut"):
            found.append((content["global_step"], path.stat().st_mtime_ns, path))
    return max(found)[-1] if found else None


def find_best(run_dir: Path) -> Path:
    """Returns the checkpoint for which a run reports its metrics; for an unfinished run, the best so far or the last.

    Raises:
        ConfigError: If the folder holds no checkpoint that can be read.
    """
    checkpoints = sorted(_checkpoints(run_dir), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    if not checkpoints:
        raise ConfigError(f"{run_dir} holds no checkpoint (*.ckpt)")
    try:
        reported = read_metrics(run_dir / "metrics.json").get("checkpoint")
    except (FileNotFoundError, ValueError):
        reported = None
    if reported and (run_dir / reported).is_file():
        return run_dir / reported
    for path in checkpoints:
        with contextlib.suppress(WeightsError):
            states = read_checkpoint(path)["callbacks"].values()
            best = [Path(state["best_model_path"]).name for state in states if _monitors(state)]
            return next((path for path in checkpoints if path.name in best), path)
    raise ConfigError(f"none of the checkpoints in {run_dir} can be read: {', '.join(map(str, checkpoints))}")


def is_kept_as_best(checkpoint: Path) -> bool:
    """Whether a checkpoint was kept because of its metric. False if it cannot be read."""
    try:
        return checkpoint.name in _kept_as_best(read_checkpoint(checkpoint)["callbacks"])
    except WeightsError:
        return False


def _checkpoints(run_dir: Path) -> list[Path]:
    """Paths of the checkpoints below a run directory, except those of other runs nested in it."""
    others = {path.parent for path in run_dir.rglob("config.yaml")} - {run_dir}
    return [path for path in run_dir.rglob("*.ckpt") if path.is_file() and others.isdisjoint(path.parents)]


def _monitors(state: Mapping[str, Any]) -> bool:
    return bool(state.get("monitor") and state.get("best_model_path"))


def _kept_as_best(states: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """File names of the checkpoints kept because of their metric, according to the callback states of a checkpoint."""
    return {Path(path).name for state in states.values() if _monitors(state) for path in state["best_k_models"]}
