"""Builds, trains, evaluates and restores runs from their composed configs."""

from __future__ import annotations

import functools
import inspect
import logging
import math
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_object, instantiate
from lightning import Trainer, seed_everything
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping, RichProgressBar
from omegaconf import DictConfig, OmegaConf

from detpool.config import PARTS, naming_files
from detpool.config.signatures import argument_of_target
from detpool.data.datamodule import DetectionDataModule
from detpool.detection import GivenProposals, TwoStageDetector
from detpool.detection.backbones.body import Body
from detpool.detection.backbones.weights import load_state_dict, read_weights_file
from detpool.distributed import is_main_process, say
from detpool.errors import ConfigError, did_you_mean, listed
from detpool.evaluation import DetectionEvaluator, write_results
from detpool.evaluation.coco import PREFIXES
from detpool.evaluation.confusion import write_confusion
from detpool.evaluation.matches import MATCHES, write_matches
from detpool.evaluation.pictures import write_pictures
from detpool.evaluation.results import RESULTS
from detpool.evaluation.table import print_metrics
from detpool.files import write_text_atomically
from detpool.own_packages import import_packages
from detpool.run_record import shell_command, write_metrics
from detpool.training.callbacks import EpochLines, SaveOnInterrupt, StepCost
from detpool.training.checkpoints import (
    check_callbacks,
    choose_weights,
    find_best,
    find_last,
    is_kept_as_best,
    keep_weights,
    last_checkpoint,
    use_whole_checkpoints,
)
from detpool.training.initial_weights import start_from
from detpool.training.loggers import log_config
from detpool.training.module import DetectionModule
from detpool.training.resuming import KEPT, begin, check_resume
from detpool.training.shared_classes import SharedClasses
from detpool.training.splits import split_notes

_REPLACEABLE = ("rpn", *(f"roi_heads.{head}_roi_pool" for head in ("box", "mask", "iou")))
"""Modules of a detector that an evaluation can replace by others."""
_say_once = functools.cache(say)


def train(config: DictConfig, command: Sequence[str] | None = None) -> dict[str, float]:
    """Trains and evaluates the detector of a config in its `run_dir`.

    After the evaluation, checkpoints are removed according to `keep_checkpoints`.

    Args:
        config: the composed config of `configs/train.yaml`.
        command: the command line for `metrics.json`. Default: that of this process. A command with `-m` belongs to a
            study, which resumes its runs by the same command.

    Returns:
        The metrics on `evaluation.split` of the best weights according to their checkpoint callback, or of the last
        weights if no epoch could be chosen.

    Raises:
        ConfigError, DataError, WeightsError: If the user has to change something. Raised before the first step, except
            for a full disk.
        FloatingPointError: If the loss is not finite.
    """
    start = time.monotonic()
    seed_everything(config.seed, verbose=False)
    run_dir = Path(config.run_dir)
    split, monitor = config.evaluation.split, config.evaluation.monitor
    # Before the data is read, which may take long, so that errors of the trainer are found early.
    with naming_files(config):
        callbacks = instantiate_all(config.get("callbacks"))
        loggers = instantiate_all(config.get("logger"))
        trainer = build_trainer(config, callbacks, loggers)
    if config.ckpt_path is not None:
        config.ckpt_path = str(find_checkpoint(Path(config.ckpt_path), "last"))
    data = build_data(config, ["fit"] if split == "val" else ["fit", "test"])
    config.class_names = list(data.class_names)
    steps_before = check_resume(config, callbacks)
    with naming_files(config):
        module = build_module(config, pretrained=config.ckpt_path is None)
        module.build_optimizer()  # settings that it rejects are an error of the config, not of the training
    check_proposals(module, data, ["train", "val", split])
    if split == "test" and data.test_dataset is not data.val_dataset:
        module.prepare_evaluation(data.test_dataset)  # so that errors are found before the training
    module.prepare_evaluation(data.val_dataset)
    check_callbacks(callbacks, _check_evaluation(config, module), validates=trainer.limit_val_batches != 0)
    _tell_how_to_resume(callbacks, command)
    if is_main_process():
        begin(run_dir, resumed=config.ckpt_path is not None)
    save_config(config, run_dir)
    log_config(loggers, config)
    say(f"run directory: {run_dir}")
    try:
        trainer.fit(module, datamodule=data, ckpt_path=config.ckpt_path, weights_only=True)
    except (MisconfigurationException, ValueError) as error:
        if not _is_lightnings(error):
            raise
        raise ConfigError(f"trainer: {error}") from error
    finally:
        _end_workers(trainer)
    _tell_why_stopped(callbacks)

    notes = []
    if trainer.global_step == steps_before:
        limits = ", ".join(
            f"trainer.{key}={config.trainer.get(key)}" for key in ("max_epochs", "max_steps", "max_time")
        )
        say(f"note: there was nothing to train: the weights are at step {steps_before} ({limits})")
        if steps_before == 0:
            notes.append("No training step was made.")
    last = last_checkpoint(trainer)
    if last is None:
        # The run was resumed with nothing left to train, or has no checkpoint callback.
        last = run_dir / "checkpoints" / "last.ckpt"
        trainer.save_checkpoint(last, weights_only=False)
    chosen = choose_weights(trainer, f"val/{monitor}")
    if chosen.path is None:
        notes.append(f"{chosen.reason}: the metrics are those of the last weights.")
    else:
        load_checkpoint(module, chosen.path)
    notes += split_notes(data, split, chosen=chosen.path is not None, trained=True)
    validation = {monitor: chosen.score} if chosen.metric == f"val/{monitor}" else None
    evaluated = chosen.path or last
    metrics = evaluate(config, trainer, module, data, start, command, evaluated, notes, validation)
    if config.keep_checkpoints == "best" and is_main_process():
        keep_weights(trainer, run_dir, evaluated)
    return metrics


