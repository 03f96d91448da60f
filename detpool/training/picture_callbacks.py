"""A callback that logs pictures of predictions during training, for loggers that show images."""

from __future__ import annotations

from typing import Any

import numpy as np
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from detpool.distributed import is_main_process
from detpool.errors import ConfigError
from detpool.evaluation.pictures import compare
from detpool.training.module import DetectionModule


class LogPredictions(Callback):
    """After validation, logs the predictions on the first validation images next to their ground truth.

    Pictures are logged as `predictions/<image id>` to each logger whose `experiment` has a method `add_image`, such as
    TensorBoard's.

    Args:
        every_n_epochs: minimum number of epochs between validations that are logged; the first is always logged.
        count: number of images.
        score_threshold: detections with a lower score are not drawn.
        masks: whether to draw masks, if there are any, as well as boxes.
        panel: longer side of each half of a picture, in pixels.

    Raises:
        ConfigError: If a number is less than 1, or, when training starts, if no logger accepts images.
    """

    def __init__(
        self,
        every_n_epochs: int = 1,
        count: int = 4,
        score_threshold: float = 0.5,
        masks: bool = False,
        panel: int = 400,
    ) -> None:
        for name, value in {"every_n_epochs": every_n_epochs, "count": count, "panel": panel}.items():
            if value < 1:
                raise ConfigError(f"callbacks: {name} must be at least 1, got {value}")
        self.every_n_epochs, self.count, self.panel = every_n_epochs, count, panel
        self.score_threshold, self.masks = score_threshold, masks
        self._last_epoch: int | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Only the main process has real loggers; the others must fail with it rather than wait for it.
        if stage == "fit" and not trainer.strategy.broadcast(bool(_image_writers(trainer))):
            raise ConfigError("callbacks: no logger shows images, so pictures of predictions need logger=tensorboard")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        epoch = trainer.current_epoch
        if self._last_epoch is not None and epoch < self._last_epoch + self.every_n_epochs:
            return
        self._last_epoch = epoch
        assert isinstance(pl_module, DetectionModule)
        assert pl_module.evaluator is not None
        assert pl_module.evaluated is not None
        rows = pl_module.evaluator.results()  # gathers the results of all processes, so each must call it
        if not is_main_process():
            return
        dataset = pl_module.evaluated
        image_ids = dataset.image_ids[: self.count]
        pictures = compare(
            dataset, rows, image_ids, score_threshold=self.score_threshold, masks=self.masks, panel=self.panel
        )
        for image_id, picture in zip(image_ids, pictures, strict=True):
            for writer in _image_writers(trainer):
                writer.add_image(f"predictions/{image_id}", np.array(picture), trainer.global_step, dataformats="HWC")


def _image_writers(trainer: Trainer) -> list[Any]:
    experiments = [getattr(logger, "experiment", None) for logger in trainer.loggers]
    return [experiment for experiment in experiments if hasattr(experiment, "add_image")]
