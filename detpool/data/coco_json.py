"""Reads annotation files in COCO's format (Lin et al., ECCV 2014) into columns."""

import json
from collections import Counter
from collections.abc import Collection
from contextlib import suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, TypeGuard

import msgspec
import numpy as np
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from detpool.data.cache import Columns
from detpool.data.files import Records
from detpool.errors import DataError, show
from detpool.garbage import collection_paused
from detpool.masks import MAX_PIXELS, SegmentationError, check_texts, loads

_KEYS = ("images", "annotations", "categories")
_FEDERATED = ("neg_category_ids", "not_exhaustive_category_ids")
_MAX_COORDINATE = 1e9  # pixels

_Coordinate = Annotated[float, Meta(ge=-_MAX_COORDINATE, le=_MAX_COORDINATE)]


class _Image(Struct, gc=False):
    """An image in the usual form, which nearly all files have; `_read_odd_image` reads other forms."""

    id: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
    file_name: Annotated[str, Meta(min_length=1)]
    height: Annotated[int, Meta(ge=1)]
    width: Annotated[int, Meta(ge=1)]
    # only in images of LVIS, whose metrics need these keys
    neg_category_ids: Raw | UnsetType = UNSET
    not_exhaustive_category_ids: Raw | UnsetType = UNSET

    def is_federated(self) -> bool:
        return self.neg_category_ids is not UNSET or self.not_exhaustive_category_ids is not UNSET


class _Annotation(Struct, gc=False):
    """An annotation in the usual form, which nearly all files have; `_read_odd` reads other forms."""

    image_id: int
    category_id: int
    bbox: tuple[_Coordinate, _Coordinate, _Coordinate, _Coordinate]
    area: Annotated[float, Meta(ge=0, le=_MAX_COORDINATE**2)] | UnsetType = UNSET
    iscrowd: Annotated[int, Meta(ge=0, le=1)] = 0
    segmentation: Raw = Raw(b"null")


class _File(Struct):
    images: list[Raw]
    annotations: list[_Annotation]
    categories: list[Raw]


class _OddFile(Struct):
    images: list[Raw]
    annotations: list[Raw]
    categories: list[Raw]


@collection_paused()  # no row refers to another, so garbage collection would find nothing
def read_instances(path: Path, masks: bool) -> Columns:
    """Reads an annotation file.

    Ids of images and categories must be unique 64-bit integers; ids of annotations are ignored. Label i is the category
    with the i-th smallest id.

    Args:
        path: the JSON file.
        masks: whether to read segmentations (polygons or run-length encodings).

    Returns:
        The columns of `Records.pack`, and: ``class_names`` and ``category_ids`` of labels 1, 2, ...; ``empty_parent``,
        the label of a category that has no objects and is the supercategory of all others, 0 if there is none.

    Raises:
        DataError: If the file is malformed or in LVIS's format, refers to images or categories that it does not list,
            or if the runs of a mask do not add up to its number of pixels. The message names the file and the entry.
        OSError: If the file cannot be read.
    """
    data = path.read_bytes()
    file = _decode(path, data, _File, _OddFile)
    category_rows = file.categories
    categories = _read_categories(path, category_rows)
    records = Records(segmentations=[] if masks else None)
    positions = _read_images(path, file.images, records)
    labels = {identity: label for label, identity in enumerate(categories, 1)}
    if isinstance(file, _OddFile) or not _append(file.annotations, positions, labels, records):
        raws = _decode(path, data, _OddFile).annotations
        rows = [_read_odd(path, place, raw, positions, labels) for place, raw in enumerate(raws)]
        _append(rows, positions, labels, records)
    del file
    columns = records.pack()
    if masks:
        try:
            texts, starts, ends = (part.numpy() for part in columns["segmentations"])
            check_texts(texts, starts, ends, columns["sizes"][columns["positions"]].numpy())
        except SegmentationError as error:
            raws = _decode(path, data, _OddFile).annotations
            raise _fault(path, error.index, loads(raws[error.index]), str(error)) from error
    return columns | {
        "class_names": list(categories.values()),
        "category_ids": list(categories),
        "empty_parent": _find_empty_parent(category_rows, labels, set(records.labels)),
    }


