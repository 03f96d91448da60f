"""COCO's layouts: annotations in one JSON file, images in a folder."""

from functools import partial
from pathlib import Path
from typing import Any

from detpool.data.cache import cached
from detpool.data.coco_json import read_instances
from detpool.data.datamodule import DetectionDataModule
from detpool.data.dataset import Transform
from detpool.data.files import FileDataset
from detpool.errors import DataError, did_you_mean


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
        cache: whether to keep what was read for the next start (`detpool.data.cache`).

    Raises:
        DataError: the file is missing, malformed, LVIS's, or refers to images or categories that it does not list; all
            boxes seem to be fractions; a mask's runs do not sum up to its pixels. The message names file and place.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train2017",
        masks: bool = False,
        drop_empty: bool = False,
        transform: Transform | None = None,
        cache: bool = True,
    ) -> None:
        path = Path(root) / "annotations" / f"instances_{split}.json"
        build = partial(read_instances, path, masks)
        try:
            columns = cached(path, "masks" if masks else "boxes", build) if cache else build()
        except FileNotFoundError as error:
            if not path.parent.is_dir():
                hint = "; data.root is to name the folder that holds annotations/ and the folders of images"
            else:
                splits = [other.stem.removeprefix("instances_") for other in path.parent.glob("instances_*.json")]
                hint = f": no split {split!r}{did_you_mean(split, splits)}"
            raise DataError(f"{path} does not exist{hint}") from error
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error}") from error
        super().__init__(
            source=str(path),
            folder=Path(root) / split,
            columns=columns,
            class_names=columns["class_names"],
            category_ids=columns["category_ids"],
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
    cache: bool = True,
    train_transform: Transform | None = None,
    eval_transform: Transform | None = None,
    **loader: Any,
) -> DetectionDataModule:
    """A data set in COCO's layout as a datamodule.

    Args:
        root, masks, cache: see `COCODataset`.
        train_split, val_split, test_split: splits; no ``test_split``: the validation set is the test set.
        drop_empty: whether to train without the images that have no object to train on; evaluation keeps them.
        train_transform, eval_transform: for training and evaluation samples.
        loader: ``batch_size``, ``num_workers``, ``seed``, ...: see `DetectionDataModule`.
    """
    build = partial(COCODataset, root, masks=masks, cache=cache)
    return DetectionDataModule(
        train=partial(build, train_split, drop_empty=drop_empty, transform=train_transform),
        val=partial(build, val_split, transform=eval_transform),
        test=None if test_split is None else partial(build, test_split, transform=eval_transform),
        **loader,
    )
