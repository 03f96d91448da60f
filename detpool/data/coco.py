"""COCO's published layout (Lin et al., ECCV 2014)."""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

from detpool.data.datamodule import DetectionDataModule
from detpool.data.dataset import Transform
from detpool.data.files import FileDataset, Records
from detpool.errors import DataError, did_you_mean
from detpool.signatures import hands_on, parameters_of


class COCODataset(FileDataset):
    """Objects of ``annotations/instances_{split}.json``, and images in the folder ``{split}/``, both below ``root``.

    Label i is the category with the i-th smallest id. Boxes are clamped to their images in samples, and in the ground
    truth as published.

    Args:
        root: see above.
        split: ``train2017``, ``val2017``, ...
        masks: whether samples and ground truth hold masks: polygons, or run-length encoded.
        drop_empty: whether to leave out images without an object to train on.
        transform: see `DetectionDataset`.

    Raises:
        DataError: the file is missing, malformed, or refers to images or categories that it does not list.
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
        _read_images(path, content["images"], records)
        _read_annotations(path, content["annotations"], list(categories), records)
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


@hands_on(parameters_of(DetectionDataModule), without=("train", "val", "test"))
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
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        if not path.parent.is_dir():
            hint = "; data.root is to name the folder that holds annotations/ and the folders of images"
        else:
            splits = [other.stem.removeprefix("instances_") for other in path.parent.glob("instances_*.json")]
            hint = f": no split {split!r}{did_you_mean(split, splits)}"
        raise DataError(f"{path} does not exist{hint}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON, it may be truncated: {error}") from error
    for key in ("images", "annotations", "categories"):
        rows = content.get(key) if isinstance(content, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise DataError(f"{path}: not COCO's annotation format: {key!r} is missing or not a list of objects")
    return content


def _read_categories(path: Path, rows: list[dict[str, Any]]) -> dict[int, str]:
    """Names by id, in the order of the ids."""
    names: dict[int, str] = {}
    for place, row in enumerate(rows):
        identity, name = row.get("id"), row.get("name")
        if not isinstance(identity, int) or not isinstance(name, str) or identity in names:
            raise DataError(f"{path}: categories[{place}] is {row}, expected an integer 'id' of its own and a 'name'")
        names[identity] = name
    if not names:
        raise DataError(f"{path}: 'categories' is empty")
    return dict(sorted(names.items()))


def _read_images(path: Path, rows: list[dict[str, Any]], records: Records) -> None:
    seen: set[int] = set()
    for place, row in enumerate(rows):
        identity, name, size = row.get("id"), row.get("file_name"), [row.get("height"), row.get("width")]
        if not isinstance(identity, int) or identity in seen or not isinstance(name, str):
            raise DataError(f"{path}: images[{place}] is {row}, expected an integer 'id' of its own and a 'file_name'")
        height, width = (side if isinstance(side, int) else 0 for side in size)
        if min(height, width) < 1:
            raise DataError(f"{path}: image {identity} ({name}) has [height, width] {size}, expected positive integers")
        seen.add(identity)
        records.image_ids.append(identity)
        records.names.append(name)
        records.sizes.append((height, width))


def _read_annotations(path: Path, rows: list[dict[str, Any]], category_ids: list[int], records: Records) -> None:
    labels = {identity: label for label, identity in enumerate(category_ids, 1)}
    positions = {identity: position for position, identity in enumerate(records.image_ids)}
    for place, row in enumerate(rows):
        what = f"{path}: annotations[{place}] (id {row.get('id')})"
        image_id, category_id = row.get("image_id"), row.get("category_id")
        if not isinstance(image_id, int) or image_id not in positions:
            raise DataError(f"{what} is of image {image_id!r}, which is not among 'images'")
        if not isinstance(category_id, int) or category_id not in labels:
            raise DataError(f"{what} is of category {category_id!r}, which is not among 'categories'")
        box: Any = row.get("bbox")
        if not _are_numbers(box, 4):
            raise DataError(f"{what} has bbox {box!r}, expected [x, y, width, height]")
        area: Any = row.get("area", box[2] * box[3])
        if not _are_numbers([area], 1):
            raise DataError(f"{what} has area {area!r}, expected a number")
        records.positions.append(positions[image_id])
        records.boxes.append(box)
        records.labels.append(labels[category_id])
        records.areas.append(area)
        records.crowd.append(bool(row.get("iscrowd", 0)))
        records.difficult.append(False)
        if records.segmentations is not None:
            fault = _segmentation_fault(row.get("segmentation"), records.sizes[positions[image_id]])
            if fault:
                raise DataError(f"{what} {fault}")
            records.segmentations.append(json.dumps(row["segmentation"], separators=(",", ":")))


def _are_numbers(values: Any, count: int | None = None) -> bool:
    if not isinstance(values, list) or (count is not None and len(values) != count):
        return False
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values)


def _segmentation_fault(segmentation: Any, size: tuple[int, int]) -> str:
    """What is wrong with a mask, or nothing: pycocotools takes polygons of two points for boxes, for one."""
    if isinstance(segmentation, list) and segmentation:
        if all(_are_numbers(polygon) and len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in segmentation):
            return ""
        return "has a polygon that is not a list [x1, y1, x2, y2, ...] of at least three points"
    if not isinstance(segmentation, dict) or not isinstance(segmentation.get("counts"), str | list):
        return f"has segmentation {segmentation!r}, expected polygons or a run-length encoding"
    if segmentation.get("size") != list(size):
        return f"has a mask of (height, width) {segmentation.get('size')} in an image of {list(size)}"
    counts = segmentation["counts"]
    if isinstance(counts, list) and (not _are_numbers(counts) or sum(counts) != size[0] * size[1]):
        return f"has run lengths that do not sum up to the {size[0] * size[1]} pixels of the image"
    return ""
