"""Pascal VOC's published layout (Everingham et al., IJCV 2010)."""

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from detpool.data.datamodule import DetectionDataModule
from detpool.data.dataset import Transform
from detpool.data.files import FileDataset, Records, names_in
from detpool.data.images import image_size
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
_OWN_CLASSES = " (data.class_names are those of the data, VOC's 20 where it is null)"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")

Years = int | str | Sequence[int | str] | None


class VOCDataset(FileDataset):
    """Objects of a VOC image set: ``ImageSets/Main/{image_set}.txt``, ``Annotations/*.xml`` and ``JPEGImages/``.

    These folders are looked for in ``root``, or with a year in ``root/VOC{year}`` and ``root/VOCdevkit/VOC{year}``.

    VOC counts pixels from 1 and includes the last, so (xmin, ymin, xmax, ymax) become the continuous XYXY box
    (xmin - 1, ymin - 1, xmax, ymax), in samples and ground truth. A box with xmax <= xmin or ymax <= ymin as written is
    degenerate: no VOC object is a pixel wide, but tools write such a box for a click. The images' ids are their
    positions in the image sets, from 1, before any is left out.

    An image is the file in ``JPEGImages/`` that has the annotation's name and the suffix of its ``<filename>``; where
    there is no such file, the one that has the name and another suffix. A line of an image set is a name; of the
    lists of a single class it ends in ``-1``, ``0`` or ``1``.

    Args:
        root: see above.
        year: one year or several, whose images are joined; None: the folders lie in ``root``.
        image_set: ``train``, ``val``, ``trainval`` or ``test``, or another file of ``ImageSets/Main``.
        class_names: of labels and category ids 1, 2, ...; default: VOC's 20 classes.
        drop_empty: whether to leave out images without an object to train on.
        transform: see `DetectionDataset`.

    Raises:
        ValueError: ``class_names`` holds a name twice.
        DataError: a file is missing or malformed, or names a class that ``class_names`` lacks; all boxes seem to be
            fractions of the images' sides.
    """

    def __init__(
        self,
        root: str | Path,
        year: Years = None,
        image_set: str = "train",
        class_names: Sequence[str] = VOC_CLASSES,
        drop_empty: bool = False,
        transform: Transform | None = None,
    ) -> None:
        root, names = Path(root), list(class_names)
        if len(set(names)) < len(names):
            raise ValueError(f"class_names: got {names}, need each name once")
        records = Records()
        for folder in _folders(root, year):
            listed: dict[str, dict[str, list[str]]] = {}
            for name in _read_image_set(folder, image_set):
                _read_annotation(root, folder, name, listed, names, records)
        years = "" if year is None else f" of {year if isinstance(year, int | str) else ', '.join(map(str, year))}"
        super().__init__(
            source=f"VOC image set {image_set}{years} in {root}",
            folder=root,
            columns=records.pack(),
            corners=True,
            class_names=names,
            category_ids=list(range(1, len(names) + 1)),
            masks=False,
            drop_empty=drop_empty,
            transform=transform,
        )


def voc_datamodule(
    root: str | Path,
    year: Years = None,
    train_set: str = "train",
    val_set: str = "val",
    test_set: str | None = None,
    eval_year: Years = None,
    class_names: Sequence[str] | None = None,
    drop_empty: bool = True,
    train_transform: Transform | None = None,
    eval_transform: Transform | None = None,
    **loader: Any,
) -> DetectionDataModule:
    """A data set in VOC's layout as a datamodule.

    Args:
        root, year: see `VOCDataset`.
        train_set, val_set, test_set: image sets; no ``test_set``: the validation set is the test set.
        eval_year: year or years of the validation and test sets, if not ``year``.
        class_names: default: VOC's 20 classes.
        drop_empty: whether to train without the images that have no object to train on; evaluation keeps them.
        train_transform, eval_transform: for training and evaluation samples.
        loader: ``batch_size``, ``num_workers``, ``seed``, ...: see `DetectionDataModule`.
    """
    build = partial(VOCDataset, root, class_names=class_names or VOC_CLASSES)
    evaluate = partial(build, year if eval_year is None else eval_year, transform=eval_transform)
    return DetectionDataModule(
        train=partial(build, year, train_set, drop_empty=drop_empty, transform=train_transform),
        val=partial(evaluate, image_set=val_set),
        test=None if test_set is None else partial(evaluate, image_set=test_set),
        **loader,
    )


