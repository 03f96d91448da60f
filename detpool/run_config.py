"""Reads the config that a run saved beside its results, and converts old keys. Nothing here imports torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from detpool.errors import ConfigError

_RENAMED = {"detpool.pooling.": "detpool.layers."}
"""Modules that were renamed: old prefix to new prefix."""
_PROPOSALS = {
    "given": ("GivenProposals", ("top_n_train", "top_n_test")),
    "jittered": ("JitteredProposals", ("boxes_per_object", "min_iou", "background_per_object")),
}
_OF_HEADS = ("bbox_reg_weights", "iou_boxes_per_image", "iou_guided", "refine_steps", "refine_step_size")


def read_run_config(path: Path) -> DictConfig:
    """Reads a run's `config.yaml` and converts old names and keys to the current ones.

    Runs of earlier revisions can thus still be evaluated and reported.
    """
    text = path.read_text(encoding="utf-8")
    for old, new in _RENAMED.items():
        text = text.replace(old, new)
    config = OmegaConf.create(text)
    model = config.get("model") if isinstance(config, DictConfig) else None
    if (
        isinstance(model, DictConfig)
        and str(model.get("_target_")).startswith("detpool.detection")
        and "roi_heads" not in model
    ):
        config.model = _nested(OmegaConf.to_container(model))
    return config  # type: ignore[return-value]


def load_config(checkpoint: Path) -> DictConfig:
    """Loads the config of the run that wrote a checkpoint (see `find_run`).

    Its `imports` are emptied: the run may come from elsewhere, and only the user may name packages to import.

    Args:
        checkpoint: a checkpoint, or a run directory.

    Raises:
        ConfigError: If there is no such config, or it cannot be read.
    """
    path = find_run(checkpoint) / "config.yaml"
    try:
        config = read_run_config(path)
    except (OSError, ValueError, YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, DictConfig):
        raise ConfigError(f"{path} is not the config of a run")
    config.imports = []
    return config


def find_run(checkpoint: Path) -> Path:
    """Returns the run directory of a checkpoint: the nearest folder with a `config.yaml`.

    Args:
        checkpoint: a checkpoint file, with `config.yaml` in its folder or up to three above it; or a run directory.

    Raises:
        ConfigError: If there is none.
    """
    checkpoint = checkpoint.absolute()
    for folder in [checkpoint, *checkpoint.parents][:5]:  # a metric in the checkpoint's name makes folders (val/AP)
        if os.path.isfile(folder / "config.yaml"):  # pathlib raises errors for names that are too long
            return folder
    if not os.path.exists(checkpoint):
        raise ConfigError(f"ckpt_path={checkpoint} does not exist (looked from {Path.cwd()})")
    raise ConfigError(f"no config.yaml beside {checkpoint} or up to three folders up: it says which model to restore")


def _nested(model: Any) -> dict[str, Any]:
    """Converts an old, flat config of a model, with keys such as `rpn_nms_thresh`, to nested mappings."""
    target = str(model["_target_"]).rpartition(".")[2]
    rpn: dict[str, Any] = {"_target_": "detpool.detection.ProposalNetwork", "_partial_": True}
    heads: dict[str, Any] = {"_target_": "detpool.detection.TwoStageHeads", "_partial_": True}
    if target == "iou_net":
        heads["_target_"] = "detpool.detection.IoUHeads"
    if target in ("rfcn", "light_head_rcnn"):  # their defaults, where a config left them out
        heads |= {"hard_examples": True} | ({"batch_size_per_image": 128} if target == "rfcn" else {})
    kind, of_kind = _PROPOSALS.get(model.get("proposals", "rpn"), ("", ()))
    proposals: dict[str, Any] = {"_target_": f"detpool.detection.{kind}"}
    of_any_kind = [name for _, names in _PROPOSALS.values() for name in names]
    nested: dict[str, Any] = {}
    for key, value in model.items():
        name = key.removeprefix("rpn_").removeprefix("box_")
        if key.startswith("rpn_") and name in of_any_kind:
            if name in of_kind:  # settings of kinds of proposals that were not chosen had no effect
                proposals[name] = value
        elif key.startswith(("rpn_", "anchor_")):
            rpn[{"anchor_aspect_ratios": "aspect_ratios"}.get(key, name)] = value
        elif key.startswith("box_") or key in _OF_HEADS:
            heads[name] = value
        elif key != "proposals":
            nested[key] = value
    return {**nested, "rpn": rpn, "roi_heads": heads, "proposals": proposals if kind else None}