def _is_lightnings(error: Exception) -> bool:
    """Whether Lightning itself raised an error, which means that it rejected its settings."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__")).startswith("lightning.")


def _end_workers(trainer: Trainer) -> None:
    """Ends the data loading processes, which Lightning leaves to the garbage collector when training is interrupted.

    They ignore the signal that is sent to them at the end of the program, which would wait for them forever.
    """
    for loader in (trainer.train_dataloader, trainer.val_dataloaders):
        iterator = getattr(loader, "_iterator", None)
        if loader is not None and iterator is not None and hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()
            loader._iterator = None


def _tell_how_to_resume(callbacks: Sequence[Any], command: Sequence[str] | None) -> None:
    for callback in callbacks:
        if isinstance(callback, SaveOnInterrupt) and command is not None:
            callback.same_command = "-m" in command
            callback.command = shell_command(command)


def _tell_why_stopped(callbacks: Sequence[Any]) -> None:
    for callback in callbacks:
        if isinstance(callback, EarlyStopping) and callback.stopping_reason_message is not None:
            reason = callback.stopping_reason_message.removesuffix(" Signaling Trainer to stop.")
            say(f"stopped early, after epoch {callback.stopped_epoch + 1}: {reason}")


def restore_and_evaluate(
    config: DictConfig, checkpoint: Path | None, start: float, other_data: bool = False
) -> dict[str, float]:
    """Evaluates a checkpoint and writes the results to `config.run_dir`.

    Args:
        config: the config of the checkpoint's run, with the changes for this evaluation.
        checkpoint: the checkpoint; None to evaluate `model.weights`.
        start: `time.monotonic()` at the start of the program.
        other_data: whether the data differs from the run's, so that the epoch was not chosen on its validation set.

    Raises:
        ConfigError: If the data has no class that the model was trained for, or a file cannot be written.
    """
    split = config.evaluation.split
    data = build_data(config, stages_of(split))
    notes: list[str] = []
    if checkpoint is None:
        config.class_names = list(data.class_names)
        module = build_module(config)
        check_proposals(module, data, [split])
    else:
        module, data, notes = restore_on(config, checkpoint, data)
    trainer = build_trainer(config, [], [])
    save_config(config, Path(config.run_dir))
    chosen = checkpoint is not None and not other_data and is_kept_as_best(checkpoint)
    notes += split_notes(data, split, chosen=chosen, trained=False)
    return evaluate(config, trainer, module, data, start, checkpoint=checkpoint, notes=notes)


def restore_on(
    config: DictConfig, checkpoint: Path, data: DetectionDataModule
) -> tuple[DetectionModule, DetectionDataModule, list[str]]:
    """Restores a detector from a checkpoint to evaluate it on the classes that it shares with the data.

    Args:
        config: the config of the checkpoint's run, with the changes for this evaluation.
        checkpoint: the checkpoint file (see `find_checkpoint`).
        data: the data of `config`, set up for the evaluated split (see `stages_of`).

    Returns:
        The detector, the data with the shared classes, and notes about classes that are left out.

    Raises:
        ConfigError: If no class is shared, or the model needs proposals that the data does not have.
        WeightsError: If the file is damaged or belongs to another model.
    """
    shared, notes = None, list[str]()
    if list(data.class_names) != list(config.class_names):
        data, notes = _with_shared_classes(config, data)
        shared = SharedClasses(config.class_names, data.class_names)
    module = restore(config, checkpoint)
    module.shared_classes = shared
    check_proposals(module, data, [config.evaluation.split])
    return module, data, notes


def _with_shared_classes(config: DictConfig, data: DetectionDataModule) -> tuple[DetectionDataModule, list[str]]:
    """The data restricted to the classes that the checkpoint was trained for, and notes about the other classes."""
    shared = [name for name in data.class_names if name in config.class_names]
    absent = [name for name in data.class_names if name not in config.class_names]
    if not shared or (absent and argument_of_target(config.data._target_, "drop_others") is None):
        raise ConfigError(
            f"the data has the classes {list(data.class_names)}, the checkpoint was trained for {config.class_names}"
        )
    if not absent:
        return data, []
    OmegaConf.update(config, "data.classes", shared, force_add=True)
    return build_data(config, stages_of(config.evaluation.split)), [
        f"Evaluated on the classes that the checkpoint was trained for, {listed(shared)}; not on {listed(absent)}."
    ]


def evaluate(
    config: DictConfig,
    trainer: Trainer,
    module: DetectionModule,
    data: DetectionDataModule,
    start: float,
    command: Sequence[str] | None = None,
    checkpoint: Path | None = None,
    notes: Sequence[str] = (),
    validation: dict[str, float] | None = None,
) -> dict[str, float]:
    """Evaluates a detector on `evaluation.split`, prints a table of metrics, and returns the metrics.

    Writes `metrics.json`, `predictions.json.gz`, `matches.npz` and `pictures/` to the run directory.

    Args:
        config: the config of the run.
        trainer: the trainer that runs the evaluation.
        module: the detector.
        data: the data of the run, set up for the split.
        start: `time.monotonic()` at the start of the program, for the seconds in `metrics.json`.
        command: the command line for `metrics.json`. Default: that of this process.
        checkpoint: the file of the weights, for `metrics.json`.
        notes: warnings about the metrics, which are printed and written to `metrics.json`.
        validation: `evaluation.monitor` of these weights on the validation set, for `metrics.json`, if another data set
            is evaluated. If None, it is measured, provided that the weights were trained by this trainer.
    """
    run_dir = Path(config.run_dir)
    split, monitor = config.evaluation.split, config.evaluation.monitor
    same = split == "val" or data.test_dataset is data.val_dataset
    if validation is None and not same and trainer.global_step > 0:
        module.metrics = {}
        trainer.validate(module, datamodule=data, verbose=False)
        validation = {monitor: module.metrics.get(monitor, math.nan)}
    # Through the datamodule, since the images can be distributed only once the processes have been started.
    run, dataset = (trainer.validate, data.val_dataset) if split == "val" else (trainer.test, data.test_dataset)
    run(module, datamodule=data, verbose=False)
    loader: Any
    loader, batches = (
        (trainer.val_dataloaders, trainer.num_val_batches)
        if split == "val"
        else (trainer.test_dataloaders, trainer.num_test_batches)
    )
    if sum(batches) < len(loader):
        of_all = f"{sum(batches)} of {len(loader)} batches"
        notes = [*notes, f"Evaluated on {of_all} of the {split} split (trainer.limit_{split}_batches)."]
    if same:
        validation = {monitor: module.metrics.get(monitor, math.nan)}
    assert module.evaluator is not None
    rows, errors, matches = module.evaluator.results(), module.evaluator.errors(), module.evaluator.matches()
    masks = "segm" in config.evaluation.iou_types
    mask_errors = module.evaluator.errors("segm") if masks else None
    diagnostics = config.evaluation.get("diagnostics") or []
    metrics = module.metrics | _diagnose(module.evaluator, diagnostics, masks)
    confusion = module.evaluator.confusion() if "confusion" in diagnostics else None
    if is_main_process():
        write_results(run_dir / RESULTS, rows)
        if matches:
            write_matches(run_dir / MATCHES, matches)
        if config.evaluation.pictures > 0:
            write_pictures(run_dir / "pictures", dataset, rows, limit=config.evaluation.pictures, masks=masks)
        cost = next((callback for callback in trainer.callbacks if isinstance(callback, StepCost)), None)  # type: ignore[attr-defined]
        write_metrics(
            run_dir / "metrics.json",
            metrics,
            seconds=time.monotonic() - start,
            errors=errors,
            mask_errors=mask_errors,
            step_seconds=cost.step_seconds if cost else None,
            peak_memory_bytes=cost.peak_memory_bytes if cost else None,
            command=command,
            validation=validation,
            checkpoint=None if checkpoint is None else _path_in(run_dir, checkpoint),
            images=data.numbers_of_images(),
            notes=notes,
        )
        if confusion is not None:
            write_confusion(run_dir, confusion, dataset.class_names)
        print_metrics(metrics, title=f"{split} split, {len(dataset)} images")
    for note in notes:
        say(f"note: {note}")
    say(f"metrics, predictions and pictures: {run_dir}")
    return metrics


def _diagnose(evaluator: DetectionEvaluator, wanted: Sequence[str], masks: bool) -> dict[str, float]:
    """The values of `evaluation.diagnostics`, by metric name."""
    found: dict[str, float] = {}
    if "tide" in wanted:
        for iou_type in ("bbox", "segm") if masks else ("bbox",):
            costs = evaluator.error_costs(iou_type)
            found |= {PREFIXES[iou_type] + name: cost for name, cost in costs.items() if name != "AP50"}
    return found | (evaluator.calibration() if "calibration" in wanted else {})


def _path_in(run_dir: Path, path: Path) -> str:
    path, run_dir = path.resolve(), run_dir.resolve()
    return str(path.relative_to(run_dir) if path.is_relative_to(run_dir) else path)


def stages_of(split: str) -> list[str]:
    """The stages of `DetectionDataModule.setup` that the evaluation of a split needs, for `build_data`."""
    return ["validate"] if split == "val" else ["validate", "test"]


def build_data(config: DictConfig, stages: Sequence[str] = ("validate",)) -> DetectionDataModule:
    """Builds the datamodule of a config, and reads the data sets of the given stages.

    Args:
        config: a composed config.
        stages: stages of `DetectionDataModule.setup`.

    Raises:
        ConfigError: If a data set rejects its settings, or `evaluation.split` is unknown.
        DataError: If files are missing or broken.
    """
    import_packages(config.get("imports"))  # before files are read, which may take long
    if config.evaluation.split not in ("val", "test"):
        raise ConfigError(f"evaluation.split must be val or test, got {config.evaluation.split!r}")
    data = instantiate(config.data)
    try:
        for stage in stages:
            data.setup(stage)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"data: {error}") from error
    return data


def build_module(config: DictConfig, pretrained: bool = True) -> DetectionModule:
    """Builds the detector of a config in its Lightning module.

    Args:
        config: a composed config with `class_names`.
        pretrained: whether to load `model.weights` or the backbone's weights. Not needed if a checkpoint is restored,
            which replaces them.

    Raises:
        ConfigError: If parts of the detector do not fit each other.
        WeightsError: If weights cannot be loaded or do not fit.
    """
    import_packages(config.get("imports"))
    weights = config.model.get("weights") if pretrained else None
    build = functools.partial(build_detector, config, pretrained=pretrained and weights is None)
    model = build(len(config.class_names))
    if weights is not None:
        start_from(model, weights, list(config.class_names), build)
    return DetectionModule(
        model,
        instantiate(config.optim.optimizer),
        instantiate(config.optim.schedule),
        evaluator_of(config),
        seed=config.seed,
        channels_last=config.channels_last,
        backbone_rate=config.optim.get("backbone_rate", 1.0),
        frozen=config.optim.get("frozen", ()),
        monitor=config.evaluation.monitor,
    )


def evaluator_of(config: DictConfig) -> Callable[..., DetectionEvaluator]:
    """Returns a function that builds the evaluator of a config for a given data set."""
    return functools.partial(
        DetectionEvaluator,
        metrics=("coco", "voc") if config.evaluation.voc else ("coco",),
        iou_types=tuple(config.evaluation.iou_types),
        voc_iou_threshold=config.evaluation.voc_iou_threshold,
        backend=config.evaluation.backend,
        max_dets=tuple(config.evaluation.max_dets),
    )


def build_detector(config: DictConfig, num_classes: int, pretrained: bool = True) -> TwoStageDetector:
    """Builds the detector of a config.

    Args:
        config, pretrained: see `build_module`.
        num_classes: number of classes without background.
    """
    node = config.model.copy()
    OmegaConf.set_struct(node, False)
    node.pop("weights", None)
    return instantiate(
        node,
        num_classes=num_classes,
        body=build_body(config, pretrained),
        box_pooler=instantiate(config.pooler),
        **_build_parts(config.model, config),
    )


def build_body(config: DictConfig, pretrained: bool = True) -> Body:
    """Builds the body of a config's backbone: the network that computes feature maps, without neck and heads.

    Args:
        config, pretrained: see `build_module`.
    """
    loading = {"pretrained": pretrained} if "weights" in config.backbone else {}
    return instantiate(config.backbone, **loading, **_build_parts(config.backbone, config))


def _build_parts(node: DictConfig, config: DictConfig) -> dict[str, Any]:
    """Builds the parts of a config that the `_target_` of a node takes as arguments."""
    arguments = inspect.signature(get_object(node._target_)).parameters
    return {part: instantiate(config[part]) for part in PARTS if config.get(part) and part in arguments}


def build_trainer(config: DictConfig, callbacks: list[Any], loggers: list[Any]) -> Trainer:
    """Builds the Lightning trainer, with a progress bar in a terminal and one line per epoch elsewhere.

    Raises:
        ConfigError: If the device does not exist or does not support the settings, or if the evaluated split is limited
            to 0 batches.
    """
    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    accelerator = config.trainer.get("accelerator", "auto")
    if not found.get(accelerator, accelerator != "gpu" or any(found.values())):
        raise ConfigError(
            f"trainer.accelerator={accelerator}: PyTorch finds no such device here; trainer.accelerator=cpu needs none"
        )
    # Hide Lightning's messages about devices, limits and its other products at each start.
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"lightning\.")
    warnings.filterwarnings("ignore", message=".*treespec.*", module=r"lightning\.")
    for message in (
        ".*smaller than the logging interval.*",
        ".*Checkpoint directory .* exists and is not empty.*",  # a run of a sweep is resumed in its own directory
        ".*sync_dist=True.*",  # every process computes the metrics of the whole data set
        ".*MLFlow only allows.*",  # MLflow stores AP@0.75 as AP0.75
    ):
        warnings.filterwarnings("ignore", message=message)
    bar = config.progress and sys.stdout.isatty()
    trainer = instantiate(
        config.trainer,
        callbacks=[*callbacks, RichProgressBar() if bar else EpochLines()],
        logger=loggers,
        default_root_dir=config.run_dir,
        enable_progress_bar=bar,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    if config.trainer.get("sync_batchnorm") and trainer.world_size > 1 and trainer.strategy.root_device.type == "cpu":
        raise ConfigError("trainer.sync_batchnorm=true: PyTorch shares statistics between GPUs alone, not on a CPU")
    limit = f"limit_{config.evaluation.split}_batches"
    if getattr(trainer, limit, 1) == 0:
        raise ConfigError(f"trainer.{limit} is 0, and evaluation.split={config.evaluation.split} is to be evaluated")
    use_whole_checkpoints(trainer)
    return trainer


def instantiate_all(group: DictConfig | None) -> list[Any]:
    """Builds each member of a group of named objects; a member that is null is left out."""
    return [instantiate(node) for node in (group or {}).values() if node is not None]


def save_config(config: DictConfig, run_dir: Path) -> None:
    """Writes the whole config, with interpolations resolved, to `config.yaml` in the run directory."""
    if is_main_process():
        write_text_atomically(run_dir / "config.yaml", OmegaConf.to_yaml(config, resolve=True))


def find_checkpoint(path: Path, name: str = "best") -> Path:
    """Returns the checkpoint file for a `ckpt_path`, which is a file or a run directory.

    Args:
        path: a file or a folder.
        name: which checkpoint of a folder, "best" (`checkpoints.find_best`) or "last" (`checkpoints.find_last`).

    Raises:
        ConfigError: If the path does not exist, or a folder has no checkpoint that can be used.
    """
    # `os.path`, because pathlib raises an error for names that are too long.
    if os.path.isfile(path):
        return path
    if os.path.isdir(path):
        found = find_best(path) if name == "best" else find_last(path)
        if found is None:
            raise ConfigError(f"ckpt_path={path} is a folder without a checkpoint to go on from{KEPT}")
        return found
    near = sorted(map(str, path.parent.glob("*.ckpt"))) if os.path.isdir(path.parent) else []
    hint = f"; there are {', '.join(near)}" if near else ""
    raise ConfigError(f"ckpt_path={path} does not exist (looked from {Path.cwd()}){hint}")


def restore(config: DictConfig, checkpoint: Path) -> DetectionModule:
    """Builds the detector of a config and loads the weights of a checkpoint.

    Args:
        config: the config of the checkpoint's run, with the changes for this evaluation.
        checkpoint: the checkpoint file (see `find_checkpoint`).

    Raises:
        WeightsError: If the file is damaged or belongs to another model.
    """
    module = build_module(config, pretrained=False)
    load_checkpoint(module, checkpoint)
    return module


def load_checkpoint(module: DetectionModule, checkpoint: Path) -> None:
    """Loads the weights of a checkpoint into a module; only tensors are read from the file.

    Weights of a region proposal network or a pooler are skipped, with a note, if the model has a module without weights
    in its place.

    Raises:
        WeightsError: If the file is damaged or belongs to another model.
    """
    weights, own = read_weights_file(str(checkpoint)), module.state_dict()
    for part in _REPLACEABLE:
        unused = [name for name in weights if name.startswith(f"model.{part}.")]
        if unused and not any(name.startswith(f"model.{part}.") for name in own):
            kind = type(module.model.get_submodule(part)).__name__
            _say_once(f"note: {len(unused)} weights of {part} in {checkpoint} are not used: {kind} is in its place")
            weights = {name: value for name, value in weights.items() if name not in unused}
    load_state_dict(module, weights, source=str(checkpoint))


def _check_evaluation(config: DictConfig, module: DetectionModule) -> list[str]:
    """Checks the settings of the evaluation before the first step, and returns the names of the metrics.

    Raises:
        ConfigError: If masks are to be evaluated and the model predicts none, or `evaluation.monitor` is no metric.
    """
    assert module.evaluator is not None
    of_masks = [each for each in config.evaluation.iou_types if each != "bbox"]
    if of_masks and not module.model.roi_heads.has_mask():
        raise ConfigError(
            f"evaluation.iou_types: {of_masks[0]} needs a model that predicts masks (model=mask_rcnn, ...)"
        )
    monitor, names = config.evaluation.monitor, module.evaluator.compute(partial=True)
    if monitor not in names:
        raise ConfigError(
            f"evaluation.monitor={monitor} is not a metric of this evaluation{did_you_mean(monitor, names)}"
        )
    return list(names)


def check_proposals(module: DetectionModule, data: DetectionDataModule, splits: list[str]) -> None:
    """Raises ConfigError if the model uses given proposals and a split has no file of proposals."""
    if isinstance(module.model.rpn, GivenProposals) and (missing := data.missing_proposals(splits)):
        raise ConfigError(
            f"proposals=given: {' and '.join(f'data.{name}' for name in missing)} must name files of proposals "
            f"(tools/write_proposals.py writes such files)"
        )
