"""The Lightning module of a detector, with its optimizer and evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor

from detpool.data.datamodule import Batch, DetectionDataModule
from detpool.data.dataset import DetectionDataset
from detpool.data.sampling import derive_seed
from detpool.detection import TwoStageDetector
from detpool.errors import ConfigError, did_you_mean
from detpool.evaluation import DetectionEvaluator
from detpool.training.batch_norm import SINGLE_VALUE_CURE, normalize_single_values
from detpool.training.divergence import LossCheck
from detpool.training.shared_classes import SharedClasses


class DetectionModule(LightningModule):
    """Trains and evaluates a detector.

    Args:
        model: the detector. It takes images (3, H, W), RGB in [0, 1], and targets with boxes in pixels of the image.
        optimizer: function that returns the optimizer, given groups of trainable parameters.
        schedule: function that returns the learning-rate schedule, given the optimizer and `total_steps`. It is stepped
            after each optimizer step. None for a constant rate.
        evaluator: function that returns the evaluator of a given data set.
        seed: seed of the random choices of a training step, such as the sampling of anchors and proposals. It is
            combined with epoch, step and process, so that a resumed run repeats those of an uninterrupted one.
        channels_last: whether to keep weights, and thus feature maps, in channels_last memory format.
        backbone_rate: learning rate of the backbone's body, as a fraction of the rate of all other parameters.
        frozen: names of modules that are not trained, such as `backbone.body.stem`. They remain in evaluation mode.
        monitor: the validation metric that is shown in the progress bar.

    Raises:
        ConfigError: If the model has no module with a name in `frozen`.
    """

    def __init__(
        self,
        model: TwoStageDetector,
        optimizer: Callable[..., torch.optim.Optimizer],
        schedule: Callable[..., Any] | None,
        evaluator: Callable[..., DetectionEvaluator],
        seed: int = 0,
        channels_last: bool = True,
        backbone_rate: float = 1.0,
        frozen: Sequence[str] = (),
        monitor: str = "AP",
    ) -> None:
        super().__init__()
        normalize_single_values(model)
        self.model = model.to(memory_format=torch.channels_last) if channels_last else model
        self.optimizer = optimizer
        self.schedule = schedule
        self.make_evaluator = evaluator
        self.seed, self.monitor = seed, monitor
        self.backbone_rate, self.frozen = backbone_rate, tuple(frozen)
        known = [name for name, _ in model.named_modules() if name]
        for name in self.frozen:
            if name not in known:
                raise ConfigError(f"optim.frozen: the model has no module {name!r}{did_you_mean(name, known)}")
            model.get_submodule(name).requires_grad_(False).eval()
        self.loss_check = LossCheck()
        self.evaluator: DetectionEvaluator | None = None
        self.evaluated: DetectionDataset | None = None  # the data set whose ground truth `evaluator` holds
        self.metrics: dict[str, float] = {}  # results of the last validation or test
        self.shared_classes: SharedClasses | None = None  # set if the classes of the data and of the model differ

    def train(self, mode: bool = True) -> DetectionModule:
        super().train(mode)
        for name in self.frozen:
            self.model.get_submodule(name).eval()
        return self

    def __getstate__(self) -> dict[str, Any]:
        # Copies of the module, as for weight averaging, exclude the data set and its ground truth, which may be large.
        return {**super().__getstate__(), "evaluator": None, "evaluated": None}

    def build_optimizer(self) -> torch.optim.Optimizer:
        """Builds the optimizer of the trainable parameters.

        Raises:
            ConfigError: If the optimizer rejects its settings.
        """
        trained = [p for p in self.parameters() if p.requires_grad]
        body = {id(p) for p in self.model.backbone.body.parameters()} if self.backbone_rate != 1 else set()
        groups = [[p for p in trained if (id(p) in body) == of_body] for of_body in (False, True)]
        try:
            optimizer = self.optimizer([{"params": group} for group in groups if group])
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(f"optim.optimizer: {error}") from error
        for group in optimizer.param_groups:
            if body and id(group["params"][0]) in body:
                group["lr"] *= self.backbone_rate
        return optimizer

    def configure_optimizers(self) -> Any:
        optimizer = self.build_optimizer()
        if self.schedule is None:
            return optimizer
        steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(steps):
            raise ConfigError(
                f"trainer.max_epochs={self.trainer.max_epochs} without trainer.max_steps has no end that "
                f"optim.schedule could be laid out for: set one of them (trainer.max_time may still end the run "
                f"before), or optim.schedule=null for a constant rate"
            )
        schedule = self.schedule(optimizer, total_steps=int(steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        torch.manual_seed(derive_seed(self.seed, self.current_epoch, batch_idx, self.global_rank))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.loss_check.check()
        images, targets = batch
        try:
            losses = self.model(to_unit_range(images), targets)
        except ValueError as error:
            if "Expected more than 1" not in str(error):  # raised by PyTorch's normalization by batch statistics
                raise
            raise ConfigError(
                f"a batch of {len(images)} images, {images[0].shape[-2]} x {images[0].shape[-1]} pixels the first, "
                f"cannot be normalized in training ({error}): {SINGLE_VALUE_CURE}"
            ) from error
        loss = torch.stack(list(losses.values())).sum()
        image_ids = [int(target["image_id"]) for target in targets]
        self.loss_check.note(loss, losses, self.current_epoch, self.global_step, image_ids)
        self.log("train/loss", loss, prog_bar=True, on_step=True, on_epoch=True, batch_size=len(images), sync_dist=True)
        self.log_dict({f"train/{name}": value for name, value in losses.items()}, batch_size=len(images))
        # For a Python number, Lightning would wait for a copy to the device.
        rate = torch.full((), self.trainer.optimizers[0].param_groups[0]["lr"], device=loss.device)
        self.log("train/lr", rate)
        return loss

    # Check the last loss before weights that it may have corrupted are evaluated or saved:

    def on_validation_start(self) -> None:
        self.loss_check.check()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.loss_check.check()

    def on_train_epoch_end(self) -> None:
        self.loss_check.check()

    def on_validation_epoch_start(self) -> None:
        self.prepare_evaluation(self._data.val_dataset)

    def on_test_epoch_start(self) -> None:
        self.prepare_evaluation(self._data.test_dataset)

    @property
    def _data(self) -> DetectionDataModule:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def prepare_evaluation(self, dataset: DetectionDataset) -> None:
        """Builds the evaluator of a data set, or resets the existing one.

        Raises:
            ConfigError: If the evaluator rejects its settings.
        """
        if self.evaluator is None or self.evaluated is not dataset:
            try:
                self.evaluator = self.make_evaluator(dataset)
            except (ImportError, TypeError, ValueError) as error:
                raise ConfigError(f"evaluation: {error}") from error
            self.evaluated = dataset
        self.evaluator.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, batch_idx, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, batch_idx, "test")

    def _evaluate(self, batch: Batch, batch_idx: int, stage: str) -> None:
        images, targets = batch
        # The proposals for the losses are sampled at random: the same seed at each validation makes losses comparable.
        torch.manual_seed(derive_seed(self.seed, 0, batch_idx, self.global_rank))
        known = targets if self.shared_classes is None else self.shared_classes.label_targets(targets)
        predictions, losses = self.model.evaluate(to_unit_range(images), known)
        if self.shared_classes is not None:
            predictions = self.shared_classes.label_predictions(predictions)
        assert self.evaluator is not None
        self.evaluator.update(predictions, targets, [(image.shape[-2], image.shape[-1]) for image in images])
        parts = {f"{stage}/{name}": value for name, value in losses.items()}
        parts[f"{stage}/loss"] = torch.stack(list(losses.values())).sum()
        self.log_dict(parts, batch_size=len(images), sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def _log_metrics(self, stage: str) -> None:
        assert self.evaluator is not None
        # Unless the number of batches is limited, as in a smoke test, every image must have been evaluated. The float
        # 1.0 means all batches, the integer 1 a single one.
        limit = self.trainer.limit_val_batches if stage == "val" else self.trainer.limit_test_batches
        everything = isinstance(limit, float) and limit == 1.0 and not self.trainer.sanity_checking
        metrics = self.metrics = self.evaluator.compute(partial=not everything)
        # No reduction: every process has the metrics of the whole data set.
        for name, value in metrics.items():
            self.log(f"{stage}/{name}", value, prog_bar=name == self.monitor)


def to_unit_range(images: list[Tensor]) -> list[Tensor]:
    """Converts uint8 images to float32 in [0, 1], on the same device."""
    return [image.float() / 255 for image in images]
