"""Lightning callbacks: a checkpoint when a run is interrupted, progress lines, and what a training step costs."""

from __future__ import annotations

import os
import shutil
import signal
import statistics
import time
from array import array
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from detpool.distributed import is_main_process, say
from detpool.signals import ANNOUNCED, STOP


class RunCheckpoint(ModelCheckpoint):
    """Lightning's checkpoint callback, which a resumed run takes along into its own directory.

    Lightning forgets the best score when the directory changes: the resumed run's first epoch, however bad, would
    become its best. Here the best checkpoint so far is copied, and has to be beaten. It is looked for beside the
    checkpoint that is resumed, since a run directory may have been moved.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._trainer = trainer

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        assert self.dirpath is not None
        best = Path(str(self._trainer.ckpt_path)).parent / Path(state_dict["best_model_path"]).name
        if self.monitor is None or not best.is_file():
            return
        copy = Path(self.dirpath) / best.name
        if is_main_process() and copy.resolve() != best.resolve():
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

    A resumed run continues with the next training step; a validation that was cut short is not repeated. Several
    processes, which need not have the same number of validation batches to agree at, stop after the next training step.
    A second Ctrl-C ends the program at once, without a checkpoint. The exit status is 128 + the signal's number, as
    usual.

    SIGUSR2, with which SLURM announces the end of a job that submitit started (launcher=slurm), is handled likewise if
    the program has a handler of it. That is called once the checkpoint is saved: it ends the job or queues it again.

    Args:
        path: where to save, usually `checkpoints/last.ckpt` of the run directory.

    Attributes:
        validation_cut: whether the checkpoint being saved lacks a validation that was due. It is in the checkpoint too:
            the best checkpoint of a run that is resumed from it need not be that of an uninterrupted run.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.validation_cut = False
        self._signal: signal.Signals | None = None
        self._previous: dict[int, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"validation_cut": self.validation_cut}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not earlier: Lightning, which would end the program at SIGTERM without saving, sets its own handlers.
        for number in (*STOP, *(number for number in ANNOUNCED if callable(signal.getsignal(number)))):
            self._previous[number] = signal.signal(number, self._handle)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Gradients that are being accumulated are in no checkpoint.
        if trainer.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self._stop_if_asked(trainer, validation_cut=trainer.is_last_batch)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        if trainer.world_size == 1:
            self._stop_if_asked(trainer, validation_cut=True)

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
        # Not print: the signal may have come in the middle of one.
        os.write(2, b"\nstopping after this step (Ctrl-C again: at once)\n")

    def _stop_if_asked(self, trainer: Trainer, validation_cut: bool) -> None:
        # One process may have been signalled before the others: they stop at the same step.
        if not trainer.strategy.reduce_boolean_decision(self._signal is not None, all=False):
            return
        self.validation_cut = validation_cut
        trainer.save_checkpoint(self.path, weights_only=False)
        say(f"Saved {self.path}; add ckpt_path={self.path} to the command to resume.")
        if self._signal is not None and self._signal in ANNOUNCED:
            self._previous[self._signal](self._signal, None)
        raise SystemExit(128 + (self._signal or signal.SIGTERM))


class EpochLines(Callback):
    """Prints one line an epoch: what a log file wants in place of a progress bar."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start, self._validated = time.monotonic(), False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validated = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning keeps the metrics of the last validation, which need not have been in this epoch.
        names = ("train/loss", "val/loss", "val/AP", "val/AP50", "val/mask_AP") if self._validated else ("train/loss",)
        self._validated = False
        numbers = "  ".join(
            f"{n} {float(trainer.callback_metrics[n]):.4f}" for n in names if n in trainer.callback_metrics
        )
        now = time.monotonic()
        seconds, self._start = now - self._start, now
        say(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {numbers}  {seconds:.1f} s")


class StepCost(Callback):
    """Time and memory of training steps: forward, backward and optimizer, without loading data and validation.

    With several processes, those of this one. Time and memory are measured anew in a resumed run.

    Attributes:
        step_seconds: median wall-clock time of a step, None before the first. On a GPU each step waits for the one
            before it when it checks its loss, so that the median is that of whole steps.
        peak_memory_bytes: the most that any step took: on a GPU what PyTorch's allocator handed out, on a CPU the
            resident memory of this process. None before the first step, and where the system cannot tell (a CPU
            without Linux's /proc).
    """

    def __init__(self) -> None:
        self._seconds = array("d")
        self.peak_memory_bytes: int | None = None

    @property
    def step_seconds(self) -> float | None:
        return statistics.median(self._seconds) if self._seconds else None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._has_peak = _reset_peak_memory(pl_module.device)
        self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._seconds.append(time.perf_counter() - self._start)
        if self._has_peak:
            self.peak_memory_bytes = max(_peak_memory(pl_module.device), self.peak_memory_bytes or 0)


def _reset_peak_memory(device: torch.device) -> bool:
    """Whether there is a peak that can be reset.

    The maximum of `getrusage` cannot: of the runs of a sweep, which share a process, each would report the largest so
    far.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return True
    except OSError:
        return False


def _peak_memory(device: torch.device) -> int:
    """Bytes since `_reset_peak_memory`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status").read_text()
    (kilobytes,) = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return 1024 * int(kilobytes)
