"""Files of proposals: boxes for each image, for detectors without a region proposal network."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detpool.errors import DataError
from detpool.files import WriteError, write_bytes_atomically

_KEYS = ("image_ids", "counts", "boxes")
_AT_ONCE = 2**16  # boxes per step of the check


class Proposals:
    """Proposals of images: ``proposals[image_id]`` is (n, 4), float32 XYXY in pixels of the image file, best first.

    Boxes in a folder of `.npy` files are mapped into memory, once for all processes of a machine.

    Args:
        image_ids: int64 (M,).
        counts: int64 (M,), the number of boxes of each image.
        boxes: float32 (sum of counts, 4).
        file: the `.npy` file from which `boxes` are mapped; None: they are in memory.
    """

    def __init__(
        self, image_ids: NDArray[np.int64], counts: NDArray[np.int64], boxes: NDArray[np.float32], file: Path | None
    ) -> None:
        order, ends = image_ids.argsort(), counts.cumsum()
        # Tensors, because Python objects would be copied into each worker.
        self._ids, self._starts, self._ends = (torch.from_numpy(a[order]) for a in (image_ids, ends - counts, ends))
        self._boxes, self._file = torch.from_numpy(boxes), file

    def __getitem__(self, image_id: int) -> Tensor:
        place = int(torch.searchsorted(self._ids, image_id))
        if place == len(self._ids) or self._ids[place] != image_id:
            raise KeyError(image_id)
        return self._boxes[self._starts[place] : self._ends[place]]

    def __getstate__(self) -> dict[str, Any]:
        # Spawned workers map the file themselves: pickled boxes would be copied into each of them.
        return self.__dict__ | ({"_boxes": None} if self._file else {})

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._file:
            self._boxes = torch.from_numpy(_map(self._file))


def write_proposals(path: str | Path, proposals: Mapping[int, Tensor]) -> None:
    """Writes the arrays `image_ids` (M,), `counts` (M,) and `boxes` (sum of counts, 4); each file atomically.

    Args:
        path: a folder, for one `.npy` file per array, which are read without a copy; or, if it ends in `.npz`, a single
            compressed file.
        proposals: boxes (n, 4) XYXY in pixels of the image file, best first, by image id.

    Raises:
        WriteError: If a file cannot be written.
    """
    path = Path(path)
    boxes = [box.detach().cpu().numpy().astype(np.float32, copy=False).reshape(-1, 4) for box in proposals.values()]
    image_ids, counts = np.array(list(proposals), np.int64), np.array([len(box) for box in boxes], np.int64)
    content = io.BytesIO()
    if path.suffix == ".npz":
        every = np.concatenate([np.zeros((0, 4), np.float32), *boxes])
        np.savez_compressed(content, image_ids=image_ids, counts=counts, boxes=every)
        write_bytes_atomically(path, content.getbuffer())
        return
    try:
        # Written last: a folder without this file is not accepted, so an interrupted write is noticed.
        (path / "image_ids.npy").unlink(missing_ok=True)
    except OSError as error:
        raise WriteError(path, error) from error
    header = {"descr": "<f4", "fortran_order": False, "shape": (int(counts.sum()), 4)}
    np.lib.format.write_array_header_1_0(content, header)
    write_bytes_atomically(
        path / "boxes.npy", chain([content.getvalue()], (box.astype("<f4").tobytes() for box in boxes))
    )
    for name, values in (("counts", counts), ("image_ids", image_ids)):
        content = io.BytesIO()
        np.save(content, values)
        write_bytes_atomically(path / f"{name}.npy", content.getbuffer())


def read_proposals(path: str | Path, image_ids: Iterable[int]) -> Proposals:
    """Reads proposals written by `write_proposals` or by another program.

    Arrays may have any numeric type, but counts and ids must be whole numbers.

    Args:
        path: the file or folder.
        image_ids: the images for which there must be proposals.

    Raises:
        DataError: If the file does not exist or has another format, lacks an image or contains one twice, if a box has
            x2 < x1 or y2 < y1, or if all boxes lie within the first pixel and thus seem to be fractions of the image's
            sides. The message names the file and the entry.
    """
    try:
        ids, counts, boxes = _load(Path(path))
    except FileNotFoundError as error:
        text = f"{error.filename or path} does not exist; tools/write_proposals.py writes files of proposals"
        raise DataError(text) from error
    except Exception as error:  # zip files, decompression and array headers raise errors of many types
        kinds = f".npz with {', '.join(_KEYS)}, or a folder of a .npy of each"
        raise DataError(f"{path}: not a file of proposals ({kinds}): {error}") from error
    shapes = ids.ndim == 1 and ids.shape == counts.shape and boxes.ndim == 2 and boxes.shape[1] == 4
    if not shapes:
        raise DataError(
            f"{path}: image_ids, counts and boxes must be (M,), (M,) and (sum of counts, 4), got "
            f"{ids.shape}, {counts.shape} and {boxes.shape}"
        )
    ids, counts = _whole_numbers(path, "image_ids", ids), _whole_numbers(path, "counts", counts)
    if boxes.dtype.kind not in "fiu":
        raise DataError(f"{path}: boxes is an array of {boxes.dtype}, expected numbers")
    if counts.min(initial=0) < 0 or counts.max(initial=0) > len(boxes) or counts.sum() != len(boxes):
        raise DataError(
            f"{path}: image_ids, counts and boxes must be (M,), (M,) and (sum of counts, 4), got "
            f"{ids.shape}, {counts.shape} (sum {counts.sum()}) and {boxes.shape}"
        )
    unique, times = np.unique(ids, return_counts=True)
    if (times > 1).any():
        raise DataError(f"{path}: image_ids holds {unique[times > 1][0]} {times[times > 1][0]} times, expected once")
    wanted = np.fromiter(image_ids, np.int64)
    missing = wanted[~np.isin(wanted, ids)].tolist()
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise DataError(
            f"{path} holds no proposals for {len(missing)} of the {len(wanted)} images of the data set: "
            f"{', '.join(map(str, missing[:5]))}{more}"
        )
    with np.errstate(over="ignore"):
        floats = boxes.astype(np.float32, copy=False)
    _check_boxes(path, ids, counts, floats)
    return Proposals(ids, counts, floats, Path(path, "boxes.npy") if floats is boxes and Path(path).is_dir() else None)


def _load(path: Path) -> list[NDArray[Any]]:
    if path.is_dir():
        return [_map(path / f"{key}.npy") for key in _KEYS]
    with np.load(path, allow_pickle=False) as file:
        return [file[key] for key in _KEYS]


def _map(file: Path) -> NDArray[Any]:
    """Maps an array from a file copy-on-write: writing to the array does not change the file."""
    return np.lib.format.open_memmap(file, mode="c")


def _whole_numbers(path: str | Path, name: str, values: NDArray[Any]) -> NDArray[np.int64]:
    """Converts whole numbers of any type, such as the 3.0 of a data frame, to int64; raises DataError for others."""
    if values.dtype.kind not in "fiu":
        raise DataError(f"{path}: {name} is an array of {values.dtype}, expected integers")
    limit = 2**53 if values.dtype.kind == "f" else 2**63  # beyond 2**53, floats cannot represent all integers
    wrong = ~((abs(values.astype(np.float64)) < limit) & (values == np.rint(values)))
    if wrong.any():
        raise DataError(f"{path}: {name}[{wrong.argmax()}] is {values[wrong.argmax()]}, expected an integer")
    return values.astype(np.int64)


def _check_boxes(path: str | Path, ids: NDArray[Any], counts: NDArray[Any], boxes: NDArray[np.float32]) -> None:
    """Raises DataError if boxes are not finite XYXY boxes in pixels."""
    fractions = len(boxes) > 0
    for start in range(0, len(boxes), _AT_ONCE):
        part = boxes[start : start + _AT_ONCE]
        low, high = part.min(), part.max()
        if not np.isfinite([low, high]).all():
            first = start + np.isfinite(part).all(1).argmin()
            raise DataError(f"{path}: boxes hold NaN or infinity, boxes[{first}] for one")
        wrong = (part[:, 2] < part[:, 0]) | (part[:, 3] < part[:, 1])
        if wrong.any():
            row = start + int(wrong.argmax())
            image = int(np.searchsorted(counts.cumsum(), row, side="right"))
            raise DataError(
                f"{path}: box {row - counts[:image].sum()} of image {ids[image]} is {boxes[row].tolist()}, with x2 < "
                f"x1 or y2 < y1: expected corners (x1, y1, x2, y2), not (x, y, width, height)"
            )
        fractions = fractions and bool(low >= 0 and high <= 1)
    if fractions:
        raise DataError(f"{path}: all boxes lie within the first pixel: expected pixels, not fractions of the sides")
