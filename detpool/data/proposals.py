"""Files of proposals: boxes of each image that detectors without a proposal network of their own take."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
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
        path: what `write_proposals` wrote.
        image_ids: the images that must be in it; others are left out.

    Raises:
        DataError: the file does not exist, is not such a file, or lacks an image; the message names it.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            ids, counts, boxes = (file[key] for key in _KEYS)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist; tools/write_proposals.py writes files of proposals") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, BadZipFile) as error:
        raise DataError(f"{path}: not a file of proposals (.npz with {', '.join(_KEYS)}): {error}") from error
    shapes = ids.ndim == 1 and ids.shape == counts.shape and boxes.ndim == 2 and boxes.shape[1] == 4
    if not shapes or (counts < 0).any() or counts.sum() != len(boxes):
        raise DataError(
            f"{path}: image_ids, counts and boxes must be (M,), (M,) and (sum of counts, 4), got "
            f"{ids.shape}, {counts.shape} (sum {counts.sum()}) and {boxes.shape}"
        )
    if not np.isfinite(boxes).all():
        raise DataError(f"{path}: boxes hold NaN or infinity")
    parts = torch.from_numpy(boxes.astype(np.float32)).split(counts.tolist())
    found = dict(zip(ids.tolist(), parts, strict=True))
    wanted = list(image_ids)
    if missing := [identity for identity in wanted if identity not in found]:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise DataError(
            f"{path} holds no proposals for {len(missing)} of the {len(wanted)} images of the data set: "
            f"{', '.join(map(str, missing[:5]))}{more}"
        )
    return {identity: found[identity] for identity in wanted}