def _folders(root: Path, year: Years) -> list[Path]:
    """The folders that hold Annotations/, one a year."""
    if not root.is_dir():
        raise DataError(
            f"{root}: no such folder; data.root is to name the one that holds VOC<year>/, VOCdevkit/ or Annotations/"
        )
    if year is None:
        if not (root / "Annotations").is_dir():
            found = sorted(path.name[3:] for path in [*root.glob("VOC[0-9]*"), *root.glob("VOCdevkit/VOC[0-9]*")])
            hint = f"pass a year, found are {', '.join(found)}" if found else "not Pascal VOC's layout"
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
        raise DataError(f"{path}: no image set {image_set!r}{did_you_mean(image_set, sets)}") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    names = [line.strip() for line in lines if line.strip()]
    return [_without_flag(folder, name) for name in names]


def _without_flag(folder: Path, line: str) -> str:
    """The name in a line of an image set: lists of a single class say -1, 0 or 1 after it."""
    flagged = re.fullmatch(r"(.*\S)\s+(-1|0|1)", line)
    # "image 1" may be a name too.
    return flagged[1] if flagged and not (folder / "Annotations" / f"{line}.xml").is_file() else line


def _images_by_name(folder: Path) -> dict[str, list[str]]:
    """Names of the image files of a folder, by what precedes the suffix."""
    found: dict[str, list[str]] = {}
    for file in sorted(names_in(folder)):
        stem, dot, suffix = file.rpartition(".")
        if f"{dot}{suffix}".lower() in IMAGE_SUFFIXES:
            found.setdefault(stem, []).append(file)
    return found


def _image_file(folder: Path, name: str, filename: str, listed: dict[str, dict[str, list[str]]]) -> Path:
    """The image of an annotation that says it is `filename`; `listed` keeps the folders that were looked into."""
    below, _, stem = name.rpartition("/")
    place = folder / "JPEGImages" / below
    if below not in listed:
        listed[below] = _images_by_name(place)
    candidates = listed[below].get(stem, [])
    suffix = Path(filename).suffix
    expected = f"{stem}{suffix if suffix.lower() in IMAGE_SUFFIXES else '.jpg'}"
    if not candidates or expected in candidates:
        return place / expected
    if len(candidates) > 1:
        raise DataError(
            f"{folder / 'Annotations' / name}.xml: its image is {' or '.join(candidates)}, "
            f"<filename> says {show(filename)}"
        )
    return place / candidates[0]


def _read_annotation(
    root: Path,
    folder: Path,
    name: str,
    listed: dict[str, dict[str, list[str]]],
    class_names: list[str],
    records: Records,
) -> None:
    path = folder / "Annotations" / f"{name}.xml"
    try:
        tree = ET.parse(path).getroot()
    except FileNotFoundError as error:
        raise DataError(f"{path}: the annotation of an image in {folder / 'ImageSets' / 'Main'} is missing") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ET.ParseError, ValueError, LookupError) as error:  # the last: of an unknown encoding
        raise DataError(f"{path}: not well-formed XML: {error}") from error
    items = tree.findall("object")
    boxes = sum(len(list(item.iter("bndbox"))) for item in items)
    lost = len(list(tree.iter("object"))) != len(items) or len(list(tree.iter("bndbox"))) != boxes
    if lost or (tree.tag != "annotation" and not items):
        raise DataError(f"{path}: not Pascal VOC's layout: expected <annotation> with <object> in it, <bndbox> in that")

    image = _image_file(folder, name, _text(path, tree, "filename"), listed)
    height, width = (_number(path, tree, f"size/{side}", default=0) for side in ("height", "width"))
    if height != int(height) or width != int(width) or height * width > MAX_PIXELS:
        raise DataError(f"{path}: <size> is {height:g} x {width:g} (height x width), expected whole numbers of pixels")
    size = (int(height), int(width))
    if min(size) < 1:  # some tools leave it out, or write 0
        size = image_size(image)

    position = len(records.names)
    records.image_ids.append(position + 1)
    records.names.append(image.relative_to(root).as_posix())
    records.sizes.append(size)
    for number, item in enumerate(items, 1):
        where = f" (object {number})"
        label = _text(path, item, "name", where)
        if label not in class_names:
            near = did_you_mean(label, class_names)
            raise DataError(
                f"{path}: object {number} is of class {show(label)}, not in class_names{near}"
                f"{_OWN_CLASSES if tuple(class_names) == VOC_CLASSES else ''}"
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
    """The text of an element's one child of that path, empty if there is none."""
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
