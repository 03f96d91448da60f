"""Averages of the weights over the steps of a training, which are evaluated in place of the last step's."""

from __future__ import annotations

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.trainer.states import TrainerFn


class AverageWeights(EMAWeightAveraging):
    """Lightning's exponential moving average of the weights, for runs that evaluate the best of their checkpoints.

    Validations while training are of the averaged weights, so the best epoch is chosen by them, and `state_dict` of
    every checkpoint holds them. What a training goes on with is in the checkpoint too, under keys of Lightning's.

    Lightning's own puts its last average in place of whatever weights are validated after the training, and mistakes
    one for the other in a checkpoint that is written during a validation.

    Args:
        decay: share of the average so far in the next one, 0 .. 1: it is of about the last 1 / (1 - decay) updates.
        use_buffers: average buffers too, such as statistics of batch normalization; false: take them as they are.
        update_every_n_steps: optimizer steps from one update to the next.
        update_starting_at_step: the first step after which there is one.
    """

    def __init__(
        self,
        decay: float = 0.999,
        use_buffers: bool = True,
        update_every_n_steps: int = 1,
        update_starting_at_step: int | None = None,
    ) -> None:
        super().__init__(
            decay=decay,
            use_buffers=use_buffers,
            update_every_n_steps=update_every_n_steps,
            update_starting_at_step=update_starting_at_step,
        )
        self._in_use = False  # whether the module holds the averaged weights, and the averaged model those in training

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            super().on_validation_epoch_start(trainer, pl_module)
            self._in_use = True

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            super().on_validation_epoch_end(trainer, pl_module)
            self._in_use = False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self._in_use:
            averaged, trained = checkpoint["current_model_state"], checkpoint["state_dict"]
            checkpoint |= {"state_dict": averaged, "current_model_state": trained}
