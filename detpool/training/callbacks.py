"""Lightning callbacks: a checkpoint when a run is interrupted, and progress where there is no terminal."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import ModelCheckpoint


def is_main_process() -> bool:
    """Whether this is the process that prints and writes files; known before Lightning has started the others."""
    return getattr(rank_zero_only, "rank", 0) == 0


def say(text: str) -> None:
    """Prints once, however many processes there are."""
    if is_main_process():
        print(text, flush=True)


class RunCheckpoint(ModelCheckpoint):
    """Lightning's checkpoint callback, which a resumed run takes along into its own directory.

    Lightning forgets the best score when the directory changes: the resumed run's first epoch, however bad, would
    become its best. Here the best checkpoint so far is copied, and has to be beaten.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        best = Path(state_dict["best_model_path"])
        if self.monitor is None or state_dict["dirpath"] == self.dirpath or not best.is_file():
            return super().load_state_dict({**state_dict, "dirpath": self.dirpath})
        assert self.dirpath is not None
        copy = Path(self.dirpath) / best.name
        if is_main_process():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(best, copy)
        super().load_state_dict(
            {
                **state_dict,
                "dirpath": self.dirpath,
                "best_model_path": str(copy),
                "kth_best_model_path": str(copy),
                "best_k_models": {str(copy): state_dict["best_model_score"]},
            }
        )


class SaveOnInterrupt(Callback):
    """On Ctrl-C or SIGTERM finishes the step at hand, saves a checkpoint to resume from, and ends the program.

    A resumed run continues with the next training step; a validation that was cut short is not repeated (several
    processes first bring it to its end). A second Ctrl-C ends the program at once, without a checkpoint. The exit
    status is 128 + the signal's number, as usual.

    Args:
        path: where to save, usually `checkpoints/last.ckpt` of the run directory.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._signal: signal.Signals | None = None
        self._previous: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not earlier: Lightning, which would end the program at SIGTERM without saving, sets its own handlers.
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        self._stop_if_asked(trainer)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        # Several processes need not have the same number of batches to agree at; they agree at the end.
        if trainer.world_size == 1:
            self._stop_if_asked(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._stop_if_asked(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore_handlers()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore_handlers()

    def _restore_handlers(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = signal.Signals(number)
        say(f"\n{self._signal.name}: saving a checkpoint after this step (Ctrl-C again to stop at once)")

    def _stop_if_asked(self, trainer: Trainer) -> None:
        # One process may have been signalled before the others: they stop at the same step.
        if not trainer.strategy.reduce_boolean_decision(self._signal is not None, all=False):
            return
        trainer.save_checkpoint(self.path, weights_only=False)
        say(f"Saved {self.path}; add ckpt_path={self.path} to the command to resume.")
        raise SystemExit(128 + (self._signal or signal.SIGTERM))


class EpochLines(Callback):
    """Prints one line an epoch: what a log file wants in place of a progress bar."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        metrics = {name: trainer.callback_metrics.get(name) for name in ("train/loss", "val/AP", "val/AP50")}
        numbers = "  ".join(f"{name} {float(value):.4f}" for name, value in metrics.items() if value is not None)
        now = time.monotonic()
        seconds, self._start = now - self._start, now
        print(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {numbers}  {seconds:.1f} s", flush=True)
