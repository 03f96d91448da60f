"""Checks of the settings that name the files of training, validation and test sets: each set needs exactly one source.

Nothing here imports torch: a command line is checked with it before any work.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detpool.errors import DataError

_SETS = ("train", "val", "test")
_BELOW_ROOT = {"json": ("val_split", "test_split"), "xml": ("year", "val_set", "test_set", "eval_year")}
"""By kind of annotations, the settings that select data below ``root`` and replace a default."""


def check_sources(kind: str, settings: Mapping[str, Any]) -> None:
    """Checks that the settings of a data set's files are consistent, without looking for the files.

    Either ``root`` holds all sets, or ``train_<kind>``, ``val_<kind>`` and ``test_<kind>`` name their annotations, and
    ``train_images``, ... their images. The validation set is either named or a part of the training set (``split``).

    Args:
        kind: kind of the annotations, ``json`` or ``xml``.
        settings: arguments of the datamodule of that kind by name; None means the same as an absent argument.

    Raises:
        ValueError: If a set has no source or two sources. The message names the settings.
    """
    root, split = settings.get("root"), settings.get("split")
    given = {key: value for key, value in settings.items() if value is not None}
    annotations = {key: given[key] for name in _SETS if (key := f"{name}_{kind}") in given}
    images = {key: given[key] for name in _SETS if (key := f"{name}_images") in given}
    chosen = {key: given[key] for key in _BELOW_ROOT[kind] if key in given}
    if root is not None and (named := annotations | images):
        raise ValueError(
            f"data.root={root} and {_show(named)}: either data.root holds all sets, or data.train_{kind} and the like "
            f"name their files; data.root=null takes it back"
        )
    if root is None and f"train_{kind}" not in annotations:
        others = f", but {_show(annotations | images)}" if annotations | images else ""
        raise ValueError(
            f"no training data: data.root is null, and so is data.train_{kind}{others}; data.root is the folder of a "
            f"data set as it is published, data.train_{kind} the annotations of one in another layout"
        )
    for key, folder in images.items():
        if (needed := key.replace("images", kind)) not in annotations:
            raise ValueError(f"data.{key}={folder}: needs data.{needed}, the annotations of these images")
    if root is None and split is None and f"val_{kind}" not in annotations:
        raise ValueError(
            f"no validation data: data.val_{kind} is null; data.split=0.8 would take a fifth of the images of "
            f"data.train_{kind} for it"
        )
    if split is not None:
        own = {key: value for key, value in (annotations | chosen).items() if key.startswith("val_")}
        if own and (root is not None or f"val_{kind}" in annotations):
            raise ValueError(
                f"data.split={split} and {_show(own)}: the validation set is either the rest of the training set's "
                f"images or data of its own; set the one or the other to null"
            )
    if root is None and (useless := {key: value for key, value in chosen.items() if not key.startswith("val_")}):
        raise ValueError(f"{_show(useless)}: chooses from what data.root holds, and that is null")


def folder_of(key: str, path: str | Path) -> Path:
    """Returns the folder that a setting names.

    Args:
        key: name of the setting below ``data``, which the error names.
        path: value of the setting.

    Raises:
        DataError: If the folder does not exist.
    """
    if not Path(path).is_dir():
        raise DataError(f"data.{key}={path}: no such folder")
    return Path(path)


def _show(settings: Mapping[str, object]) -> str:
    return ", ".join(f"data.{key}={value}" for key, value in settings.items())
