"""What was trained, in a few words, from what the configs and records of runs have in common."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from detpool.report.collect import Run
from detpool.report.groups import Section

VARIES = "varies"
_KEYS = {"model": "model", "backbone": "backbone", "proposals": "model.proposals", "pooler": "pooler"}
_KEYS |= {"mask pooler": "mask_pooler", "IoU pooler": "iou_pooler", "stem pool": "stem_pool"}
_KEYS |= {"stage 2 pooler": "stage2_pooler", "stage 3 pooler": "stage3_pooler"}
_KEYS |= {"downsample": "downsample", "context": "context", "head pool": "head_pool", "optimizer": "optim.optimizer"}
"""Dotted keys of a config, by the name of the fact."""


def facts(section: Section) -> dict[str, str]:
    """Describes what the runs of a section trained, by kind of fact; `varies` marks what differs between runs.

    Facts that are in neither the configs nor the records are left out.
    """
    common = _common([run.config for run in section.all_runs])
    found = {name: _describe(_get(common, key)) for name, key in _KEYS.items()}
    if isinstance(model := common.get("model"), Mapping):  # its parts are separate facts
        weights = {key: model[key] for key in ("_target_", "weights") if key in model}
        found["model"] = _describe(weights)
    data = _get(common, "data") or {}
    sizes = {"training": data.get("train_transform"), "evaluation": data.get("eval_transform")}
    classes, devices = common.get("class_names"), _get(common, "trainer.devices")
    several = f" on each of {devices} devices" if isinstance(devices, int) and devices > 1 else ""
    found |= {
        "classes": str(len(classes)) if isinstance(classes, list) else "",
        "images": _common([_images(run) for run in section.all_runs]),
        "image size": _describe(data.get("size")) or _listed({name: _size(value) for name, value in sizes.items()}),
        "epochs": _describe(_get(common, "trainer.max_epochs")),
        "batch size": _describe(data.get("batch_size")) + several,
        "seeds": ", ".join(map(str, sorted({run.seed for run in section.all_runs}))),
    }
    return {name: text for name, text in found.items() if text}


def _common(values: Sequence[Any]) -> Any:
    """Returns the common value, or `VARIES`; compares mappings with the same `_target_`, or none, key by key."""
    first, *others = values
    if all(value == first for value in others):
        return first
    if not all(isinstance(value, Mapping) for value in values):
        return VARIES
    if len({value.get("_target_") for value in values}) > 1:
        return VARIES
    return {key: _common([value.get(key) for value in values]) for key in dict.fromkeys(k for v in values for k in v)}


def _get(config: Any, key: str) -> Any:
    """Returns the value of a dotted key; None if there is none, `VARIES` if it or a parent varies."""
    for word in key.split("."):
        if config == VARIES:
            return VARIES
        config = config.get(word) if isinstance(config, Mapping) else None
    return config


def _describe(value: Any) -> str:
    """Formats a value as text: an object as a call of its function with its arguments."""
    if isinstance(value, Mapping):
        name = str(value.get("_target_", "")).rpartition(".")[2]
        shown = {key: _describe(part) for key, part in value.items() if not str(key).startswith("_")}
        arguments = ", ".join(f"{key}={text}" for key, text in shown.items() if text)
        return f"{name}({arguments})" if name and arguments else name or arguments
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, default=str)


def _size(transform: Any) -> str:
    """Describes the image size that a transform with the arguments of `detection_transform` produces."""
    if not isinstance(transform, Mapping):
        return _describe(transform)
    words = {"size": "", "min_size": "shorter side ", "max_size": "longer at most "}
    return ", ".join(word + _describe(transform[key]) for key, word in words.items() if transform.get(key) is not None)


def _images(run: Run) -> str:
    """Describes the number of images of each split, from the record or else from the config."""
    counts = {split: run.config["data"].get(f"{split}_images") for split in ("train", "val", "test")}
    recorded = run.record.get("images") or {}
    counts |= recorded
    same = recorded and run.split == "test" and "test" not in recorded  # then the validation set is the test set
    names = {"train": "training", "val": "validation and test" if same else "validation", "test": "test"}
    return ", ".join(f"{count} {names[split]}" for split, count in counts.items() if count is not None)


def _listed(texts: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {text}" for name, text in texts.items() if text)
