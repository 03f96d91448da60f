"""Checks before a run starts: whether its folder is free, and whether a checkpoint can be resumed with its config."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import WeightAveraging
from omegaconf import DictConfig, OmegaConf

from detpool.config import PARTS
from detpool.config.overrides import leaves
from detpool.distributed import is_main_process, say
from detpool.errors import ConfigError, WeightsError
from detpool.files import remove_temporary_files
from detpool.run_config import load_config
from detpool.study.layout import STATUS, what_is_computed
from detpool.training.checkpoints import has_training_state, read_checkpoint, resume_argument

KEPT = ": a finished run can be trained on if it was made with keep_checkpoints=all"
_OF_MODEL = ("model", "backbone", "pooler", *PARTS)
_OF_OPTIMIZER = ("optim.optimizer", "optim.backbone_rate", "optim.frozen")
_OF_RESULT = ("seed", "data", "optim", "channels_last", "trainer", "evaluation.monitor")
_OF_LENGTH = tuple(
    f"trainer.{key}"
    for key in ("max_epochs", "max_steps", "max_time", "min_epochs", "min_steps", "log_every_n_steps", "profiler")
)
"""Settings that may change when a run is resumed without changing the result up to that step."""


def check_free(run_dir: Path, checkpoint: str | None) -> None:
    """Raises ConfigError if a folder holds a run and `checkpoint` is not in it: files of two runs would be mixed."""
    inside = checkpoint is not None and Path(checkpoint).resolve().is_relative_to(run_dir.resolve())
    if is_main_process() and (run_dir / "config.yaml").is_file() and not inside:
        raise ConfigError(
            f"{run_dir} holds another run: choose another folder, remove that one, or continue it with "
            f"{resume_argument(run_dir)}"
        )


def begin(run_dir: Path, resumed: bool) -> None:
    """Removes the status and metrics of a previous run from a folder, and keeps its curves if it is resumed.

    The folder `csv` of a resumed run is renamed to `csv_before_<n>`, because Lightning's CSV logger deletes existing
    files when it starts. Reports read both.
    """
    for name in (STATUS, "metrics.json"):
        (run_dir / name).unlink(missing_ok=True)
    remove_temporary_files(run_dir)
    if resumed and (run_dir / "csv").is_dir():
        number = 1 + len(list(run_dir.glob("csv_before_*")))
        (run_dir / "csv").rename(run_dir / f"csv_before_{number}")


def check_resume(config: DictConfig, callbacks: Sequence[Any]) -> int:
    """Checks that the checkpoint `config.ckpt_path`, if any, can be resumed with a config.

    Settings of the model and the optimizer must agree, because Lightning restores the optimizer's settings from the
    checkpoint and would ignore those of the config. For other changes that affect the result, a note is printed.

    Args:
        config: the config of the run that is about to start.
        callbacks: the callbacks of its trainer.

    Returns:
        The number of optimizer steps made before, 0 without a checkpoint.

    Raises:
        ConfigError: If the config of the checkpoint's run is missing.
        WeightsError: If the checkpoint cannot be read, holds only weights, or belongs to a run with other settings.
    """
    if config.ckpt_path is None:
        return 0
    checkpoint = Path(config.ckpt_path)
    before = read_checkpoint(checkpoint)
    if not has_training_state(before):
        raise WeightsError(f"{checkpoint} cannot be resumed, since it has weights only{KEPT}")
    run = load_config(checkpoint)
    now, then = (
        dict(leaves(what_is_computed(OmegaConf.to_container(each, resolve=True))))  # type: ignore[arg-type]
        for each in (config, run)
    )
    changed = [key for key in dict.fromkeys([*then, *now]) if now.get(key) != then.get(key)]
    other = [part for part in _OF_MODEL if any(_is_of(key, (part,)) for key in changed)]
    other += ["class_names"] if list(run.get("class_names") or config.class_names) != list(config.class_names) else []
    if other:
        raise WeightsError(
            f"{checkpoint} cannot be resumed with this config: the run it comes from has another {', '.join(other)}"
        )
    restored = list(_OF_OPTIMIZER)
    if not all(str(each.get("optim.schedule._target_")).startswith("detpool.") for each in (now, then)):
        restored.append("optim.schedule")  # schedules of detpool store no settings in checkpoints
    own = [key.partition("[")[0] for key in changed if _is_of(key, restored)]
    targets = tuple(key.removesuffix("_target_") for key in own if key.endswith("._target_"))
    own = [key for key in own if key.endswith("._target_") or not key.startswith(targets)]
    kept = [f"{key}={OmegaConf.select(run, key)}".replace("=None", "=null") for key in dict.fromkeys(own)]
    if "averaging_state" in before and not any(isinstance(callback, WeightAveraging) for callback in callbacks):
        kept.append("averages of the weights (callbacks=ema)")
    if kept:
        raise WeightsError(
            f"{checkpoint} cannot be resumed with this config: it continues with {', '.join(kept)}; to begin a run "
            f"with its weights: model.weights={checkpoint}"
        )
    others = [key.partition("[")[0] for key in changed if _is_of(key, _OF_RESULT) and not _is_of(key, _OF_LENGTH)]
    if others:
        names = ", ".join(dict.fromkeys(others))
        say(f"note: {names} changed since {checkpoint}: the result is not that of an uninterrupted run")
    return int(before["global_step"])


def _is_of(key: str, parts: Sequence[str]) -> bool:
    return any(f"{key}.".startswith((f"{part}.", f"{part}[")) for part in parts)
