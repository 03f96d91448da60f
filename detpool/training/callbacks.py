"""Lightning callbacks: checkpoints on interruption, progress lines, and the time and memory of training steps."""

from __future__ import annotations

import os
import signal
import statistics
import time
from array import array
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from torch import Tensor

from detpool.distributed import is_main_process, say
from detpool.files import write_bytes_atomically
from detpool.signals import ANNOUNCED, STOP
from detpool.study.stopping import Worker
from detpool.training.checkpoints import resume_argument
from detpool.training.module import DetectionModule


class RunCheckpoint(ModelCheckpoint):
    """Lightning's `ModelCheckpoint`, with its best checkpoint copied when a run is resumed in another directory.

    Lightning forgets the best score when the directory changes, so the first epoch of the resumed run, however bad,
    would become the best. Here the best checkpoints so far are copied to the new directory and remain the best until a
    later epoch has a better score. They are searched for next to the resumed checkpoint, since the run directory may
    have been moved.

    An epoch whose metric is not finite (for example, with a validation set without annotations) is never the best.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._trainer = trainer

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        # Lightning would keep the first epoch whose metric is NaN, and never replace it if all later ones are NaN.
        if current is not None and self.save_top_k != -1 and not bool(torch.isfinite(current)):
            return False
        return super().check_monitor_top_k(trainer, current)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        assert self.dirpath is not None
        before = state_dict["best_model_path"]
        if self.monitor is None or not before:
            return
        kept = self._take_along(state_dict)
        best = str(Path(self.dirpath, os.path.relpath(before, state_dict["dirpath"])))
        if best not in kept:
            say(
                f"warning: the best checkpoint so far, {before}, is not beside {self._trainer.ckpt_path}: the best of "
                f"this run will be the best of the epochs to come"
            )
            return
        worst = (max if self.mode == "min" else min)(kept, key=lambda path: float(kept[path]))
        super().load_state_dict(
            {
                **state_dict,
                "dirpath": self.dirpath,
                "best_model_path": best,
                "kth_best_model_path": worst,
                "kth_value": kept[worst],
                "best_k_models": kept,
            }
        )

    def _take_along(self, state_dict: dict[str, Any]) -> dict[str, Tensor]:
        """Copies the best checkpoints that lie next to the resumed one, and returns their scores by new path."""
        kept: dict[str, Tensor] = {}
        for path, score in state_dict["best_k_models"].items():
            # A metric in the name (val/AP) creates subfolders, so the resumed checkpoint may lie below `dirpath`.
            name = Path(os.path.relpath(path, state_dict["dirpath"]))
            folders = Path(str(self._trainer.ckpt_path)).absolute().parents[: 1 + len(name.parents)]
            found = next((folder / name for folder in folders if (folder / name).is_file()), None)
            if found is not None:
                copy = Path(str(self.dirpath), name)
                if is_main_process() and copy.resolve() != found.resolve():
                    write_bytes_atomically(copy, found.read_bytes())
                kept[str(copy)] = score
        return kept


class SaveOnInterrupt(Checkpoint):
    """On Ctrl-C or SIGTERM, finishes the current step, saves a checkpoint to resume from, and ends the program.

    A resumed run continues with the next training step; a validation that was interrupted is not repeated. With several
    processes, which may have different numbers of validation batches, all stop after the next training step. A second
    Ctrl-C ends the program immediately, without a checkpoint. The exit status is 128 + the number of the signal, as
    usual.

    SIGUSR2, with which SLURM announces the end of a job started by submitit (launcher=slurm), is treated the same way
    if the program has a handler for it. The handler, which ends the job or queues it again, is called after the
    checkpoint is saved.

    The class derives from Lightning's `Checkpoint` because Lightning calls those callbacks last, after all others have
    finished with the step.

    Args:
        path: where to save the checkpoint, usually `checkpoints/last.ckpt` in the run directory.

    Attributes:
        same_command: whether the same command resumes the run without naming a checkpoint, as in a study.
        command: the shell command of this run, for the message on how to resume. If empty, the message says "the same
            command".
        validation_cut: whether the saved checkpoint lacks a validation that was due. It is stored in the checkpoint,
            because a run resumed from it may choose another best checkpoint than an uninterrupted run would.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.same_command = False
        self.command = ""
        self.validation_cut = False
        self._signal: signal.Signals | None = None
        self._previous: dict[int, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"validation_cut": self.validation_cut}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not earlier: Lightning sets its own handlers before, and its SIGTERM handler ends the program without saving.
        for number in (*STOP, *(number for number in ANNOUNCED if callable(signal.getsignal(number)))):
            self._previous[number] = signal.signal(number, self._handle)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # A checkpoint does not hold gradients that are being accumulated.
        if trainer.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            loops = trainer.fit_loop
            due = loops.epoch_loop._should_check_val_fx(loops._data_fetcher)  # type: ignore[arg-type]
            self._stop_if_asked(trainer, validation_cut=due)

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
        # Not `print`, which is not reentrant: the signal may have arrived during one.
        os.write(2, b"\nstopping after this step (Ctrl-C again: at once)\n")

    def _stop_if_asked(self, trainer: Trainer, validation_cut: bool) -> None:
        # One process may have received the signal before the others; all must stop at the same step.
        if not trainer.strategy.reduce_boolean_decision(self._signal is not None, all=False):
            return
        self.validation_cut = validation_cut
        Worker.stopped = True
        trainer.save_checkpoint(self.path, weights_only=False)
        say(f"Saved {self.path}; {self._how_to_resume()}")
        if self._signal is not None and self._signal in ANNOUNCED:
            self._previous[self._signal](self._signal, None)
        raise SystemExit(128 + (self._signal or signal.SIGTERM))

    def _how_to_resume(self) -> str:
        if not self.same_command:
            command = self.command or "the same command with"
            return f"resume by\n  {command} {resume_argument(self.path)}"
        if self.validation_cut:
            return "the same command begins this run anew, since its validation was cut short"
        return "the same command resumes"


