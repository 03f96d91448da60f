"""Ending a training that diverges."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class LossCheck:
    """Checks losses one step after they were computed; an immediate check would wait for all queued work of the GPU."""

    def __init__(self) -> None:
        self._place = ("", "")
        self._names: list[str] = []
        self._values: Tensor | None = None
        self._copied: torch.cuda.Event | None = None

    def note(self, loss: Tensor, parts: dict[str, Tensor], epoch: int, step: int, image_ids: list[int]) -> None:
        """Stores the losses of a step for a later check.

        Args:
            loss: the total loss, a scalar.
            parts: the losses that add up to it, by name; scalars.
            epoch, step, image_ids: where the losses occurred, for the error message.
        """
        self._place = f"at epoch {epoch}, step {step}", f"images {image_ids}"
        self._names = list(parts)
        values = torch.stack([loss, *parts.values()]).detach()
        self._values = values.to("cpu", non_blocking=values.is_cuda)
        if values.is_cuda:
            self._copied = torch.cuda.Event()
            self._copied.record()

    def check(self) -> None:
        """Checks the losses that were stored last, unless they have been checked already.

        Raises:
            FloatingPointError: If the total loss is not finite.
        """
        if self._values is None:
            return
        if self._copied is not None:
            self._copied.synchronize()
        loss, *values = self._values.tolist()
        self._values = None
        if not math.isfinite(loss):
            step, images = self._place
            parts = ", ".join(f"{name} {value:.4g}" for name, value in zip(self._names, values, strict=True))
            raise FloatingPointError(
                f"the loss is {loss} {step} ({parts}; {images}): lower optim.optimizer.lr, lengthen "
                f"optim.schedule.warmup_steps, or clip gradients with trainer.gradient_clip_val"
            )