def _decode(path: Path, data: bytes, *kinds: type[_File | _OddFile]) -> Any:
    """Decodes a file as the first of ``kinds`` that fits; list items of type `Raw` stay undecoded."""
    try:
        if not data.isascii():
            data.decode()  # msgspec does not check the encoding of what it skips
        file: _File | _OddFile | None = None
        for kind in kinds:
            with suppress(msgspec.MsgspecError):
                file = msgspec.json.decode(data, type=kind)
                break
        # For a repeated key, the first value would be lost. The full check is slow (one call per object), so it runs
        # only if a key occurs more than once outside the annotations.
        begin, end = _inner(data, file.annotations) if isinstance(file, _File) else (0, 0)
        quoted = [f'"{key}"'.encode() for key in _KEYS]
        if any(data.count(key, 0, begin) + data.count(key, end) > 1 for key in quoted):
            json.loads(data, object_pairs_hook=partial(_check_once, path))
        if file is not None:
            return file
        content = json.loads(data)  # accepts more, such as NaN and UTF-16, and its errors name the position
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON, it may be truncated: {error}") from error
    for key in _KEYS:
        rows = content.get(key) if isinstance(content, dict) else None
        if not isinstance(rows, list):
            raise _not_coco(path, key)
    return _OddFile(*([Raw(json.dumps(row).encode()) for row in content[key]] for key in _KEYS))


def _inner(data: bytes, rows: list[_Annotation]) -> tuple[int, int]:
    """Byte offsets of the part of a file, nearly all of it, that holds only annotations; (0, 0) if unknown."""
    if rows:
        parts = data, rows[0].segmentation, rows[-1].segmentation  # `Raw` values are views into the file's bytes
        start, begin, end = (np.frombuffer(part, np.uint8).ctypes.data for part in parts)
        if start <= begin <= end <= start + len(data):
            return begin - start, end - start
    return 0, 0


def _not_coco(path: Path, key: str) -> DataError:
    return DataError(f"{path}: not COCO's annotation format: {key!r} is missing or not a list of objects")


def _as_dict(path: Path, key: str, raw: Raw) -> dict[str, Any]:
    value = loads(raw)
    if not isinstance(value, dict):
        raise _not_coco(path, key)
    return value


