"""A run, from its composed config to its directory: build, train, evaluate, restore."""

from __future__ import annotations

import functools
import logging
import os
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import RichProgressBar
from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from detpool.config import SLOTS, check_complete, check_config, naming_files
from detpool.data.datamodule import DetectionDataModule
from detpool.detection.backbones.weights import load_state_dict, read_weights_file
from detpool.distributed import is_main_process, say
from detpool.errors import ConfigError, WeightsError, did_you_mean
from detpool.evaluation import DetectionEvaluator, write_results
from detpool.evaluation.metrics_file import write_metrics
from detpool.evaluation.pictures import write_pictures
from detpool.evaluation.table import print_metrics
from detpool.training.callbacks import EpochLines, StepCost
from detpool.training.module import DetectionModule


def train(config: DictConfig, command: Sequence[str] | None = None) -> dict[str, float]:
    """Trains and evaluates what a config describes, in its `run_dir`.

    Args:
        config: the composed config of `configs/train.yaml`.
        command: the command line that `metrics.json` names, default that of this process.

    Returns:
        the metrics of the best checkpoint (of the last, if no validation was run) on `evaluation.split`.
    """
    start = time.monotonic()
    seed_everything(config.seed, verbose=False)
    run_dir = Path(config.run_dir)
    # Before data are read, which may take long: what is wrong with the trainer is known without them.
    with naming_files(config):
        trainer = build_trainer(config, instantiate_all(config.get("callbacks")), instantiate_all(config.get("logger")))
    if config.ckpt_path is not None:
        config.ckpt_path = str(find_checkpoint(Path(config.ckpt_path), "last"))
    data = build_data(config)
    config.class_names = list(data.class_names)
    _check_proposals(config, data, ["train", "val", config.evaluation.split])
    _check_resume(config)
    with naming_files(config):
        module = build_module(config, pretrained=config.ckpt_path is None)
        module.build_optimizer()  # what it refuses is no error of the training
    module.prepare_evaluation(data.val_dataset)
    _check_evaluation(config, module)
    save_config(config, run_dir)
    say(f"run directory: {run_dir}")
    trainer.fit(module, datamodule=data, ckpt_path=config.ckpt_path, weights_only=True)

    best, last = (run_dir / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
    if not last.exists():
        # Resumed with nothing left to train, or without callbacks.
        trainer.save_checkpoint(last, weights_only=False)
    load_checkpoint(module, best if best.exists() else last)
    return evaluate(config, trainer, module, data, start, command)


def restore_and_evaluate(config: DictConfig, checkpoint: Path, start: float) -> dict[str, float]:
    """Evaluates a checkpoint in the `run_dir` of `config`, the config of its run with what is to differ.

    Args:
        start: `time.monotonic()` at the start of the program.

    Raises:
        ConfigError: if the data has other classes than the model was trained for.
    """
    check_complete(config)
    check_config(config)
    data = build_data(config)
    if list(data.class_names) != list(config.class_names):
        raise ConfigError(
            f"the data has the classes {list(data.class_names)}, the checkpoint was trained for {config.class_names}"
        )
    _check_proposals(config, data, [config.evaluation.split])
    module = build_module(config, pretrained=False)
    load_checkpoint(module, checkpoint)
    trainer = build_trainer(config, [], [])
    save_config(config, Path(config.run_dir))
    return evaluate(config, trainer, module, data, start)


def evaluate(
    config: DictConfig,
    trainer: Trainer,
    module: DetectionModule,
    data: DetectionDataModule,
    start: float,
    command: Sequence[str] | None = None,
) -> dict[str, float]:
    """Evaluates on `evaluation.split`; writes `metrics.json`, `predictions.json` and `pictures/` into the run
    directory, and prints a table.

    Args:
        start: `time.monotonic()` at the start of the program, for the seconds in `metrics.json`.
        command: the command line that `metrics.json` names, default that of this process.
    """
    run_dir = Path(config.run_dir)
    split = config.evaluation.split
    # Through the datamodule: how it shares the images out is known only once the processes have met.
    run, dataset = (trainer.validate, data.val_dataset) if split == "val" else (trainer.test, data.test_dataset)
    run(module, datamodule=data, verbose=False)
    assert module.evaluator is not None
    rows, errors = module.evaluator.results(), module.evaluator.errors()
    if is_main_process():
        write_results(run_dir / "predictions.json", rows)
        if config.evaluation.pictures > 0:
            masks = "segm" in config.evaluation.iou_types
            write_pictures(run_dir / "pictures", dataset, rows, limit=config.evaluation.pictures, masks=masks)
        cost = next((callback for callback in trainer.callbacks if isinstance(callback, StepCost)), None)  # type: ignore[attr-defined]
        write_metrics(
            run_dir / "metrics.json",
            module.metrics,
            seconds=time.monotonic() - start,
            errors=errors,
            step_seconds=cost.step_seconds if cost else None,
            peak_memory_bytes=cost.peak_memory_bytes if cost else None,
            command=command,
        )
        print_metrics(module.metrics, title=f"{split} split, {len(dataset)} images")
    say(f"metrics, predictions and pictures: {run_dir}")
    return module.metrics


def build_data(config: DictConfig) -> DetectionDataModule:
    """The datamodule of a config, with its validation set read.

    Raises:
        ConfigError: if a data set refuses its settings, or `evaluation.split` is not one.
        DataError: if files are missing or broken.
    """
    if config.evaluation.split not in ("val", "test"):
        raise ConfigError(f"evaluation.split must be val or test, got {config.evaluation.split!r}")
    data = instantiate(config.data)
    try:
        data.setup("validate")
    except (TypeError, ValueError) as error:
        raise ConfigError(f"data: {error}") from error
    return data


def build_module(config: DictConfig, pretrained: bool = True) -> DetectionModule:
    """The detector of a config in its Lightning module.

    Args:
        config: a composed config whose `class_names` is filled in.
        pretrained: whether to load the backbone's weights; a checkpoint to be restored replaces them anyway.
    """
    loading = {"pretrained": pretrained} if "weights" in config.backbone else {}
    slots: dict[str, dict[str, Any]] = {"backbone": {}, "model": {}}
    for slot, owner in SLOTS.items():
        if config.get(slot) is not None:
            slots[owner][slot] = instantiate(config[slot])
    model = instantiate(
        config.model,
        num_classes=len(config.class_names),
        body=instantiate(config.backbone, **loading, **slots["backbone"]),
        box_pooler=instantiate(config.pooler),
        **slots["model"],
    )
    evaluator = functools.partial(
        DetectionEvaluator,
        metrics=("coco", "voc") if config.evaluation.voc else ("coco",),
        iou_types=tuple(config.evaluation.iou_types),
        voc_iou_threshold=config.evaluation.voc_iou_threshold,
        backend=config.evaluation.backend,
        max_dets=tuple(config.evaluation.max_dets),
    )
    return DetectionModule(
        model,
        instantiate(config.optim.optimizer),
        instantiate(config.optim.schedule),
        evaluator,
        seed=config.seed,
        channels_last=config.channels_last,
    )


def build_trainer(config: DictConfig, callbacks: list[Any], loggers: list[Any]) -> Trainer:
    """The Lightning trainer, with a progress bar in a terminal and lines elsewhere.

    Raises:
        ConfigError: if there is no such device.
    """
    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    accelerator = config.trainer.get("accelerator", "auto")
    if not found.get(accelerator, accelerator != "gpu" or any(found.values())):
        raise ConfigError(
            f"trainer.accelerator={accelerator}: PyTorch finds no such device here; trainer.accelerator=cpu needs none"
        )
    # What Lightning says of devices, limits and its other products at each start is not worth a line of ours.
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"lightning\.")
    warnings.filterwarnings("ignore", message=".*treespec.*", module=r"lightning\.")
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
    # A run of a sweep is resumed where it is.
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
    # Every process computes the metrics of the whole, so there is nothing to synchronise.
    warnings.filterwarnings("ignore", message=".*sync_dist=True.*")
    if config.progress and sys.stdout.isatty():
        callbacks = [*callbacks, RichProgressBar()]
    else:
        callbacks = [*callbacks, EpochLines()]
    return instantiate(
        config.trainer,
        callbacks=callbacks,
        logger=loggers,
        default_root_dir=config.run_dir,
        enable_progress_bar=config.progress and sys.stdout.isatty(),
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def instantiate_all(group: DictConfig | None) -> list[Any]:
    """Builds each member of a group of named objects; a member that is null is left out."""
    return [instantiate(node) for node in (group or {}).values() if node is not None]


def save_config(config: DictConfig, run_dir: Path) -> None:
    """Writes `config.yaml`: all of the config, interpolations resolved."""
    if is_main_process():
        run_dir.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(config, run_dir / "config.yaml", resolve=True)


def find_checkpoint(path: Path, name: str = "best") -> Path:
    """The checkpoint that a `ckpt_path` means: the file itself, or that of a run directory or its `checkpoints`.

    Args:
        path: a file, or a folder.
        name: of a folder's, "best" or "last". Of a run without a best one, the last; of a run whose best has another
            name, the only one beside the last.

    Raises:
        ConfigError: if it does not exist, or a folder has several; the message names those that are there.
    """
    # os.path, since pathlib raises errors for names that are too long.
    if os.path.isfile(path):
        return path
    folders = [path, path / "checkpoints"] if os.path.isdir(path) else [path.parent]
    near = sorted(file for folder in folders if os.path.isdir(folder) for file in folder.glob("*.ckpt"))
    if os.path.isdir(path):
        others = [checkpoint for checkpoint in near if checkpoint.stem != "last"]
        matching = [checkpoint for checkpoint in near if checkpoint.stem == name]
        if not matching and name == "best" and len(others) <= 1:
            matching = others or near
        if matching:
            return matching[0]
    hint = f"; there are {', '.join(map(str, near))}" if near else ""
    what = f"is a folder without {name}.ckpt" if os.path.isdir(path) else "does not exist"
    raise ConfigError(f"ckpt_path={path} {what} (looked from {Path.cwd()}){hint}")


def load_config(checkpoint: Path) -> DictConfig:
    """The config of the run that wrote a checkpoint: `config.yaml` beside it or one folder up.

    It may come from elsewhere, so the packages that it names in `imports` are none that the user has named.

    Raises:
        ConfigError: if the checkpoint or its config does not exist, or the config cannot be read.
    """
    checkpoint = find_checkpoint(checkpoint)
    for folder in (checkpoint.parent, checkpoint.parent.parent):
        path = folder / "config.yaml"
        if path.is_file():
            try:
                config = OmegaConf.load(path)
            except (OSError, ValueError, YAMLError) as error:
                raise ConfigError(f"{path} cannot be read: {error}") from error
            if not isinstance(config, DictConfig):
                raise ConfigError(f"{path} is not the config of a run")
            config.imports = []
            return config
    raise ConfigError(f"no config.yaml beside {checkpoint} or one folder up: it says which model to restore")


def load_checkpoint(module: DetectionModule, checkpoint: Path) -> None:
    """Loads the weights of a checkpoint, tensors only.

    Raises:
        WeightsError: if the file is damaged or belongs to another model.
    """
    load_state_dict(module, read_weights_file(str(checkpoint)), source=str(checkpoint))


def _check_evaluation(config: DictConfig, module: DetectionModule) -> None:
    """What would end a run at its first validation ends it before the first step."""
    assert module.evaluator is not None
    if "segm" in config.evaluation.iou_types and not module.model.roi_heads.has_mask():
        raise ConfigError("evaluation.iou_types: segm needs a model that predicts masks (model=mask_rcnn, ...)")
    monitor, names = config.evaluation.monitor, module.evaluator.compute(partial=True)
    if monitor not in names:
        raise ConfigError(
            f"evaluation.monitor={monitor} is not a metric of this evaluation{did_you_mean(monitor, names)}"
        )


def _check_proposals(config: DictConfig, data: DetectionDataModule, splits: list[str]) -> None:
    """A file of proposals that a split lacks is asked for before the first step, not when the split is first read."""
    if config.model.get("proposals") == "given" and (missing := data.missing_proposals(splits)):
        raise ConfigError(
            f"model.proposals=given: {' and '.join(f'data.{name}' for name in missing)} must name files of proposals "
            f"(tools/write_proposals.py writes such files)"
        )


def _check_resume(config: DictConfig) -> None:
    """A checkpoint of another model fails here with the settings that differ, not later with a list of tensors."""
    if config.ckpt_path is None:
        return
    checkpoint = Path(config.ckpt_path)
    before = load_config(checkpoint)
    config_now = OmegaConf.to_container(config, resolve=True)
    config_then = OmegaConf.to_container(before, resolve=True)
    assert isinstance(config_now, dict)
    assert isinstance(config_then, dict)
    same = ("model", "backbone", "pooler", *SLOTS, "class_names")
    differing = [key for key in same if config_now.get(key) != config_then.get(key)]
    if config_now["optim"]["optimizer"]["_target_"] != config_then["optim"]["optimizer"]["_target_"]:
        differing.append("optim.optimizer")
    if differing:
        raise WeightsError(
            f"{checkpoint} cannot be resumed with this config: the run it comes from has another {', '.join(differing)}"
        )
    if others := [key for key in ("seed", "data", "optim", "channels_last") if config_now[key] != config_then[key]]:
        say(f"note: {', '.join(others)} changed since {checkpoint}: the result is not that of an uninterrupted run")
