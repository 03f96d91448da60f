"""Which detections match which objects: all that AP needs from each image, small enough to be kept with every run.

From the matches, AP can be computed again for any selection of images (`detpool.evaluation.resampling`), without the
detections.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle

from detpool.evaluation.detections import Row, by_image
from detpool.files import write_bytes_atomically
from detpool.ops.backends.cpu.compiling import exact_kernel

MATCHES = "matches.npz"
"""File name of the matches in a run directory."""
THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""IoU thresholds, bitwise equal to those of pycocotools."""
_COLUMNS = {"images": 1, "classes": 1, "scores": 1, "matched": 1, "ignored": 1, "objects": 2}


@dataclass(frozen=True, eq=False)
class Matches:
    """The matches of boxes, or of masks, over all areas, with one entry per detection.

    Detections are in the order in which AP ranks them: by class, within a class by decreasing score, and among equal
    scores by image. Detections beyond the last of `max_dets` of their image and class are left out.

    Attributes:
        image_ids: int64 (I,), ascending: the images that were evaluated, with objects or without.
        class_names: the names of K classes.
        images: int32 (n,), the index of each detection's image in `image_ids`.
        classes: int32 (n,), the index of each detection's class in `class_names`.
        scores: float64 (n,).
        matched: uint16 (n,); bit t is set if the detection matches an object at `THRESHOLDS[t]`.
        ignored: uint16 (n,); bit t is set if the detection does not count at `THRESHOLDS[t]`: it matches a crowd or an
            object flagged `ignore`, or it matches none and lies outside the range of areas (its area is negative).
        objects: int32 (m, 3), the index of the image, the index of the class, and the number of objects that count, for
            each pair of image and class that has any.
        spacing: what the library that computes the run's metrics adds to numbers of detections before dividing by them.
    """

    image_ids: NDArray[np.int64]
    class_names: Sequence[str]
    images: NDArray[np.int32]
    classes: NDArray[np.int32]
    scores: NDArray[np.float64]
    matched: NDArray[np.uint16]
    ignored: NDArray[np.uint16]
    objects: NDArray[np.int32]
    spacing: float


def match(
    by_class: Iterable[tuple[Sequence[Row], Sequence[Row]]],
    image_ids: NDArray[np.int64],
    numbers: NDArray[np.int64],
    class_names: Sequence[str],
    max_dets: int,
    spacing: float,
) -> Matches:
    """Matches detections with objects as COCO's evaluation does, https://cocodataset.org/#detection-eval.

    In order of decreasing score, each detection takes the unmatched object of its image and class with the highest IoU,
    if that IoU is high enough. It takes an ignored object only if no other one can be taken. Several detections can
    take the same crowd.

    Args:
        by_class: the objects and the detections of each class, as `CocoEvaluator` passes them to the libraries. Shapes
            are `segmentation` (compressed run lengths) if the objects have it, else `bbox` (xywh, pixels). Rows have
            `image_id` (one of `numbers`) and `area`, objects also `iscrowd`, detections also `score`. An object with a
            negative area is ignored.
        image_ids: (I,), ascending, the ids of the images that are evaluated.
        numbers: (I,), ascending, the numbers of these images in the rows.
        class_names: the names of the classes.
        max_dets: how many detections count per image and class: those with the highest scores.
        spacing: see `Matches`.
    """
    columns: dict[str, list[NDArray[Any]]] = {name: [] for name in _COLUMNS}
    for label, (objects, detections) in enumerate(by_class):
        found, present = by_image(detections), by_image(objects)
        ranked = {image: sorted(found[image], key=lambda row: -row["score"])[:max_dets] for image in sorted(found)}
        images = np.array([image for image, rows in ranked.items() for _ in rows], np.int64)
        scores = np.array([row["score"] for rows in ranked.values() for row in rows], np.float64)
        bits = [_match_image(present.get(image, []), rows) for image, rows in ranked.items()]
        matched, ignored = (np.concatenate([np.zeros(0, np.uint16), *(each[i] for each in bits)]) for i in range(2))
        order = np.argsort(-scores, kind="stable")
        columns["images"].append(numbers.searchsorted(images)[order])
        columns["classes"].append(np.full(len(order), label))
        columns["scores"].append(scores[order])
        columns["matched"].append(matched[order])
        columns["ignored"].append(ignored[order])
        counted = {image: sum(not _is_ignored(row) for row in present[image]) for image in sorted(present)}
        rows = [(numbers.searchsorted(image), label, count) for image, count in counted.items() if count]
        columns["objects"].append(np.array(rows, np.int32).reshape(-1, 3))
    arrays = {name: np.concatenate(parts) if parts else np.zeros(0) for name, parts in columns.items()}
    return _typed(image_ids, class_names, spacing, arrays)


def _typed(
    image_ids: NDArray[Any], class_names: Sequence[str], spacing: float, arrays: Mapping[str, NDArray[Any]]
) -> Matches:
    return Matches(
        spacing=spacing,
        image_ids=image_ids.astype(np.int64),
        class_names=list(class_names),
        images=arrays["images"].astype(np.int32),
        classes=arrays["classes"].astype(np.int32),
        scores=arrays["scores"].astype(np.float64),
        matched=arrays["matched"].astype(np.uint16),
        ignored=arrays["ignored"].astype(np.uint16),
        objects=arrays["objects"].astype(np.int32).reshape(-1, 3),
    )


