"""Data sets in Pascal VOC's format (Everingham et al., IJCV 2010): one XML file per image."""

import math
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from detpool.data.datamodule import DetectionDataModule
from detpool.data.dataset import Transform
from detpool.data.files import FileDataset, Records
from detpool.data.images import image_size
from detpool.data.selection import DropOthers, Part, check_classes, split_in_two
from detpool.data.transforms import check_eval_transform
from detpool.data.voc_files import VOCFiles, Years, files_in, image_file, published_files
from detpool.data_sources import check_sources, folder_of
from detpool.errors import DataError, did_you_mean, show
from detpool.masks import MAX_PIXELS

VOC_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
_MAX_NUMBER = 1e9  # pixels
_OWN_CLASSES = (
    " (data.class_names are those of the data; where it is null they are VOC's 20, or with data.train_xml those of the "
    "training files)"
)


class VOCDataset(FileDataset):
    """A data set with one XML file in VOC's format per image.

    VOC counts pixels from 1 and includes the last one, so (xmin, ymin, xmax, ymax) becomes the continuous XYXY box
    (xmin - 1, ymin - 1, xmax, ymax) in samples and ground truth. A box with xmax <= xmin or ymax <= ymin in the file is
    degenerate: no object of VOC is one pixel wide, but annotation tools write such a box for a click. The id of an
    image is its position in ``files``, counted from 1 before any image is left out. The image file is found by
    `detpool.data.voc_files.image_file`.

    Args:
        files: annotations and images (`detpool.data.voc_files`).
        class_names: names of labels and category ids 1, 2, ...; default: VOC's 20 classes.
        drop_empty: whether to leave out images without an object to train on.
        transform: see `DetectionDataset`.
        classes, drop_others, part, images_key: see `FileDataset`.

    Raises:
        ValueError: If ``class_names`` contains a name twice; see also `FileDataset`.
        DataError: If a file is missing or malformed, or an object's class is not in ``class_names``; see also
            `FileDataset`.
    """

    def __init__(
        self,
        files: VOCFiles,
        class_names: Sequence[str] = VOC_CLASSES,
        drop_empty: bool = False,
        transform: Transform | None = None,
        classes: Sequence[str] | None = None,
        drop_others: DropOthers = "objects",
        part: Part | None = None,
        images_key: str | None = None,
    ) -> None:
        names = list(class_names)
        if len(set(names)) < len(names):
            raise ValueError(f"class_names: got {names}, need each name once")
        records = Records()
        listed: dict[Path, dict[str, list[str]]] = {}
        for annotation, stem in zip(files.annotations, files.images, strict=True):
            _read_annotation(files, annotation, stem, listed, names, records)
        super().__init__(
            source=files.source,
            folder=files.folder,
            columns=records.pack(),
            corners=True,
            class_names=names,
            category_ids=list(range(1, len(names) + 1)),
            masks=False,
            drop_empty=drop_empty,
            transform=transform,
            classes=classes,
            drop_others=drop_others,
            part=part,
            images_key=images_key,
        )


