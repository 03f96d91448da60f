"""Settings that name the files of training, validation and test sets: together they name each set's once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from detpool.errors import DataError

Location = str | Path | None


def check_sources(
    kind: str,
    root: Location,
    named: Mapping[str, tuple[Location, Location]],
    below_root: Mapping[str, object],
    split: float | None,
) -> None:
    """Checks the settings of a data set's files against each other, before any is looked for.

    Either ``root`` holds all sets, or ``train_<kind>``, ``val_<kind>`` and ``test_<kind>`` name their annotations, and
    ``train_images``, ... their images. The validation set is named, or a part of the training set (``split``).

    Args:
        kind: of the annotations, ``json`` or ``xml``.
        root: the setting of that name.
        named: annotations and images by set (train, val, test).
        below_root: values, by their settings, that choose among what ``root`` holds, in place of a default.
        split: the setting of that name.

    Raises:
        ValueError: a set has no source or two, with the settings that say so.
    """
    annotations = {f"{name}_{kind}": files for name, (files, _) in named.items() if files is not None}
    images = {f"{name}_images": folder for name, (_, folder) in named.items() if folder is not None}
    chosen = {key: value for key, value in below_root.items() if value is not None}
    if root is not None and (given := annotations | images):
        raise ValueError(
            f"data.root={root} and {_show(given)}: either data.root holds all sets, or data.train_{kind} and the like "
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
    """The folder that a setting names.

    Raises:
        DataError: it does not exist.
    """
    if not Path(path).is_dir():
        raise DataError(f"data.{key}={path}: no such folder")
    return Path(path)


def _show(settings: Mapping[str, object]) -> str:
    return ", ".join(f"data.{key}={value}" for key, value in settings.items())