def _is_ignored(row: Row) -> bool:
    return bool(row["iscrowd"]) or row["area"] < 0


def _match_image(objects: list[Row], detections: list[Row]) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """Return `matched` and `ignored` for the ranked detections of one image and class."""
    objects = sorted(objects, key=_is_ignored)
    crowd, ignored = ([bool(of(row)) for row in objects] for of in (lambda row: row["iscrowd"], _is_ignored))
    if objects:
        shape = "segmentation" if "segmentation" in objects[0] else "bbox"
        overlaps = rle.iou([row[shape] for row in detections], [row[shape] for row in objects], crowd)
    else:
        overlaps = np.zeros((len(detections), 0))
    outside = np.array([row["area"] < 0 for row in detections], np.bool_)
    return _match(overlaps, np.array(crowd, np.bool_), np.array(ignored, np.bool_), outside, THRESHOLDS)


@exact_kernel
def _match(
    overlaps: NDArray[np.float64],
    crowd: NDArray[np.bool_],
    ignored: NDArray[np.bool_],
    outside: NDArray[np.bool_],
    thresholds: NDArray[np.float64],
) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """Return the bits `matched` and `ignored` (D,) of detections from overlaps (D, G); ignored objects must come last.

    Unmatched detections that are `outside` the range of areas are ignored.
    """
    count, objects = overlaps.shape
    matched, dropped = np.zeros(count, np.uint16), np.zeros(count, np.uint16)
    for t in range(len(thresholds)):
        bit = np.uint16(1 << t)
        taken = np.zeros(objects, np.bool_)
        for d in range(count):
            best, highest = -1, min(thresholds[t], 1 - 1e-10)
            for g in range(objects):
                if taken[g] and not crowd[g]:
                    continue
                if best >= 0 and not ignored[best] and ignored[g]:
                    break
                if overlaps[d, g] >= highest:
                    best, highest = g, overlaps[d, g]
            if best >= 0:
                taken[best] = True
                matched[d] |= bit
            if (best >= 0 and ignored[best]) or (best < 0 and outside[d]):
                dropped[d] |= bit
    return matched, dropped


def write_matches(path: str | Path, matches: Mapping[str, Matches]) -> None:
    """Writes matches as a compressed NumPy archive, atomically; the same matches give the same bytes.

    Args:
        path: the file.
        matches: the matches by IoU type, `"bbox"` or `"segm"`, all of the same images and classes.
    """
    first = next(iter(matches.values()))
    arrays = {"image_ids": first.image_ids, "class_names": np.array(first.class_names, np.str_)}
    arrays |= {"spacing": np.array(first.spacing)}
    for kind, each in matches.items():
        arrays |= {f"{kind}_{name}": getattr(each, name) for name in _COLUMNS}
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type] # NumPy 1 has no allow_pickle: it would be an array
    write_bytes_atomically(path, content.getbuffer())


def read_matches(path: str | Path) -> dict[str, Matches]:
    """Reads what `write_matches` wrote: the matches by IoU type.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not one of matches; the message names the file and what is wrong.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        names = [str(name) for name in arrays.pop("class_names")]
        image_ids, spacing = arrays.pop("image_ids"), float(arrays.pop("spacing"))
        found = {}
        for kind in dict.fromkeys(name.partition("_")[0] for name in arrays):
            columns = {name: arrays[f"{kind}_{name}"] for name in _COLUMNS}
            _check(columns, len(image_ids), len(names))
            found[kind] = _typed(image_ids, names, spacing, columns)
    except KeyError as error:
        raise ValueError(f"{path} is not a file of matches: it lacks {error}") from error
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a file of matches, or damaged: {error}") from error
    return found


def _check(columns: Mapping[str, NDArray[Any]], images: int, classes: int) -> None:
    """Raises ValueError unless compiled code can read the columns without bounds checks."""
    for name, dimensions in _COLUMNS.items():
        if columns[name].ndim != dimensions or columns[name].dtype.kind not in ("f" if name == "scores" else "iu"):
            raise ValueError(f"{name} has shape {columns[name].shape} and dtype {columns[name].dtype}")
    if len({len(columns[name]) for name in _COLUMNS if name != "objects"}) > 1 or columns["objects"].shape[1] != 3:
        raise ValueError("its columns are not equally long")
    limits = {"images": (columns["images"], images), "classes": (columns["classes"], classes)}
    limits |= {"objects' images": (columns["objects"][:, 0], images)}
    limits |= {"objects' classes": (columns["objects"][:, 1], classes)}
    for name, (values, limit) in limits.items():
        if len(values) and not (values.min() >= 0 and values.max() < limit):
            raise ValueError(f"{name} must lie in 0 .. {limit - 1}, got {values.min()} .. {values.max()}")
    if (np.diff(columns["classes"]) < 0).any() or (columns["objects"][:, 2] < 1).any():
        raise ValueError("detections must be ordered by class, and numbers of objects be positive")
