"""The base class of data sets that are read from files, whatever the format of the annotations."""

from __future__ import annotations

import json
import os
import unicodedata
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from msgspec import Raw
from torch import Tensor
from torchvision import tv_tensors

from detpool.data.boxes import clamp_corners, find_repeated, find_unusable
from detpool.data.cache import Columns
from detpool.data.dataset import DetectionDataset, Sample, Transform
from detpool.data.images import is_ambiguous, is_nearly_black, read_image
from detpool.data.packed import PackedStrings
from detpool.data.selection import DropOthers, Part, check_classes, choose_classes
from detpool.errors import DataError, listed
from detpool.masks import loads
from detpool.object_masks import ObjectMasks

_LOOKED_AT = 16  # number of images, evenly spread over the data set, that are opened before training


@dataclass
class Records:
    """The content of annotation files as columns: first those of the images, then those of the objects."""

    image_ids: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)  # paths relative to the folder of the images
    sizes: list[tuple[int, int]] = field(default_factory=list)  # (height, width)

    positions: array[int] = field(default_factory=lambda: array("q"))  # index of the object's image in the above
    boxes: array[float] = field(default_factory=lambda: array("d"))  # x, y, width, height of each object, in pixels
    labels: array[int] = field(default_factory=lambda: array("q"))
    areas: array[float] = field(default_factory=lambda: array("d"))
    crowd: array[int] = field(default_factory=lambda: array("b"))
    difficult: array[int] = field(default_factory=lambda: array("b"))
    segmentations: list[Raw] | None = None  # JSON; None: not read

    def pack(self) -> Columns:
        """Returns the columns as tensors, and strings as the parts of `PackedStrings`, which all processes share."""
        return {
            "image_ids": torch.tensor(self.image_ids, dtype=torch.int64),
            "names": PackedStrings.pack(self.names).parts,
            "sizes": torch.tensor(self.sizes, dtype=torch.int64).reshape(-1, 2),
            "positions": torch.from_numpy(np.array(self.positions)),
            "boxes": torch.from_numpy(np.array(self.boxes)).reshape(-1, 4),
            "labels": torch.from_numpy(np.array(self.labels)),
            "areas": torch.from_numpy(np.array(self.areas)),
            "crowd": torch.from_numpy(np.array(self.crowd)).bool(),
            "difficult": torch.from_numpy(np.array(self.difficult)).bool(),
            "segmentations": None if self.segmentations is None else PackedStrings.pack(self.segmentations).parts,
        }


