"""Finds the XML files of Pascal VOC's format and their images, in the published layout and in folders."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from detpool.data.files import names_in
from detpool.errors import DataError, did_you_mean, show

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif")

Years = int | str | Sequence[int | str] | None


class VOCFiles(NamedTuple):
    """The files of a data set: annotation i belongs to image i."""

    source: str
    """Name of the data set in messages."""
    folder: Path
    """Folder to which the images' names are relative."""
    annotations: list[Path]
    """Paths of the XML files."""
    images: list[Path]
    """Paths of the image files, without suffixes."""


def published_files(root: str | Path, year: Years = None, image_set: str | None = "train") -> VOCFiles:
    """Finds an image set in VOC's layout: ``ImageSets/Main/{image_set}.txt``, ``Annotations/`` and ``JPEGImages/``.

    These folders are expected in ``root``, or with a year in ``root/VOC{year}`` or ``root/VOCdevkit/VOC{year}``. Each
    line of an image set is a name; in the lists for a single class, it ends in ``-1``, ``0`` or ``1``.

    Args:
        root: see above.
        year: one year, or several whose images are combined; None: the folders are in ``root``.
        image_set: ``train``, ``val``, ``trainval`` or ``test``, or another file in ``ImageSets/Main``; None: train, or,
            if there is no folder ``ImageSets/``, all XML files in ``Annotations/``.

    Raises:
        DataError: If a folder or the image set is missing.
    """
    root = Path(root)
    files = VOCFiles(f"VOC image set {image_set or 'train'}{_of_years(year)} in {root}", root, [], [])
    for folder in _folders(root, year):
        annotations, images = folder / "Annotations", folder / "JPEGImages"
        if image_set is None and not (folder / "ImageSets").is_dir():
            names = _names_of(annotations)
            files = files._replace(source=f"VOC annotations{_of_years(year)} in {root}")
        else:
            names = _read_image_set(folder, image_set or "train")
        files.annotations.extend(annotations / f"{name}.xml" for name in names)
        files.images.extend(images / name for name in names)
    return files


def files_in(annotations: str | Path, images: str | Path | None = None) -> VOCFiles:
    """Finds all XML files in a folder and its subfolders, sorted by name, except hidden ones.

    Args:
        annotations: the folder.
        images: the folder of the images, with the same subfolders; None: ``JPEGImages`` next to ``annotations`` if that
            is called ``Annotations``, else ``annotations`` itself.

    Raises:
        DataError: If the name of a file is not UTF-8.
    """
    folder = Path(annotations)
    beside = folder.absolute().parent / "JPEGImages"
    if images is None:
        images = beside if folder.absolute().name == "Annotations" and beside.is_dir() else folder
    names = _names_of(folder)
    found = [folder / f"{name}.xml" for name in names]
    return VOCFiles(f"VOC annotations in {folder}", Path(images), found, [Path(images) / name for name in names])


def files_below(folder: Path) -> list[Path]:
    """The files in a folder and its subfolders, including links to folders, sorted by path, except hidden ones."""
    found: list[Path] = []
    seen = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        place = os.path.realpath(parent)
        folders[:] = [] if place in seen else sorted(name for name in folders if not name.startswith("."))
        if place not in seen:
            found += (Path(parent, name) for name in files if not name.startswith("."))
        seen.add(place)  # a link may lead back to a folder above it
    return sorted(found)


def image_file(annotation: Path, stem: Path, filename: str, listed: dict[Path, dict[str, list[str]]]) -> Path:
    """Finds the image of an annotation.

    It is the file with the annotation's name and the suffix of ``filename`` (default: .jpg). If that does not exist, it
    is the file with this name and another image suffix.

    Args:
        annotation: the XML file, for messages.
        stem: expected path of the image, without its suffix.
        filename: the content of ``<filename>`` in the annotation.
        listed: cache of folder listings, which is extended.

    Raises:
        DataError: If there are several images with that name, and none has the suffix of ``filename``.
    """
    folder, name = stem.parent, stem.name
    if folder not in listed:
        listed[folder] = _images_by_name(folder)
    candidates = listed[folder].get(name, [])
    suffix = Path(filename).suffix
    expected = f"{name}{suffix if suffix.lower() in IMAGE_SUFFIXES else '.jpg'}"
    if not candidates or expected in candidates:
        return folder / expected
    if len(candidates) > 1:
        raise DataError(f"{annotation}: its image is {' or '.join(candidates)}, <filename> says {show(filename)}")
    return folder / candidates[0]


def _of_years(year: Years) -> str:
    if year is None:
        return ""
    return f" of {year if isinstance(year, int | str) else ', '.join(map(str, year))}"


def _names_of(folder: Path) -> list[str]:
    """Names of the XML files in a folder and below it, without suffix, as listed in an image set."""
    files = [file for file in files_below(folder) if file.suffix == ".xml"]
    names = [file.relative_to(folder).with_suffix("").as_posix() for file in files]
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{folder}: the name of a file in it is not UTF-8: {name!r}") from error
    return sorted(names)


def _folders(root: Path, year: Years) -> list[Path]:
    """The folders that contain Annotations/, one per year."""
    if not root.is_dir():
        raise DataError(
            f"{root}: no such folder; data.root is to name the one that holds VOC<year>/, VOCdevkit/ or Annotations/ "
            f"(data.train_xml=... names a folder of XML files in any other place)"
        )
    if year is None:
        if not (root / "Annotations").is_dir():
            found = sorted(path.name[3:] for path in [*root.glob("VOC[0-9]*"), *root.glob("VOCdevkit/VOC[0-9]*")])
            hint = f"pass a year; found: {', '.join(found)}" if found else "not Pascal VOC's layout"
            raise DataError(f"{root}: no folder Annotations/ in it; {hint}")
        return [root]
    folders = []
    for one in [year] if isinstance(year, int | str) else year:
        places = [root / f"VOC{one}", root / "VOCdevkit" / f"VOC{one}"]
        place = next((place for place in places if (place / "Annotations").is_dir()), None)
        if place is None:
            flat = " (it lies in the root itself: pass no year)" if (root / "Annotations").is_dir() else ""
            raise DataError(f"year {one}: neither {places[0]} nor {places[1]} holds a folder Annotations/{flat}")
        folders.append(place)
    return folders


def _read_image_set(folder: Path, image_set: str) -> list[str]:
    path = folder / "ImageSets" / "Main" / f"{image_set}.txt"
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError as error:
        sets = [other.stem for other in path.parent.glob("*.txt")]
        whole = "" if path.parent.is_dir() else "; data.split=0.8 splits all of Annotations/, and needs no image sets"
        raise DataError(f"{path}: no image set {image_set!r}{did_you_mean(image_set, sets)}{whole}") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    names = [line.strip() for line in lines if line.strip()]
    return [_without_flag(folder, name) for name in names]


def _without_flag(folder: Path, line: str) -> str:
    """The name in a line of an image set; in lists for a single class, it is followed by -1, 0 or 1."""
    flagged = re.fullmatch(r"(.*\S)\s+(-1|0|1)", line)
    # "image 1" may also be a name.
    return flagged[1] if flagged and not (folder / "Annotations" / f"{line}.xml").is_file() else line


def _images_by_name(folder: Path) -> dict[str, list[str]]:
    """Names of the image files in a folder, by name without suffix."""
    found: dict[str, list[str]] = {}
    for file in sorted(names_in(folder)):
        stem, dot, suffix = file.rpartition(".")
        if f"{dot}{suffix}".lower() in IMAGE_SUFFIXES:
            found.setdefault(stem, []).append(file)
    return found
