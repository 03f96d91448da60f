"""Weight averaging: the average of the weights over the training steps is evaluated in place of the last weights."""

from __future__ import annotations

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.trainer.states import TrainerFn

from detpool.errors import ConfigError


class AverageWeights(EMAWeightAveraging):
    """Lightning's exponential moving average of the weights, for runs that evaluate the best of their checkpoints.

    Validation during training uses the averaged weights, so the best epoch is chosen by them, and the `state_dict` of
    every checkpoint holds them. The weights with which training continues are also in the checkpoint, under Lightning's
    keys.

    Lightning's callback has three faults that this class corrects: it replaces any weights that are validated after
    training by its last average, it confuses the two sets of weights in a checkpoint that is written during validation,
    and before the first update it uses the initial weights as the average. Here the weights in training are validated
    and saved until there is an average.

    Args:
        decay: weight of the previous average at each update, 0 .. 1. The average covers about the last 1 / (1 - decay)
            updates.
        use_buffers: whether to average buffers too, such as the statistics of batch normalization. If false, they are
            copied.
        update_every_n_steps: number of optimizer steps between updates.
        update_starting_at_step: the first step after which the average is updated.

    Raises:
        ConfigError: If `update_every_n_steps` is less than 1.
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
        self._in_use = False  # whether the module and the averaged model have swapped their weights

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