class FileDataset(DetectionDataset):
    """A data set of image files below one folder, with the annotations in memory that all workers share.

    Objects whose box has no width or height within the image are left out of samples and ground truth, with one
    warning. Other boxes that are probably mistakes (`detpool.data.boxes`), duplicate objects, and files that several
    images refer to are kept, with one warning per kind. Crowds and difficult objects are only in the ground truth.

    Args:
        source: name of the data set in messages, such as its annotation file.
        folder: the folder to which the images' names are relative.
        columns: the content of the annotation files (`Records.pack`).
        class_names, category_ids: names and ids of the labels in ``columns``.
        masks: whether samples and ground truth contain masks.
        drop_empty: whether to leave out images without an object to train on.
        transform: see `DetectionDataset`.
        corners: whether the files store a second corner instead of width and height.
        classes: names of the classes to keep, which become labels 1, 2, ... in this order and keep their category ids;
            None: all of ``class_names``. Objects of other classes are in neither samples nor ground truth.
        drop_others: what to leave out if ``classes`` is given: only ``objects`` of other classes, or also ``images``
            without an object of ``classes``.
        part: the part of the images to keep, independent of ``classes``; None: all.
        images_key: the setting that sets ``folder``, for error messages about missing images; None: there is none.

    Raises:
        ValueError: See `detpool.data.selection.check_classes`.
        DataError: If no image is left, one of ``classes`` is not in ``class_names``, ``part`` is given and there are
            fewer than two images, or all boxes seem to be fractions of the image's sides.
    """

    def __init__(
        self,
        source: str,
        folder: Path,
        columns: Columns,
        class_names: list[str],
        category_ids: list[int],
        masks: bool,
        drop_empty: bool,
        transform: Transform | None,
        corners: bool = False,
        classes: Sequence[str] | None = None,
        drop_others: DropOthers = "objects",
        part: Part | None = None,
        images_key: str | None = None,
    ) -> None:
        check_classes(classes, drop_others)
        super().__init__(transform)
        source = source if part is None else f"{source} ({part})"
        self.source, self.folder, self.masks, self._images_key = source, folder, masks, images_key
        self.class_names, self.category_ids, label_of = choose_classes(source, class_names, category_ids, classes)

        # Tensors, because Python objects would be copied into each worker (see `PackedStrings`).
        sizes, names = columns["sizes"], PackedStrings(*columns["names"])
        kept_images = torch.ones(len(sizes), dtype=torch.bool) if part is None else part.find(source, names)
        labels = label_of[columns["labels"]]
        objects = ((labels > 0) & kept_images[columns["positions"]]).nonzero()[:, 0]
        positions, boxes = columns["positions"][objects], columns["boxes"][objects]
        targets = ~(columns["crowd"] | columns["difficult"])[objects]

        degenerate = find_unusable(source, boxes, sizes[positions], lambda i: names[int(positions[i])], corners)
        usable = (targets & ~degenerate).nonzero()[:, 0]
        repeated = find_repeated(positions[usable], labels[objects][usable], boxes[usable])
        if repeated:
            first = int(usable[repeated[0]])
            rank_zero_warn(
                f"{source}: {len(repeated)} of {len(usable)} objects have the class and the box of another one in "
                f"their image, and each counts; the first is {boxes[first].tolist()} (x, y, width, height) in "
                f"{names[int(positions[first])]}"
            )
        found = int(kept_images.sum())
        for required, usable in ((drop_empty, targets & ~degenerate), (drop_others == "images", ~degenerate)):
            if required:
                kept_images &= torch.bincount(positions[usable], minlength=len(sizes)) > 0
        several = [name for name, times in Counter(names.take(kept_images.nonzero()[:, 0])).items() if times > 1]
        if several:
            rank_zero_warn(
                f"{source}: {len(several)} files are named by more than one image, each with its own objects, so that "
                f"those of the others are missing in it; the first is {several[0]}"
            )
        if not kept_images.any():
            what = "an object" if found else "an entry"
            of_classes = f" of {listed(self.class_names)}" if found and classes is not None else ""
            purpose = " to train on" if found and drop_empty else ""
            raise DataError(f"{source}: none of its {found} images has {what}{of_classes}{purpose}")
        kept = (~degenerate & kept_images[positions]).nonzero()[:, 0]
        kept = kept[positions[kept].argsort(stable=True)]

        self._image_ids = columns["image_ids"][kept_images]
        self._sizes = sizes[kept_images]
        self._names = names.take(kept_images.nonzero()[:, 0])
        counts = torch.bincount(positions[kept], minlength=len(sizes))[kept_images]
        self._ends = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
        self._boxes = boxes[kept]
        self._targets = targets[kept]
        kept = objects[kept]
        self._labels = labels[kept]
        self._areas = columns["areas"][kept]
        self._crowd = columns["crowd"][kept]
        self._difficult = columns["difficult"][kept]
        self._segmentations = PackedStrings(*columns["segmentations"]).take(kept) if masks else None

    @property
    def image_ids(self) -> list[int]:
        return self._image_ids.tolist()

    @property
    def image_files(self) -> list[str]:
        folder = self.folder.resolve()
        return [os.path.normpath(folder / self._names[i]) for i in range(len(self))]

    @property
    def image_sizes(self) -> Tensor:
        return self._sizes

    def __len__(self) -> int:
        return len(self._image_ids)

    def load(self, index: int) -> Sample:
        size = tuple(self._sizes[index].tolist())
        # First, because it raises an error if the image does not have the annotated size.
        image = read_image(self.folder / self._names[index], size)
        start, end = self._ends[index : index + 2].tolist()
        chosen = start + self._targets[start:end].nonzero()[:, 0]
        boxes = clamp_corners(self._boxes[chosen], self._sizes[index]).float()
        target: dict[str, Any] = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
            "labels": self._labels[chosen],
            "image_id": int(self._image_ids[index]),
            "orig_size": size,
        }
        if self._segmentations is not None:
            segmentations = [json.loads(self._segmentations[i]) for i in chosen.tolist()]
            target["masks"] = ObjectMasks.from_segmentations(segmentations, size)
        return image, target

    def check_images(self) -> None:
        # List each folder once: on some file systems, looking up each of 100,000 images takes minutes.
        found: dict[str, set[str]] = {}
        for name in self._names:
            folder, file = os.path.split(name)
            if folder not in found:
                found[folder] = names_in(self.folder / folder)
            # Some file systems accept other spellings of a name, such as another case.
            if file not in found[folder] and not os.path.exists(self.folder / name):
                hint = f"; {self._images_key} is to name the folder that its images lie in" if self._images_key else ""
                if other := _written_otherwise(self.folder, name):
                    hint = f"; {other!a} does, whose name is written otherwise than {name!a}"
                raise DataError(f"{self.folder / name}: the image does not exist; {self.source} names it{hint}")
        looked = sorted({i * len(self) // _LOOKED_AT for i in range(_LOOKED_AT)})
        names = [self._names[i] for i in looked]
        sizes = [(height, width) for height, width in self._sizes[looked].tolist()]
        unsure = [n for n, size in zip(names, sizes, strict=True) if is_ambiguous(self.folder / n, size)]
        dark = [n for n in names if is_nearly_black(self.folder / n)]
        for which, text in (
            (
                unsure,
                "have an EXIF note that turns or mirrors them into images of the same size, so that these may be what "
                "was annotated; they are read as they are stored: if boxes do not fit, write them as displayed, "
                "without the note",
            ),
            (
                dark,
                "are nearly black, as all values lie in the lowest bits of their type: stretch them to the whole "
                "range, of which 8 bits are used",
            ),
        ):
            if which:
                counts = f"{len(which)} of the {len(looked)} images looked at"
                rank_zero_warn(f"{self.source}: {counts} {text}; the first is {which[0]}")

    def ground_truth(self) -> dict[str, list[dict[str, Any]]]:
        images = [
            {"id": image_id, "file_name": self._names[i], "height": height, "width": width}
            for i, (image_id, (height, width)) in enumerate(zip(self.image_ids, self._sizes.tolist(), strict=True))
        ]
        columns = (
            torch.repeat_interleave(self._image_ids, self._ends.diff()),
            torch.tensor(self.category_ids)[self._labels - 1],
            self._boxes,
            self._areas,
            self._crowd.int(),
            self._difficult.int(),
        )
        annotations: list[dict[str, Any]] = [
            {
                # Not the ids in the files, which may be 0: pycocotools treats that as "no object".
                "id": number,
                "image_id": image_id,
                "category_id": category_id,
                "bbox": bbox,
                "area": area,
                "iscrowd": crowd,
                "ignore": difficult,
                "difficult": difficult,
            }
            for number, (image_id, category_id, bbox, area, crowd, difficult) in enumerate(
                zip(*(column.tolist() for column in columns), strict=True), 1
            )
        ]
        if self._segmentations is not None:
            for annotation, text in zip(annotations, self._segmentations, strict=True):
                annotation["segmentation"] = loads(text)
        categories = [{"id": i, "name": n} for i, n in zip(self.category_ids, self.class_names, strict=True)]
        return {"images": images, "annotations": annotations, "categories": categories}


def _written_otherwise(folder: Path, name: str) -> str | None:
    """A file whose name differs from `name` only in case, Unicode normalization (as on macOS), or backslashes."""

    def plain(text: str) -> str:
        return unicodedata.normalize("NFC", text).casefold()

    path, file = os.path.split(name.replace("\\", "/"))
    alike = sorted(other for other in names_in(folder / path) if plain(other) == plain(file))
    return os.path.join(path, alike[0]) if alike else None


def names_in(folder: Path) -> set[str]:
    """The names of the entries of a folder; empty if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries}
    except (OSError, ValueError):
        return set()