def voc_datamodule(
    root: str | Path | None = None,
    year: Years = None,
    train_set: str | None = None,
    val_set: str | None = None,
    test_set: str | None = None,
    eval_year: Years = None,
    train_xml: str | Path | None = None,
    train_images: str | Path | None = None,
    val_xml: str | Path | None = None,
    val_images: str | Path | None = None,
    test_xml: str | Path | None = None,
    test_images: str | Path | None = None,
    split: float | None = None,
    split_seed: int = 0,
    class_names: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    drop_others: DropOthers = "objects",
    drop_empty: bool = True,
    train_transform: Transform | None = None,
    eval_transform: Transform | None = None,
    **loader: Any,
) -> DetectionDataModule:
    """Builds the datamodule of data in VOC's format, in the published layout below ``root`` or in given folders.

    Args:
        root, year: see `detpool.data.voc_files.published_files`; without ``root``, the folders are given by
            ``train_xml`` and the arguments after it.
        train_set, val_set, test_set: image sets below ``root``. Default of ``train_set``: train, or with ``split`` and
            without ``ImageSets/`` all annotations. Default of ``val_set``: val, or with ``split`` the remaining
            training images. Without ``test_set`` and ``test_xml``, the validation set is the test set.
        eval_year: year or years of the validation and test sets below ``root``; default: ``year``.
        train_xml, val_xml, test_xml: folders of XML files (`detpool.data.voc_files.files_in`).
        train_images, val_images, test_images: folders of the images; None: ``JPEGImages`` next to the folder of the XML
            files if that is called ``Annotations``, else the folder of the XML files.
        split: fraction of the training images to train on; the others are the validation set. None: the validation set
            has its own files.
        split_seed: see `detpool.data.selection.Part`.
        class_names: all classes of objects in the files; None: VOC's 20 classes, or with ``train_xml`` the classes of
            its objects, in alphabetical order.
        classes, drop_others: see `FileDataset`.
        drop_empty: whether to leave images without an object to train on out of the training set; evaluation keeps
            them.
        train_transform, eval_transform: transforms of training and evaluation samples.
        loader: ``batch_size``, ``num_workers``, ``seed``, ...: see `DetectionDataModule`.

    Raises:
        ValueError: If the settings give no files for a set, or two sources for one, if ``split`` or ``classes`` is
            invalid, or if ``eval_transform`` flips or crops.
    """
    check_sources("xml", locals())
    named = {"train": (train_xml, train_images), "val": (val_xml, val_images), "test": (test_xml, test_images)}
    if split is not None and eval_year is not None and test_set is None:
        raise ValueError(f"data.eval_year={eval_year}: with data.split the validation set is of data.year")
    check_classes(classes, drop_others)
    check_eval_transform(eval_transform)
    training_part, validation_part = split_in_two(split, split_seed)
    eval_year = year if eval_year is None else eval_year

    def find(name: str, years: Years, image_set: str | None) -> Callable[[], VOCFiles]:
        annotations, images = named[name]
        if annotations is not None:
            return partial(_named_files, name, annotations, images)
        assert root is not None
        return partial(published_files, root, years, image_set)

    find_training = find("train", year, train_set if train_set or split is not None else "train")
    names = _ClassNames(class_names or (VOC_CLASSES if root is not None else None), find_training)

    def build(name: str, find_files: Callable[[], VOCFiles], **options: Any) -> Callable[[], VOCDataset]:
        key = None if root is not None else f"data.{name}_images"
        return partial(_build, find_files, names, images_key=key, classes=classes, drop_others=drop_others, **options)

    val = build("train", find_training, part=validation_part, transform=eval_transform)
    if split is None:
        val = build("val", find("val", eval_year, val_set or "val"), transform=eval_transform)
    test = None
    if test_set is not None or test_xml is not None:
        test = build("test", find("test", eval_year, test_set), transform=eval_transform)
    return DetectionDataModule(
        train=build("train", find_training, part=training_part, drop_empty=drop_empty, transform=train_transform),
        val=val,
        test=test,
        **loader,
    )


class _ClassNames:
    """The given class names, or those in the training files, which are then read once, when needed."""

    def __init__(self, given: Sequence[str] | None, find_training: Callable[[], VOCFiles]) -> None:
        self._given, self._find_training = given, find_training

    @cached_property
    def value(self) -> Sequence[str]:
        return self._given or find_class_names(self._find_training())


def _build(find_files: Callable[[], VOCFiles], names: _ClassNames, **options: Any) -> VOCDataset:
    return VOCDataset(find_files(), names.value, **options)


def _named_files(name: str, annotations: str | Path, images: str | Path | None) -> VOCFiles:
    """Returns the files of a set (train, val, test) whose folders are settings."""
    key = f"{name}_xml"
    folder = folder_of(key, annotations)
    files = files_in(folder, None if images is None else folder_of(f"{name}_images", images))
    if not files.annotations:
        raise DataError(f"data.{key}={annotations}: no XML file is in this folder or below it")
    return files


