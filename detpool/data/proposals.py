"""Files of proposals: boxes of each image that detectors without a proposal network of their own take."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detpool.errors import DataError
from detpool.files import write_bytes_atomically

_KEYS = ("image_ids", "counts", "boxes")


def write_proposals(path: str | Path, proposals: Mapping[int, Tensor]) -> None:
    """Writes an `.npz` file, atomically: `image_ids` (M,), `counts` (M,) and `boxes` (sum of counts, 4).

    Args:
        path: the file.
        proposals: boxes (n, 4) XYXY in pixels of the image file, best first, by image id.

    Raises:
        WriteError: the file cannot be written.
    """
    boxes = [box.detach().cpu().numpy().astype(np.float32).reshape(-1, 4) for box in proposals.values()]
    content = io.BytesIO()
    np.savez_compressed(
        content,
        image_ids=np.array(list(proposals), np.int64),
        counts=np.array([len(box) for box in boxes], np.int64),
        boxes=np.concatenate([np.zeros((0, 4), np.float32), *boxes]),
    )
    write_bytes_atomically(path, content.getbuffer())


def read_proposals(path: str | Path, image_ids: Iterable[int]) -> dict[int, Tensor]:
    """Boxes (n, 4) float32 XYXY in pixels of the image file, best first, by image id.

    Args:
        path: what `write_proposals`, or another program, wrote: numbers of any type will do, counts and ids whole ones.
        image_ids: the images that must be in it; others are left out.

    Raises:
        DataError: the file does not exist, is not such a file, or lacks an image or has one twice; the message names
            the file and the place.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            ids, counts, boxes = (file[key] for key in _KEYS)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist; tools/write_proposals.py writes files of proposals") from error
    except Exception as error:  # whatever a zip file, its compression and the headers of arrays have to say
        raise DataError(f"{path}: not a file of proposals (.npz with {', '.join(_KEYS)}): {error}") from error
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
    with np.errstate(over="ignore"):
        boxes = boxes.astype(np.float32)
    if not np.isfinite(boxes).all():
        raise DataError(f"{path}: boxes hold NaN or infinity, boxes[{np.isfinite(boxes).all(1).argmin()}] for one")
    parts = torch.from_numpy(boxes).split(counts.tolist())
    found = dict(zip(ids.tolist(), parts, strict=True))
    wanted = list(image_ids)
    if missing := [identity for identity in wanted if identity not in found]:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise DataError(
            f"{path} holds no proposals for {len(missing)} of the {len(wanted)} images of the data set: "
            f"{', '.join(map(str, missing[:5]))}{more}"
        )
    return {identity: found[identity] for identity in wanted}


def _whole_numbers(path: str | Path, name: str, values: NDArray[Any]) -> NDArray[np.int64]:
    """Numbers of any type as int64, such as the 3.0 of a data frame."""
    if values.dtype.kind not in "fiu":
        raise DataError(f"{path}: {name} is an array of {values.dtype}, expected integers")
    limit = 2**53 if values.dtype.kind == "f" else 2**63  # beyond the first a float stands for several integers
    wrong = ~((abs(values.astype(np.float64)) < limit) & (values == np.rint(values)))
    if wrong.any():
        raise DataError(f"{path}: {name}[{wrong.argmax()}] is {values[wrong.argmax()]}, expected an integer")
    return values.astype(np.int64)


def check_proposals(path: str | Path, proposals: Mapping[int, Tensor]) -> None:
    """Checks that boxes read from a file are corners in pixels.

    Raises:
        DataError: a box has x2 < x1 or y2 < y1, or all boxes lie within the first pixel, as fractions of sides would.
    """
    for identity, boxes in proposals.items():
        wrong = (boxes[:, 2:] < boxes[:, :2]).any(1)
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise DataError(
                f"{path}: box {row} of image {identity} is {boxes[row].tolist()}, with x2 < x1 or y2 < y1: expected "
                f"corners (x1, y1, x2, y2), not (x, y, width, height)"
            )
    every = torch.cat([torch.zeros(0, 4), *proposals.values()])
    if len(every) and ((every >= 0) & (every <= 1)).all():
        raise DataError(f"{path}: all boxes lie within the first pixel: expected pixels, not fractions of the sides")
