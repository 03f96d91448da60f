"""Predictions as rows of COCO's result format, in pixels of the image files.

A row is `{"image_id", "category_id", "bbox": [x, y, width, height], "score"}` and, where the model predicts
masks, `"segmentation": {"size": [height, width], "counts": str}` (compressed RLE), as defined on
https://cocodataset.org/#format-results. `"iou"`, where the model predicts it, is an extension of that format.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as rle
from torch import Tensor

from detpool.evaluation.detections import Detections, Row
from detpool.evaluation.pasting import encode_in_boxes
from detpool.files import write_bytes_atomically
from detpool.garbage import collection_paused

RESULTS = "predictions.json.gz"
"""File name of the evaluation's rows in a run directory. Earlier revisions wrote it without `.gz`."""
_GZIP = b"\x1f\x8b"
_KEYS = ("image_id", "category_id", "bbox", "score")


def to_detections(
    prediction: Mapping[str, Tensor],
    *,
    image_id: int,
    orig_size: tuple[int, int],
    input_size: tuple[int, int],
    category_ids: Sequence[int],
) -> Detections:
    """Convert the predictions of one image to detections in pixels of its file.

    Args:
        prediction: torchvision's dict: `boxes` (n, 4) XYXY in pixels of the model's input, `labels` (n,) in
            1 .. len(category_ids), `scores` (n,), and optionally `masks` (n, 1, H, W) pasted into the model's input:
            bool, uint8 of 0 and 1, or probabilities (foreground where > 0.5); or, in their place, `mask_probabilities`
            (n, M, M) within the boxes; and `ious` (n,), the IoU with its object that the model predicts for each box.
        image_id: key of the image in the ground truth.
        orig_size: (height, width) of the image file.
        input_size: (height, width) of the model's input, the image that `prediction` refers to.
        category_ids: the data set's own category ids; label 1 is the first.

    Returns:
        The detections in the order of `prediction`, with boxes and masks scaled to the image file. `mask_probabilities`
        are pasted at the size of the file. Coordinates are neither rounded nor clipped.

    Raises:
        ValueError: If shapes do not agree, a label is not that of a class, or a box or score is not finite.
    """
    boxes, labels, scores = (prediction[key].detach().cpu() for key in ("boxes", "labels", "scores"))
    count = len(scores)
    if tuple(boxes.shape) != (count, 4) or tuple(labels.shape) != (count,) or scores.ndim != 1:
        raise ValueError(
            f"predictions of image {image_id}: boxes, labels and scores must be (n, 4), (n,) and (n,), "
            f"got {tuple(boxes.shape)}, {tuple(labels.shape)} and {tuple(scores.shape)}"
        )
    if not (boxes.isfinite().all() and scores.isfinite().all()):
        raise ValueError(f"predictions of image {image_id}: boxes or scores hold NaN or infinity")
    if count and not (int(labels.min()) >= 1 and int(labels.max()) <= len(category_ids)):
        raise ValueError(
            f"predictions of image {image_id}: labels must lie in 1 .. {len(category_ids)}, "
            f"got {int(labels.min())} .. {int(labels.max())}"
        )

    scale_y, scale_x = orig_size[0] / input_size[0], orig_size[1] / input_size[1]
    xyxy = boxes.double() * torch.tensor([scale_x, scale_y, scale_x, scale_y], dtype=torch.float64)
    xywh = torch.cat([xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]], dim=1)
    masks: Sequence[Any] = [None] * count
    if "mask_probabilities" in prediction:
        given = prediction["mask_probabilities"]
        if given.ndim != 3 or given.shape[0] != count or given.shape[1] != given.shape[2]:
            raise ValueError(
                f"predictions of image {image_id}: mask_probabilities must be ({count}, M, M), got {tuple(given.shape)}"
            )
        encoded = encode_in_boxes(given.detach().cpu().float(), boxes, input_size, orig_size)
        masks = [_as_text(mask, orig_size) for mask in encoded]
    elif "masks" in prediction:
        given = prediction["masks"]
        if tuple(given.shape) != (count, 1, *input_size):
            raise ValueError(
                f"predictions of image {image_id}: masks must be {(count, 1, *input_size)} (n, 1, height and "
                f"width of the model's input), got {tuple(given.shape)}"
            )
        masks = [_encode(mask, orig_size) for mask in given.detach()]
    return Detections(
        image_ids=np.full(count, image_id, np.int64),
        category_ids=np.array(category_ids, np.int64)[labels.numpy() - 1],
        boxes=xywh.numpy(),
        scores=scores.double().numpy(),
        ious=prediction["ious"].detach().double().cpu().numpy() if "ious" in prediction else np.full(count, np.nan),
        segmentations=masks,
    )


