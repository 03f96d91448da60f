"""Averages of the weights over the steps of a training, which are evaluated in place of the last step's."""

from __future__ import annotations

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.trainer.states import TrainerFn

from detpool.errors import ConfigError


class AverageWeights(EMAWeightAveraging):
    """Lightning's exponential moving average of the weights, for runs that evaluate the best of their checkpoints.

    Validations while training are of the averaged weights, so the best epoch is chosen by them, and `state_dict` of
    every checkpoint holds them. What a training goes on with is in the checkpoint too, under keys of Lightning's.

    Lightning's own puts its last average in place of whatever weights are validated after the training, mistakes one
    for the other in a checkpoint that is written during a validation, and until there is an average has the weights of
    the beginning in its place. Here those in training are validated and kept until then.

    Args:
        decay: share of the average so far in the next one, 0 .. 1: it is of about the last 1 / (1 - decay) updates.
        use_buffers: average buffers too, such as statistics of batch normalization; false: take them as they are.
        update_every_n_steps: optimizer steps from one update to the next.
        update_starting_at_step: the first step after which there is one.

    Raises:
        ConfigError: `update_every_n_steps` is less than 1.
    """

    def __init__(
        self,
        decay: float = 0.999,
        use_buffers: bool = True,
        update_every_n_steps: int = 1,
        update_starting_at_step: int | None = None,
    ) -> None:
        if update_every_n_steps < 1:
            raise ConfigError(f"callbacks: update_every_n_steps must be at least 1, got {update_every_n_steps}")
        super().__init__(
            decay=decay,
            use_buffers=use_buffers,
            update_every_n_steps=update_every_n_steps,
            update_starting_at_step=update_starting_at_step,
        )
        self._in_use = False  # whether the module holds the averaged weights, and the averaged model those in training

    @property
    def _has_average(self) -> bool:
        return self._average_model is not None and bool(self._average_model.n_averaged)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and self._has_average:
            super().on_validation_epoch_start(trainer, pl_module)
            self._in_use = True

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._in_use:
            super().on_validation_epoch_end(trainer, pl_module)
            self._in_use = False

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._has_average:
            super().on_train_end(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        averaged, trained = checkpoint["state_dict"], checkpoint.get("current_model_state")
        if self._in_use:
            checkpoint |= {"state_dict": trained, "current_model_state": averaged}
        elif trained is not None and not self._has_average:
            checkpoint["state_dict"] = trained
