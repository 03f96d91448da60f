"""COCO's published layout (Lin et al., ECCV 2014)."""

import json
from functools import partial
from pathlib import Path
from typing import Any, TypeGuard

from detpool.data.datamodule import DetectionDataModule
from detpool.data.dataset import Transform
from detpool.data.files import FileDataset, Records
from detpool.errors import DataError, did_you_mean, show
from detpool.masks import MAX_PIXELS, SegmentationError, check_segmentations

_KEYS = ("images", "annotations", "categories")
_MAX_COORDINATE = 1e9  # pixels


class COCODataset(FileDataset):
    """Objects of ``annotations/instances_{split}.json``, and images in the folder ``{split}/``, both below ``root``.

    Ids are integers of 64 bits, those of images and categories each their own; annotations' ids are not read.
    Label i is the category with the i-th smallest id. Boxes are clamped to their images in samples, and in the ground
    truth as published.

    Args:
        root: see above.
        split: ``train2017``, ``val2017``, ...
        masks: whether samples and ground truth hold masks: polygons, or run-length encoded.
        drop_empty: whether to leave out images without an object to train on.
        transform: see `DetectionDataset`.

    Raises:
        DataError: the file is missing, malformed, or refers to images or categories that it does not list; all boxes
            seem to be fractions; a mask's runs do not sum up to its pixels. The message names the file and the place.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train2017",
        masks: bool = False,
        drop_empty: bool = False,
        transform: Transform | None = None,
    ) -> None:
        path = Path(root) / "annotations" / f"instances_{split}.json"
        content = _read_json(Path(root), split, path)
        categories = _read_categories(path, content["categories"])
        records = Records(segmentations=[] if masks else None)
        positions = _read_images(path, content["images"], records)
        _read_annotations(path, content["annotations"], list(categories), positions, records)
        super().__init__(
            source=str(path),
            folder=Path(root) / split,
            records=records,
            class_names=list(categories.values()),
            category_ids=list(categories),
            masks=masks,
            drop_empty=drop_empty,
            transform=transform,
        )


def coco_datamodule(
    root: str | Path,
    train_split: str = "train2017",
    val_split: str = "val2017",
    test_split: str | None = None,
    masks: bool = False,
    drop_empty: bool = True,
    train_transform: Transform | None = None,
    eval_transform: Transform | None = None,
    **loader: Any,
) -> DetectionDataModule:
    """A data set in COCO's layout as a datamodule.

    Args:
        root, masks: see `COCODataset`.
        train_split, val_split, test_split: splits; no ``test_split``: the validation set is the test set.
        drop_empty: whether to train without the images that have no object to train on; evaluation keeps them.
        train_transform, eval_transform: for training and evaluation samples.
        loader: ``batch_size``, ``num_workers``, ``seed``, ...: see `DetectionDataModule`.
    """
    build = partial(COCODataset, root, masks=masks)
    return DetectionDataModule(
        train=partial(build, train_split, drop_empty=drop_empty, transform=train_transform),
        val=partial(build, val_split, transform=eval_transform),
        test=None if test_split is None else partial(build, test_split, transform=eval_transform),
        **loader,
    )


def _read_json(root: Path, split: str, path: Path) -> dict[str, Any]:
    try:
        data = path.read_bytes()
        content = json.loads(data)
        # A key that is there twice would lose what the first holds. Looking for that takes a call for each object.
        if any(data.count(f'"{key}"'.encode()) > 1 for key in _KEYS):
            json.loads(data, object_pairs_hook=partial(_check_once, path))
    except FileNotFoundError as error:
        if not path.parent.is_dir():
            hint = "; data.root is to name the folder that holds annotations/ and the folders of images"
        else:
            splits = [other.stem.removeprefix("instances_") for other in path.parent.glob("instances_*.json")]
            hint = f": no split {split!r}{did_you_mean(split, splits)}"
        raise DataError(f"{path} does not exist{hint}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON, it may be truncated: {error}") from error
    for key in _KEYS:
        rows = content.get(key) if isinstance(content, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise DataError(f"{path}: not COCO's annotation format: {key!r} is missing or not a list of objects")
    return content


def _check_once(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    for key in _KEYS:
        if keys.count(key) > 1:
            raise DataError(f"{path}: holds {key!r} {keys.count(key)} times")
    return dict(pairs)


def _read_categories(path: Path, rows: list[dict[str, Any]]) -> dict[int, str]:
    """Names by id, in the order of the ids."""
    names: dict[int, str] = {}
    for place, row in enumerate(rows):
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


def _read_images(path: Path, rows: list[dict[str, Any]], records: Records) -> dict[int, int]:
    """Fills in the images; gives their positions by id."""
    positions: dict[int, int] = {}
    for place, row in enumerate(rows):
        identity, name, size = _integer(row.get("id")), row.get("file_name"), [row.get("height"), row.get("width")]
        if identity is None or identity in positions or not _is_text(name):
            raise DataError(
                f"{path}: images[{place}] is {show(row)}, expected an integer 'id' of its own and a 'file_name'"
            )
        height, width = (_integer(side) or 0 for side in size)
        if min(height, width) < 1 or height * width > MAX_PIXELS:
            raise DataError(
                f"{path}: image {identity} ({name}) has [height, width] {show(size)}, expected positive integers"
            )
        positions[identity] = place
        records.image_ids.append(identity)
        records.names.append(name)
        records.sizes.append((height, width))
    return positions


def _read_annotations(
    path: Path, rows: list[dict[str, Any]], category_ids: list[int], positions: dict[int, int], records: Records
) -> None:
    labels = {identity: label for label, identity in enumerate(category_ids, 1)}

    def fault(place: int, text: str) -> DataError:
        return DataError(f"{path}: annotations[{place}] (id {show(rows[place].get('id'))}) {text}")

    for place, row in enumerate(rows):
        image_id, category_id = row.get("image_id"), row.get("category_id")
        position, label = positions.get(_integer(image_id)), labels.get(_integer(category_id))  # type: ignore[arg-type]
        if position is None:
            raise fault(place, f"is of image {show(image_id)}, which is not among 'images'{_if_text(image_id)}")
        if label is None:
            raise fault(
                place, f"is of category {show(category_id)}, which is not among 'categories'{_if_text(category_id)}"
            )
        box: Any = row.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_coordinate, box)):
            raise fault(place, f"has bbox {show(box)}, expected [x, y, width, height], numbers in pixels")
        area: Any = row.get("area", max(box[2] * box[3], 0))
        if not _is_coordinate(area, limit=_MAX_COORDINATE**2) or area < 0:
            raise fault(place, f"has area {show(area)}, expected a number of pixels, at least 0")
        crowd = row.get("iscrowd", 0)
        if crowd not in (0, 1):
            raise fault(place, f"has iscrowd {show(crowd)}, expected the number 0 or 1")
        records.positions.append(position)
        records.boxes.append(box)
        records.labels.append(label)
        records.areas.append(area)
        records.crowd.append(bool(crowd))
        records.difficult.append(False)
    if records.segmentations is not None:
        segmentations = [row.get("segmentation") for row in rows]
        try:
            check_segmentations(segmentations, [records.sizes[position] for position in records.positions])
        except SegmentationError as error:
            raise fault(error.index, str(error)) from error
        records.segmentations += [json.dumps(item, separators=(",", ":")) for item in segmentations]


def _integer(value: Any) -> int | None:
    """A number of JSON as an integer of 64 bits, if it is one. Data frames write 3 as 3.0."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    return value if type(value) is int and -(2**63) <= value < 2**63 else None


def _is_coordinate(value: Any, limit: float = _MAX_COORDINATE) -> bool:
    return type(value) in (int, float) and -limit <= value <= limit


def _is_text(value: Any) -> TypeGuard[str]:
    try:
        return isinstance(value, str) and bool(value.encode())
    except UnicodeEncodeError:  # half of a pair of UTF-16
        return False


def _if_text(value: Any) -> str:
    return ": it is a text, ids are integers" if isinstance(value, str) else ""