def _encode(mask: Tensor, size: tuple[int, int]) -> dict[str, Any]:
    """Resize a (1, H, W) mask to `size` (height, width) and return its compressed RLE."""
    mask = mask.float()
    if tuple(mask.shape[-2:]) != tuple(size):
        mask = F.interpolate(mask[None], size=tuple(size), mode="bilinear", antialias=True)[0]
    return _as_text(rle.encode(np.asfortranarray((mask[0] > 0.5).cpu().numpy().astype(np.uint8))), size)


def _as_text(encoded: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    return {"size": [int(size[0]), int(size[1])], "counts": encoded["counts"].decode("ascii")}


@collection_paused()
def write_results(path: str | Path, rows: Detections | Iterable[Row]) -> None:
    """Write detections to a JSON file in COCO's result format, atomically, with boxes rounded to two decimals.

    Args:
        path: the file; it is compressed if its name ends in `.gz`.
        rows: the detections.

    Raises:
        ValueError: If a box or a score is NaN or infinite, which JSON cannot represent.
    """
    found = Detections.of(rows)
    finite = np.isfinite(found.boxes).all(1) & np.isfinite(found.scores)
    if not finite.all():
        place = int((~finite).argmax())
        raise ValueError(
            f"row {place}: bbox {found.boxes[place].tolist()} and score {found.scores[place]} are not JSON compliant"
        )
    content = io.BytesIO()
    # mtime=0: the same rows give the same file. Higher levels than 4 take twice the time for files 7 % smaller.
    packed = gzip.GzipFile("", "wb", 4, content, mtime=0) if str(path).endswith(".gz") else nullcontext(content)
    with packed as file:
        rows, before = iter(replace(found, boxes=found.boxes.round(2))), b"["
        while part := list(islice(rows, 4096)):
            file.write(before + msgspec.json.encode(part)[1:-1])
            before = b",\n"
        file.write(b"]" if len(found) else b"[]")
    write_bytes_atomically(path, content.getbuffer())


def read_results(path: str | Path) -> list[Row]:
    """Read the rows of a file in COCO's result format, compressed or not, such as `write_results` writes.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not JSON, or not a list of result rows; the message names the file and what is wrong.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
        rows = json.loads(gzip.decompress(content) if content.startswith(_GZIP) else content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is cut short or damaged: {error}") from error
    except ValueError as error:  # includes JSONDecodeError and UnicodeDecodeError
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path}: expected a list of COCO result rows, got a JSON {type(rows).__name__}")
    for index, row in enumerate(rows):
        missing = [key for key in _KEYS if key not in row] if isinstance(row, dict) else list(_KEYS)
        if missing:
            raise ValueError(
                f"{path}: row {index} has no {', '.join(missing)}; a COCO result row needs {', '.join(_KEYS)}"
            )
        box = row["bbox"]
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_finite, [*box, row["score"]])):
            raise ValueError(
                f"{path}: row {index} has bbox {box!r:.200} and score {row['score']!r:.50}, expected four numbers and "
                f"a number"
            )
    return rows


def find_results(run_dir: Path) -> Path:
    """Return the path of the file of rows in a run directory, whether or not it exists."""
    before = run_dir / RESULTS.removesuffix(".gz")
    return before if before.is_file() else run_dir / RESULTS


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and -math.inf < value < math.inf