def _check_once(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    for key in _KEYS:
        if keys.count(key) > 1:
            raise DataError(f"{path}: holds {key!r} {keys.count(key)} times")
    return dict(pairs)


def _read_categories(path: Path, rows: list[Raw]) -> dict[int, str]:
    """Category names by id, in the order of the ids."""
    names: dict[int, str] = {}
    for place, raw in enumerate(rows):
        row = _as_dict(path, "categories", raw)
        identity, name = _integer(row.get("id")), row.get("name")
        if identity is None or identity in names or not _is_text(name):
            raise DataError(
                f"{path}: categories[{place}] is {show(row)}, expected an integer 'id' of its own and a 'name'"
            )
        if name in names.values():
            raise DataError(f"{path}: categories[{place}] is {show(row)}, but another category has that name")
        names[identity] = name
    if not names:
        raise DataError(f"{path}: 'categories' is empty")
    return dict(sorted(names.items()))


def _find_empty_parent(rows: list[Raw], labels: dict[int, int], used: Collection[int]) -> int:
    """Label of a category that has no objects and is the supercategory of all others, but not of itself; else 0.

    Roboflow writes such a category for the group of all classes. COCO's "person", in contrast, is its own
    supercategory, and a class.
    """
    categories = [loads(row) for row in rows]
    members = Counter(name for row in categories if isinstance(name := row.get("supercategory"), str))
    for category in categories:
        name, label = category["name"], labels[int(category["id"])]
        groups_all_others = members[name] == len(categories) - 1 > 0 and category.get("supercategory") != name
        if groups_all_others and label not in used:
            return label
    return 0


def _read_images(path: Path, rows: list[Raw], records: Records) -> dict[int, int]:
    """Appends the images to the records, and returns their positions by id."""
    positions: dict[int, int] = {}
    decode = msgspec.json.Decoder(_Image).decode
    for place, raw in enumerate(rows):
        image = None
        with suppress(msgspec.MsgspecError):
            image = decode(raw)
        if image is None or image.id in positions or image.height * image.width > MAX_PIXELS or image.is_federated():
            image = _read_odd_image(path, place, raw, positions)
        positions[image.id] = place
        records.image_ids.append(image.id)
        records.names.append(image.file_name)
        records.sizes.append((image.height, image.width))
    return positions


def _read_odd_image(path: Path, place: int, raw: Raw, known: Collection[int]) -> _Image:
    """Reads an image with numbers in any form, such as 3.0 for 3; raises DataError if the image is invalid."""
    row = _as_dict(path, "images", raw)
    if lists := [key for key in _FEDERATED if key in row]:
        raise DataError(
            f"{path}: LVIS is not supported, of which images[{place}] is with its {lists[0]!r}: not all objects "
            f"are annotated there, and COCO's metrics would count right detections of the others as wrong"
        )
    identity, name, size = _integer(row.get("id")), row.get("file_name"), [row.get("height"), row.get("width")]
    if identity is None or identity in known or not _is_text(name):
        raise DataError(
            f"{path}: images[{place}] is {show(row)}, expected an integer 'id' of its own and a 'file_name'"
        )
    height, width = (_integer(side) or 0 for side in size)
    if min(height, width) < 1 or height * width > MAX_PIXELS:
        raise DataError(
            f"{path}: image {identity} ({name}) has [height, width] {show(size)}, expected positive integers"
        )
    return _Image(identity, name, height, width)


def _append(rows: list[_Annotation], positions: dict[int, int], labels: dict[int, int], records: Records) -> bool:
    """Appends the objects to the records. Returns False, without changes, if an image or a category is unknown."""
    of_images = [positions.get(row.image_id, -1) for row in rows]
    of_classes = [labels.get(row.category_id, 0) for row in rows]
    if -1 in of_images or 0 in of_classes:
        return False
    records.positions.extend(of_images)
    records.labels.extend(of_classes)
    records.boxes.extend(chain.from_iterable([row.bbox for row in rows]))
    records.areas.extend([max(r.bbox[2] * r.bbox[3], 0) if r.area is UNSET else r.area for r in rows])
    records.crowd.extend([row.iscrowd for row in rows])
    records.difficult.extend(bytes(len(rows)))
    if records.segmentations is not None:
        records.segmentations += [row.segmentation for row in rows]
    return True


def _read_odd(path: Path, place: int, raw: Raw, positions: dict[int, int], labels: dict[int, int]) -> _Annotation:
    """Reads an annotation with numbers in any form, such as 3.0 for 3; raises DataError if it is invalid."""
    row = _as_dict(path, "annotations", raw)
    image_id, category_id = (_integer(row.get(key)) for key in ("image_id", "category_id"))
    for known, identity, name in ((positions, image_id, "image"), (labels, category_id, "category")):
        if identity not in known:
            given = row.get(f"{name}_id")
            plural = {"image": "images", "category": "categories"}[name]
            text = f"is of {name} {show(given)}, which is not among {plural!r}{_if_text(given)}"
            raise _fault(path, place, row, text)
    box: Any = row.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_coordinate, box)):
        raise _fault(path, place, row, f"has bbox {show(box)}, expected [x, y, width, height], numbers in pixels")
    area: Any = row.get("area", UNSET)
    if area is not UNSET and (not _is_coordinate(area, limit=_MAX_COORDINATE**2) or area < 0):
        raise _fault(path, place, row, f"has area {show(area)}, expected a number of pixels, at least 0")
    crowd = row.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise _fault(path, place, row, f"has iscrowd {show(crowd)}, expected the number 0 or 1")
    segmentation = Raw(json.dumps(row.get("segmentation")).encode())
    assert image_id is not None
    assert category_id is not None
    return _Annotation(image_id, category_id, tuple(box), area, int(crowd), segmentation)


def _fault(path: Path, place: int, row: dict[str, Any], text: str) -> DataError:
    return DataError(f"{path}: annotations[{place}] (id {show(row.get('id'))}) {text}")


def _integer(value: Any) -> int | None:
    """A JSON number as a 64-bit integer, None if it is not one. Data frames write 3 as 3.0."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    return value if type(value) is int and -(2**63) <= value < 2**63 else None


def _is_coordinate(value: Any, limit: float = _MAX_COORDINATE) -> bool:
    return type(value) in (int, float) and -limit <= value <= limit


def _is_text(value: Any) -> TypeGuard[str]:
    try:
        return isinstance(value, str) and bool(value.encode())
    except UnicodeEncodeError:  # a lone surrogate of UTF-16
        return False


def _if_text(value: Any) -> str:
    return ": it is a text, ids are integers" if isinstance(value, str) else ""
