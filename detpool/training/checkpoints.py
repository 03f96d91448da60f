"""Checkpoints of a run: written whole, found again whatever their names, the one that is evaluated, what is kept."""

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
"""What is of use to a training that goes on, and to nothing else."""


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its target and puts it in place in one step.

    Lightning's own writes it to the folder for temporary files, whose last move is a copy where that is another file
    system: half a checkpoint under its final name, and the last good one gone, if that is interrupted.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Raises WriteError, and leaves what was there, if the file cannot be written."""
        if "://" in str(path):
            return super().save_checkpoint(checkpoint, path, storage_options)
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write_bytes_atomically(path, content.getbuffer())


def use_whole_checkpoints(trainer: Trainer) -> None:
    """Makes a trainer write with `WholeCheckpointIO`, unless it was given a plugin that writes in its own way."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = WholeCheckpointIO()


@dataclass(frozen=True)
class Chosen:
    """The weights that a training is judged by.

    Attributes:
        path: their checkpoint; None: those that the training ended with.
        metric: what the epoch was chosen by, `val/AP`; None if none was chosen.
        score: its value at that epoch.
        reason: a sentence that says why no epoch was chosen, empty if one was.
    """

    path: Path | None
    metric: str | None = None
    score: float = math.nan
    reason: str = ""


def choose_weights(trainer: Trainer, monitor: str) -> Chosen:
    """The best checkpoint of a training that has ended, as the callback that kept it says.

    Args:
        trainer: a trainer after `fit`.
        monitor: the metric, `val/AP`, whose callback is asked where several monitor something; without one the first.
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
    """The checkpoint of the last epoch of a training that has ended, None if it wrote none."""
    callbacks = [callback for callback in _checkpoint_callbacks(trainer.callbacks) if callback.monitor is None]  # type: ignore[attr-defined]
    return next((Path(callback.best_model_path) for callback in callbacks if callback.best_model_path), None)


def keep_weights(trainer: Trainer, run_dir: Path, evaluated: Path) -> None:
    """Leaves, of a run that has ended, what is needed to evaluate it.

    Checkpoints keep their weights, and what says which epoch they are of, but no state of optimizers. The last, which a
    run is resumed from, goes, unless it is what was evaluated or a callback was asked to keep several of its kind.

    Args:
        trainer: a trainer after `fit`.
        run_dir: what holds the checkpoints.
        evaluated: the one that the run reports the metrics of.
    """
    several = [c for c in _checkpoint_callbacks(trainer.callbacks) if c.monitor is None and c.save_top_k != 1]  # type: ignore[attr-defined]
    last = None if several else last_checkpoint(trainer)
    for path in _checkpoints(run_dir):
        if last is not None and path.resolve() == last.resolve() != evaluated.resolve():
            path.unlink()
    for path in _checkpoints(run_dir):
        with contextlib.suppress(WeightsError):  # a file that is none of this run's
            content = read_checkpoint(path)
            if has_training_state(content):
                weights = {key: value for key, value in content.items() if key not in _TRAINING_STATE}
                WholeCheckpointIO().save_checkpoint(weights, path)


def has_training_state(content: Mapping[str, Any]) -> bool:
    """Whether a training can go on from what is in a checkpoint."""
    return _TRAINING_STATE[0] in content


def check_callbacks(callbacks: Sequence[Any], metrics: Sequence[str], validates: bool = True) -> None:
    """What would end a run at its first checkpoint, or have one replace another, ends it before its first step.

    Args:
        callbacks: those of the trainer.
        metrics: names of what validation computes, `AP`.
        validates: whether there are validations while training.

    Raises:
        ConfigError: a callback monitors no metric, or takes its worst for its best; it keeps several checkpoints under
            one name, or has that of another.
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
    """`ckpt_path=...` as a shell takes it, and then Hydra, whatever characters the path has."""
    text = str(checkpoint)
    if not re.fullmatch(r"[\w/.+-]+", text, re.ASCII):
        text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)  # an interpolation to OmegaConf
        text = QuotedString(text, Quote.double).with_quotes()
    return shlex.quote(f"ckpt_path={text}")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What is in a checkpoint; tensors stay in the file until they are used.

    Raises:
        WeightsError: the file is damaged or no checkpoint of a run.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever a damaged file raises
        raise WeightsError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict) or not {"callbacks", "global_step"} <= content.keys():
        raise WeightsError(f"{path} holds no state of a run to resume: it has weights only")
    return content


def find_last(run_dir: Path) -> Path | None:
    """The latest checkpoint from which a run goes on as if it had never been stopped, None if there is none.

    That is none that was written in the midst of an epoch's end, for its metric or since the validation was cut short,
    and none that has weights only.
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
    """The checkpoint that a run reports the metrics of; while it is not finished the best so far, or the last.

    Raises:
        ConfigError: the folder holds no checkpoint that can be read.
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
    """Whether a checkpoint is of an epoch that was chosen by a metric."""
    try:
        return checkpoint.name in _kept_as_best(read_checkpoint(checkpoint)["callbacks"])
    except WeightsError:
        return False


def _checkpoints(run_dir: Path) -> list[Path]:
    """The checkpoints of a run, without those of runs whose directories lie below its own."""
    others = {path.parent for path in run_dir.rglob("config.yaml")} - {run_dir}
    return [path for path in run_dir.rglob("*.ckpt") if path.is_file() and others.isdisjoint(path.parents)]


def _monitors(state: Mapping[str, Any]) -> bool:
    return bool(state.get("monitor") and state.get("best_model_path"))


def _kept_as_best(states: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Names of the checkpoints that a run had kept for their metric when it wrote one with these states."""
    return {Path(path).name for state in states.values() if _monitors(state) for path in state["best_k_models"]}