class EpochLines(Callback):
    """Prints one line per epoch, for log files, in place of a progress bar."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start, self._validated = time.monotonic(), False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validated = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning keeps the metrics of the last validation, which need not have been in this epoch.
        names = ["train/loss"]
        if self._validated:
            assert isinstance(pl_module, DetectionModule)
            names += ["val/loss", *dict.fromkeys(("val/AP", "val/AP50", "val/mask_AP", f"val/{pl_module.monitor}"))]
        self._validated = False
        numbers = "  ".join(
            f"{n} {float(trainer.callback_metrics[n]):.4f}" for n in names if n in trainer.callback_metrics
        )
        now = time.monotonic()
        seconds, self._start = now - self._start, now
        of_all = "" if trainer.max_epochs in (None, -1) else f"/{trainer.max_epochs}"
        say(f"epoch {trainer.current_epoch + 1}{of_all}  {numbers}  {seconds:.1f} s")


class StepCost(Callback):
    """Measures time and memory of training steps: forward, backward and optimizer, without data loading or validation.

    With several processes, each measures its own. A resumed run starts its measurements again.

    Attributes:
        step_seconds: median wall-clock time of a step in seconds; None before the first step. On a GPU, each step
            waits for the previous one when it checks its loss, so the median covers whole steps.
        peak_memory_bytes: peak memory of a step in bytes: on a GPU, the memory allocated by PyTorch; on a CPU, the
            resident memory of this process. None before the first step, and on a CPU without Linux's /proc.
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
    """Resets the peak memory, and returns whether the system supports this.

    The maximum reported by `getrusage` cannot be reset: each run of a sweep, which share a process, would report the
    largest value so far.
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
    """Peak memory in bytes since the last `_reset_peak_memory`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status").read_text()
    (kilobytes,) = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return 1024 * int(kilobytes)