def find_class_names(files: VOCFiles) -> list[str]:
    """Returns the names of the classes of all objects, in alphabetical order.

    Raises:
        DataError: If a file is malformed, an object has no class, or there is no object.
    """
    found = set()
    for path in files.annotations:
        for number, item in enumerate(_parse(path, files.source).findall("object"), 1):
            name = _text(path, item, "name", f" (object {number})")
            if not name:
                raise DataError(f"{path}: object {number} is of class ''")
            found.add(name)
    if not found:
        raise DataError(f"{files.source}: none of its {len(files.annotations)} files holds an object")
    return sorted(found)


def _parse(path: Path, source: str) -> ET.Element:
    try:
        tree = ET.parse(path).getroot()
    except FileNotFoundError as error:
        raise DataError(f"{path}: the annotation of an image in {source} is missing") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ET.ParseError, ValueError, LookupError) as error:  # LookupError: unknown encoding
        raise DataError(f"{path}: not well-formed XML: {error}") from error
    items = tree.findall("object")
    boxes = sum(len(list(item.iter("bndbox"))) for item in items)
    lost = len(list(tree.iter("object"))) != len(items) or len(list(tree.iter("bndbox"))) != boxes
    if lost or (tree.tag != "annotation" and not items):
        raise DataError(f"{path}: not Pascal VOC's layout: expected <annotation> with <object> in it, <bndbox> in that")
    return tree


def _read_annotation(
    files: VOCFiles,
    path: Path,
    stem: Path,
    listed: dict[Path, dict[str, list[str]]],
    class_names: list[str],
    records: Records,
) -> None:
    tree = _parse(path, files.source)
    image = image_file(path, stem, _text(path, tree, "filename"), listed)
    height, width = (_number(path, tree, f"size/{side}", default=0) for side in ("height", "width"))
    if height != int(height) or width != int(width) or height * width > MAX_PIXELS:
        raise DataError(f"{path}: <size> is {height:g} x {width:g} (height x width), expected whole numbers of pixels")
    size = (int(height), int(width))
    if min(size) < 1:  # some tools leave it out, or write 0
        size = image_size(image)

    position = len(records.names)
    records.image_ids.append(position + 1)
    records.names.append(image.relative_to(files.folder).as_posix())
    records.sizes.append(size)
    for number, item in enumerate(tree.findall("object"), 1):
        where = f" (object {number})"
        label = _text(path, item, "name", where)
        if label not in class_names:
            near = did_you_mean(label, class_names)
            raise DataError(
                f"{path}: object {number} is of class {show(label)}, not in class_names{near}{_OWN_CLASSES}"
            )
        x1, y1, x2, y2 = (
            _number(path, item, f"bndbox/{side}", where=where) for side in ("xmin", "ymin", "xmax", "ymax")
        )
        degenerate = x2 <= x1 or y2 <= y1
        box = (x1 - 1, y1 - 1, 0.0, 0.0) if degenerate else (x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1)
        difficult = _number(path, item, "difficult", default=0, where=where)
        if difficult not in (0, 1):
            raise DataError(f"{path}: <difficult> is {difficult:g}, expected 0 or 1{where}")
        records.positions.append(position)
        records.boxes.extend(box)
        records.labels.append(class_names.index(label) + 1)
        records.areas.append(box[2] * box[3])
        records.crowd.append(False)
        records.difficult.append(bool(difficult))


def _text(path: Path, element: ET.Element, tag: str, where: str = "") -> str:
    """Text of an element's only child with that path, empty if there is none; DataError if there are several."""
    found = element.findall(tag)
    if len(found) > 1:
        raise DataError(f"{path}: an <{element.tag}> has {len(found)} {_tags(tag)}, expected one{where}")
    return (found[0].text or "").strip() if found else ""


def _number(path: Path, element: ET.Element, tag: str, default: float | None = None, where: str = "") -> float:
    text = _text(path, element, tag, where)
    if not text:
        if default is None:
            raise DataError(f"{path}: an <{element.tag}> has no {_tags(tag)}{where}")
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) <= _MAX_NUMBER:
        raise DataError(f"{path}: {_tags(tag)} is {show(text)}, expected a number{where}")
    return value


def _tags(tag: str) -> str:
    return f"<{tag.replace('/', '><')}>"
