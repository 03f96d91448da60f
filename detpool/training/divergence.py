"""Ending a training that diverges."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class LossCheck:
    """Looks at losses a step after they were computed: at once, it would wait for all that a GPU has still to do."""

    def __init__(self) -> None:
        self._place = ("", "")
        self._names: list[str] = []
        self._values: Tensor | None = None
        self._copied: torch.cuda.Event | None = None

    def note(self, loss: Tensor, parts: dict[str, Tensor], epoch: int, step: int, image_ids: list[int]) -> None:
        """Keeps the losses of a step, to be checked later.

        Args:
            loss: the sum, a scalar.
            parts: what it is the sum of, by name.
            epoch, step, image_ids: for the message.
        """
        self._place = f"at epoch {epoch}, step {step}", f"images {image_ids}"
        self._names = list(parts)
        values = torch.stack([loss, *parts.values()]).detach()
        self._values = values.to("cpu", non_blocking=values.is_cuda)
        if values.is_cuda:
            self._copied = torch.cuda.Event()
            self._copied.record()

    def check(self) -> None:
        """Looks at the losses noted last, once.

        Raises:
            FloatingPointError: their sum is not finite.
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
