"""Data sets in COCO's format: annotations in one JSON file, images in a folder."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from detpool.data.cache import Columns, cached
from detpool.data.coco_json import read_instances
from detpool.data.datamodule import DetectionDataModule
from detpool.data.dataset import Transform
from detpool.data.files import FileDataset
from detpool.data.selection import DropOthers, Part, check_classes, split_in_two
from detpool.data.transforms import check_eval_transform
from detpool.data_sources import check_sources, folder_of
from detpool.errors import DataError, did_you_mean


class COCODataset(FileDataset):
    """A data set with an annotation file in COCO's format and images in a folder.

    Label i is the category with the i-th smallest id, unless ``classes`` is given. Boxes are clamped to their images in
    samples, but not in the ground truth. A category that has no objects and is the supercategory of all others, as
    written by Roboflow, is left out with a warning, unless ``classes`` contains it.

    Args:
        annotations: the JSON file (see `detpool.data.coco_json`).
        images: the folder to which the ``file_name`` of the images is relative; None: the folder of the JSON file.
        masks: whether samples and ground truth contain masks, from polygons or run-length encodings.
        drop_empty: whether to leave out images without an object to train on.
        transform: see `DetectionDataset`.
        cache: whether to cache the parsed annotations for the next start (see `detpool.data.cache`).
        classes, drop_others, part, images_key: see `FileDataset`.

    Raises:
        ValueError: See `FileDataset`.
        DataError: See `FileDataset`; also if the file is missing, malformed, or in LVIS's format, if it refers to
            images or categories that it does not list, or if the runs of a mask do not add up to its number of pixels.
            The message names the file and the entry.
    """

    def __init__(
        self,
        annotations: str | Path,
        images: str | Path | None = None,
        masks: bool = False,
        drop_empty: bool = False,
        transform: Transform | None = None,
        cache: bool = True,
        classes: Sequence[str] | None = None,
        drop_others: DropOthers = "objects",
        part: Part | None = None,
        images_key: str | None = None,
    ) -> None:
        path = Path(annotations)
        build = partial(read_instances, path, masks)
        try:
            columns = cached(path, "masks" if masks else "boxes", build) if cache else build()
        except FileNotFoundError as error:
            raise DataError(f"{path} does not exist") from error
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error}") from error
        if classes is None and columns["empty_parent"]:
            columns = _without_class(str(path), columns, columns["empty_parent"])
        super().__init__(
            source=str(path),
            folder=path.parent if images is None else Path(images),
            columns=columns,
            class_names=columns["class_names"],
            category_ids=columns["category_ids"],
            masks=masks,
            drop_empty=drop_empty,
            transform=transform,
            classes=classes,
            drop_others=drop_others,
            part=part,
            images_key=images_key,
        )


def _without_class(source: str, columns: Columns, label: int) -> Columns:
    """Returns the columns without a class that has no objects, and warns about it."""
    names, ids = list(columns["class_names"]), list(columns["category_ids"])
    count, name, identity = len(names), names.pop(label - 1), ids.pop(label - 1)
    rank_zero_warn(
        f"{source}: left out 1 of {count} categories, {name!r} (id {identity}): no object is of it, and it is the "
        f"supercategory of all others; data.classes can name it"
    )
    labels = columns["labels"]
    return columns | {"class_names": names, "category_ids": ids, "labels": labels - (labels > label).long()}


def published_files(root: str | Path, split: str) -> tuple[Path, Path]:
    """Returns the annotation file and the image folder of a split in COCO's published layout.

    Args:
        root: the folder that contains ``annotations/`` and the image folders.
        split: ``train2017``, ``val2017``, ...

    Returns:
        ``root/annotations/instances_{split}.json`` and ``root/{split}``.

    Raises:
        DataError: If the annotation file does not exist.
    """
    path = Path(root) / "annotations" / f"instances_{split}.json"
    if not path.parent.is_dir():
        raise DataError(
            f"{path} does not exist; data.root is to name the folder that holds annotations/ and the folders of images "
            f"(data.train_json=... names a file of any other place)"
        )
    if not path.exists():
        splits = [other.stem.removeprefix("instances_") for other in path.parent.glob("instances_*.json")]
        raise DataError(f"{path} does not exist: no split {split!r}{did_you_mean(split, splits)}")
    return path, Path(root) / split


def _named_files(name: str, annotations: str | Path, images: str | Path | None) -> tuple[Path, Path]:
    """Returns the annotation file and the image folder of a set (train, val, test) whose paths are settings."""
    path = Path(annotations)
    if not path.is_file():
        what = "is a folder, expected a JSON file" if path.is_dir() else "no such file"
        found = sorted(file.name for file in (path if path.is_dir() else path.parent).glob("*.json"))
        raise DataError(f"data.{name}_json={path}: {what}{did_you_mean(path.name, found)}")
    return path, path.parent if images is None else folder_of(f"{name}_images", images)


def coco_datamodule(
    root: str | Path | None = None,
    train_split: str = "train2017",
    val_split: str | None = None,
    test_split: str | None = None,
    train_json: str | Path | None = None,
    train_images: str | Path | None = None,
    val_json: str | Path | None = None,
    val_images: str | Path | None = None,
    test_json: str | Path | None = None,
    test_images: str | Path | None = None,
    split: float | None = None,
    split_seed: int = 0,
    classes: Sequence[str] | None = None,
    drop_others: DropOthers = "objects",
    masks: bool = False,
    drop_empty: bool = True,
    cache: bool = True,
    train_transform: Transform | None = None,
    eval_transform: Transform | None = None,
    **loader: Any,
) -> DetectionDataModule:
    """Builds the datamodule of data in COCO's format, in the published layout below ``root`` or in given files.

    Args:
        root: see `published_files`; None: the files are given by ``train_json`` and the arguments after it.
        train_split, val_split, test_split: splits below ``root``. Default of ``val_split``: val2017, or with ``split``
            the remaining training images. Without ``test_split`` and ``test_json``, the validation set is the test set.
        train_json, val_json, test_json: annotation files.
        train_images, val_images, test_images: the folders to which the ``file_name`` of the images is relative; None:
            the folder of the annotation file.
        split: fraction of the training file's images to train on; the others are the validation set. None: the
            validation set has its own file.
        split_seed: see `detpool.data.selection.Part`.
        classes, drop_others: see `FileDataset`.
        masks, cache: see `COCODataset`.
        drop_empty: whether to leave images without an object to train on out of the training set; evaluation keeps
            them.
        train_transform, eval_transform: transforms of training and evaluation samples.
        loader: ``batch_size``, ``num_workers``, ``seed``, ...: see `DetectionDataModule`.

    Raises:
        ValueError: If the settings give no files for a set, or two sources for one, if ``split`` or ``classes`` is
            invalid, or if ``eval_transform`` flips or crops.
    """
    check_sources("json", locals())
    named = {
        "train": (train_json, train_images),
        "val": (val_json, val_images),
        "test": (test_json, test_images),
    }
    check_classes(classes, drop_others)
    check_eval_transform(eval_transform)
    training_part, validation_part = split_in_two(split, split_seed)

    def build(name: str, below_root: str | None, **options: Any) -> Callable[[], COCODataset]:
        options |= {"masks": masks, "cache": cache, "classes": classes, "drop_others": drop_others}
        annotations, images = named[name]
        if annotations is not None:
            find_files = partial(_named_files, name, annotations, images)
            return partial(_build, find_files, images_key=f"data.{name}_images", **options)
        assert root is not None
        assert below_root is not None
        return partial(_build, partial(published_files, root, below_root), **options)

    val = build("train", train_split, part=validation_part, transform=eval_transform)
    if split is None:
        val = build("val", val_split or "val2017", transform=eval_transform)
    test = None
    if test_split is not None or test_json is not None:
        test = build("test", test_split, transform=eval_transform)
    return DetectionDataModule(
        train=build("train", train_split, part=training_part, drop_empty=drop_empty, transform=train_transform),
        val=val,
        test=test,
        **loader,
    )


def _build(find_files: Callable[[], tuple[Path, Path]], **options: Any) -> COCODataset:
    annotations, images = find_files()
    return COCODataset(annotations, images, **options)
