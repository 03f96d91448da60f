"""Initialization with the weights of another trained detector: tensors and classes are matched by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from detpool.detection.backbones.weights import read_weights_file
from detpool.detection.detectron2_weights import read_detectron2_file
from detpool.distributed import say
from detpool.errors import ConfigError, WeightsError
from detpool.run_config import load_config
from detpool.training.checkpoints import find_best

COCO_LABELS: list[str] = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
"""Class names of labels 0, 1, ... of torchvision's detectors, which are COCO's category ids; "N/A" for unused ids."""
_ABSENT = ("__background__", "N/A")
_RENAMED: tuple[tuple[str, Any], ...] = (
    (r"^(rpn\.head\.conv)\.(weight|bias)$", r"\1.0.0.\2"),
    (r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.(weight|bias)$", r"\1.0.\2"),
    (r"^roi_heads\.mask_head\.mask_fcn(\d)\.", lambda m: f"roi_heads.mask_head.{int(m[1]) - 1}.0."),
)


@dataclass
class Detector:
    """The weights and class names of a detector as read from a file."""

    tensors: dict[str, Tensor]
    """State dictionary with the tensor names of :class:`detpool.detection.TwoStageDetector`."""
    class_names: list[str] | None
    """Names of labels 1, 2, ...; None if the file does not contain them."""


def start_from(model: nn.Module, path: str, class_names: Sequence[str], build: Callable[[int], nn.Module]) -> None:
    """Initialize a detector with the weights of another, and print which modules keep their own initialization.

    A tensor is copied if name and shape agree. If the classes differ, tensors with rows for each class take the rows of
    the classes that have the same name in the file.

    Args:
        model: the detector, which is modified in place.
        path: a run directory, a checkpoint of a run, a `.pth` file of a torchvision detector, or a `.pkl` file of
            detectron2.
        class_names: names of the model's labels 1, 2, ...
        build: function that builds the same detector for a given number of classes.

    Raises:
        WeightsError: If the file cannot be read, or none of its tensors fits the backbone.
    """
    found = read_detector(path)
    own = model.state_dict()
    known = found.class_names or _guess_names(found.tensors, class_names)
    rows = _class_rows(own, build, len(class_names)) if known != list(class_names) else {}
    taken = {}
    for name, value in own.items():
        given = found.tensors.get(name)
        if given is None:
            continue
        if name in rows:
            if known is not None and (merged := _merge(value, given, rows[name], class_names, known)) is not None:
                taken[name] = merged
        elif given.shape == value.shape:
            taken[name] = given
    if not any(name.startswith("backbone.") for name in taken):
        example = next(iter(found.tensors), "nothing")
        raise WeightsError(
            f"model.weights={path}: nothing of it fits the backbone, whose tensors are such as "
            f"{next(iter(own))!r}; the file holds {example!r}"
        )
    model.load_state_dict(taken, strict=False)
    if rows:
        classes = f"classes by name: {', '.join(name for name in class_names if name in (known or ())) or 'none'}"
    elif found.class_names is None and all(t.shape == own[n].shape for n, t in found.tensors.items() if n in own):
        classes = f"its classes are taken to be {', '.join(class_names)}, in this order"
    else:
        classes = ""
    _tell(path, own, taken, found, classes)


def read_detector(path: str) -> Detector:
    """Read the tensors and, if known, the class names of a detector.

    Args:
        path: see `start_from`.

    Raises:
        ConfigError: If a folder holds no checkpoint.
        WeightsError: If the file does not exist or does not hold weights.
    """
    file = find_best(Path(path)) if Path(path).is_dir() else Path(path)
    if file.suffix == ".pkl":
        names = [name for name in COCO_LABELS if name not in _ABSENT]
        tensors, classes = read_detectron2_file(str(file))
        return Detector(tensors, names if classes == len(names) else None)
    tensors = read_weights_file(str(file))
    of_run = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
    if not of_run:
        return Detector({_of_today(name): value for name, value in tensors.items()}, None)
    try:
        classes_of_run = load_config(file).get("class_names")
    except ConfigError:  # a checkpoint on its own
        classes_of_run = None
    return Detector(of_run, classes_of_run and list(classes_of_run))


def _of_today(name: str) -> str:
    """Name of a tensor in current torchvision; its published weights use the names of 2019."""
    for before, now in _RENAMED:
        name = re.sub(before, now, name)
    return name


def _guess_names(tensors: dict[str, Tensor], class_names: Sequence[str]) -> list[str] | None:
    """Guess the names of labels 1, 2, ... by their number: COCO's, else the model's if their number agrees, else None.

    A file without a box predictor gets the model's names.
    """
    scores = tensors.get("roi_heads.box_predictor.cls_score.bias")
    if scores is not None and len(scores) == len(COCO_LABELS):
        return COCO_LABELS[1:]
    if scores is None or len(scores) == len(class_names) + 1:
        return list(class_names)
    return None


def _class_rows(own: dict[str, Tensor], build: Callable[[int], nn.Module], classes: int) -> dict[str, tuple[int, int]]:
    """For each tensor that depends on the number of classes: number of rows per class, and before the first class."""
    more = build(classes + 1).state_dict()
    rows = {}
    for name, value in own.items():
        if value.shape != more[name].shape:
            each = len(more[name]) - len(value)
            rows[name] = each, len(value) - classes * each
    return rows


def _merge(
    own: Tensor, given: Tensor, rows: tuple[int, int], names: Sequence[str], known: Sequence[str]
) -> Tensor | None:
    """Copy of ``own`` with the rows of the classes that ``given`` shares; None if the layouts of the rows differ.

    R-FCN, for example, has another layout: its rows for boxes follow those of all classes.
    """
    each, before = rows
    if before not in (0, each) or given.shape[1:] != own.shape[1:] or len(given) != before + each * len(known):
        return None
    merged = own.clone()
    merged[:before] = given[:before]
    for label, name in enumerate(names):
        if name in known:
            start = before + each * list(known).index(name)
            merged[before + each * label : before + each * (label + 1)] = given[start : start + each]
    return merged


def _tell(path: str, own: dict[str, Tensor], taken: dict[str, Tensor], found: Detector, classes: str) -> None:
    counter = "num_batches_tracked"  # frozen normalization layers do not have it
    new = _modules(name for name in own if name not in taken and not name.endswith(counter))
    unused = _modules(name for name in found.tensors if name not in own and not name.endswith(counter))
    text = f"model.weights={path}: {len(taken)} of {len(own)} tensors"
    if classes:
        text += f"; {classes}"
    if new:
        text += f"; initialized anew: {', '.join(new)}"
    if unused:
        text += f"; not used: {', '.join(unused)}"
    say(text)


def _modules(names: Iterable[str]) -> list[str]:
    """Names of the modules that own the tensors; after the first eight, only the number of the others."""
    modules = list(dict.fromkeys(name.rpartition(".")[0] for name in names))
    return [*modules[:8], *([f"{len(modules) - 8} more"] if len(modules) > 8 else [])]
