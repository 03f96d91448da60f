"""COCO's segmentations: checked, as compressed run lengths and as arrays.

pycocotools and faster-coco-eval read them in C and believe what they read: a string that is cut short makes them read
beyond its end. Whatever comes from a file goes through this module first.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain
from numbers import Real
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle

from detpool.errors import show

Size = tuple[int, int]  # (height, width) of the image in pixels

MAX_PIXELS = 2**31 - 1
"""Pixels of the largest image: the libraries count in 32 bits."""

_MAX_OUTSIDE = 10  # sides of its image that a polygon may reach beyond: the libraries' time and memory grow with it
_MAX_CHARACTERS = 7  # of a number in a compressed string, five bits each
_CHUNK = 256  # segmentations at a time: as many as a processor's cache holds, in Python's objects
_decode_polygons = msgspec.json.Decoder(list[list[float]]).decode


class SegmentationError(ValueError):
    """A segmentation that is malformed: "has ...", with `index`, its place among those that were given."""

    def __init__(self, reason: str, index: int) -> None:
        super().__init__(reason)
        self.index = index


def check_segmentations(segmentations: Sequence[Any], sizes: Sequence[Size]) -> None:
    """Checks what `to_rles` would read, without drawing polygons.

    Args:
        segmentations: as of `to_rles`, or bytes of JSON that is one.
        sizes: (height, width) of their images in pixels.

    Raises:
        SegmentationError: as of `to_rles`.
    """
    for start in range(0, len(segmentations), _CHUNK):
        part, of = segmentations[start : start + _CHUNK], sizes[start : start + _CHUNK]
        odd = _odd_ones(part, of)
        try:
            for _ in _runs([loads(part[i]) for i in odd], [of[i] for i in odd]):
                pass
        except SegmentationError as error:
            raise SegmentationError(str(error), start + odd[error.index]) from error


def loads(text: Any) -> Any:
    """What JSON in bytes says; NaN and numbers of any length too, which msgspec refuses. All else as it is."""
    if not isinstance(text, bytes | msgspec.Raw):
        return text
    try:
        return msgspec.json.decode(text)
    except msgspec.MsgspecError:
        return json.loads(bytes(text))


def _odd_ones(segmentations: Sequence[Any], sizes: Sequence[Size]) -> list[int]:
    """The places of all but polygons in JSON without fault, which are told at a twentieth of what `_runs` takes."""
    owners, polygons, odd = [], [], set()
    for place, text in enumerate(segmentations):
        try:
            found = _decode_polygons(text)
        except (msgspec.MsgspecError, TypeError):
            odd.add(place)
            continue
        polygons += found
        owners += [place] * len(found)
        if not found:
            odd.add(place)
    if polygons:
        lengths = np.fromiter(map(len, polygons), np.int64, len(polygons))
        if lengths.min() == 0:
            return list(range(len(segmentations)))
        values = np.fromiter(chain.from_iterable(polygons), np.float64, lengths.sum())
        starts, side = lengths.cumsum() - lengths, np.array([max(sizes[place]) for place in owners])
        good = (lengths >= 6) & (lengths % 2 == 0)
        good &= np.minimum.reduceat(values, starts) >= -_MAX_OUTSIDE * side
        good &= np.maximum.reduceat(values, starts) <= (1 + _MAX_OUTSIDE) * side
        odd.update(np.array(owners)[~good].tolist())
    return sorted(odd)


def to_rles(segmentations: Sequence[Any], sizes: Sequence[Size]) -> list[dict[str, Any]]:
    """Compressed run-length encodings of segmentations of any kind, as COCO's libraries need them.

    Args:
        segmentations: as in COCO's annotations: polygons, uncompressed or compressed run-length encoding.
        sizes: (height, width) of their images in pixels.

    Raises:
        SegmentationError: a segmentation is malformed, such as one whose runs do not sum up to height x width.
    """
    encoded = []
    for segmentation, size, runs in zip(segmentations, sizes, _runs(segmentations, sizes), strict=True):
        if runs is None:
            encoded.append(rle.merge(rle.frPyObjects(segmentation, *size)))
        else:
            encoded.append(rle.frPyObjects({"size": list(size), "counts": _without_empty(runs)}, *size))
    return encoded


def decode_segmentation(segmentation: Any, size: Size) -> NDArray[np.uint8]:
    """A segmentation as an array of 0 and 1.

    Args:
        segmentation: see `to_rles`.
        size: (height, width) of the image in pixels.

    Returns:
        uint8 (height, width).

    Raises:
        SegmentationError: as of `to_rles`.
    """
    return rle.decode(to_rles([segmentation], [size])[0])


def _runs(segmentations: Sequence[Any], sizes: Sequence[Size]) -> Iterator[NDArray[np.int64] | None]:
    """The run lengths of each segmentation, None of polygons; all of them checked."""
    for start in range(0, len(segmentations), _CHUNK):
        part = segmentations[start : start + _CHUNK]
        decoded = iter(_decode_strings([item["counts"] for item in part if _is_compressed(item)]))
        for index, (segmentation, size) in enumerate(zip(part, sizes[start : start + _CHUNK], strict=True), start):
            found: NDArray[np.int64] | str | None
            if _is_compressed(segmentation):
                found = next(decoded)
            elif isinstance(segmentation, dict) and isinstance(segmentation.get("counts"), list):
                found = _read_counts(segmentation["counts"])
            else:
                found = _polygons_fault(segmentation, size)
            fault = found if isinstance(found, str) else None if found is None else _runs_fault(found, size)
            if isinstance(segmentation, dict) and not _has_size(segmentation, size):
                fault = f"has a mask of (height, width) {show(segmentation.get('size'))} in an image of {list(size)}"
            if fault:
                raise SegmentationError(fault, index)
            yield None if isinstance(found, str) else found


def _is_compressed(segmentation: Any) -> bool:
    return isinstance(segmentation, dict) and isinstance(segmentation.get("counts"), str | bytes)


def _has_size(segmentation: dict[str, Any], size: Size) -> bool:
    given = segmentation.get("size")
    return isinstance(given, list | tuple) and list(given) == list(size)


def _are_numbers(values: list[Any]) -> bool:
    kinds = set(map(type, values))
    return kinds <= {int, float} or all(kind is not bool and issubclass(kind, Real) for kind in kinds)


def _polygons_fault(segmentation: Any, size: Size) -> str | None:
    if not isinstance(segmentation, list) or not segmentation:
        return f"has segmentation {show(segmentation)}, expected polygons or a run-length encoding"
    side = max(size)
    for polygon in segmentation:
        # pycocotools takes polygons of two points for boxes, for one.
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2 or not _are_numbers(polygon):
            return "has a polygon that is not a list [x1, y1, x2, y2, ...] of at least three points"
        low, high = min(polygon), max(polygon)
        if not -_MAX_OUTSIDE * side <= low <= high <= (1 + _MAX_OUTSIDE) * side:
            return f"has a polygon with coordinates from {low!s:.20} to {high!s:.20} in an image of {list(size)}"
        if math.isnan(sum(polygon)):
            return "has a polygon with a coordinate that is NaN"
    return None


def _read_counts(counts: list[Any]) -> NDArray[np.int64] | str:
    """Uncompressed run lengths, or what is wrong with them."""
    if _are_numbers(counts):
        with suppress(OverflowError):
            runs = np.array(counts, np.float64)
            if ((runs >= 0) & (runs <= MAX_PIXELS) & (runs == np.floor(runs))).all():
                return runs.astype(np.int64)
    return "has run lengths that are not all whole numbers, at least 0"


def _runs_fault(runs: NDArray[np.int64], size: Size) -> str | None:
    pixels, total = size[0] * size[1], int(runs.sum())
    if total == pixels and runs.min() < 0:
        return "has a negative run length"
    if total != pixels:
        return f"has run lengths that do not sum up to the {pixels} pixels of the image, but to {total}"
    return None


def _without_empty(runs: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same pixels without empty runs but the first: the libraries stop where two masks have one at a place."""
    if runs[1:].all():
        return runs
    kept = runs.nonzero()[0]
    value = kept % 2
    starts = np.flatnonzero(np.diff(value, prepend=-1))
    merged = np.add.reduceat(runs[kept], starts)
    return np.concatenate([[0], merged]) if value[0] else merged


def _decode_strings(strings: list[str | bytes]) -> list[NDArray[np.int64] | str]:
    """The run lengths of compressed strings, or what is wrong with them, all strings in one go.

    Each character holds five bits of a number, the lowest first, in the order from "0"; a sixth bit says that more
    follow. From the third number on, each is the difference from the one before the last.
    """
    encoded = [string if isinstance(string, bytes) else string.encode("utf-8", "surrogatepass") for string in strings]
    lengths = np.array(list(map(len, encoded)), np.int64)
    codes = np.frombuffer(b"".join(encoded), np.uint8).astype(np.int64) - ord("0")
    if not len(codes):
        return ["has an empty run-length encoding"] * len(strings)
    string = np.repeat(np.arange(len(strings)), lengths)
    filled, final = lengths > 0, lengths.cumsum() - 1

    last = codes & 32 == 0  # character of its number
    cut = filled & ~last[final]
    last[final[filled]] = True
    ends = last.nonzero()[0]
    starts = np.concatenate([[0], ends[:-1] + 1])
    sizes = ends - starts + 1
    shifts = 5 * np.minimum(np.arange(len(codes)) - np.repeat(starts, sizes), 10)
    numbers = np.add.reduceat((codes & 31) << shifts, starts)
    numbers -= np.where(codes[ends] & 16, 1 << 5 * np.minimum(sizes, 11), 0)

    owner = string[ends]
    counts = np.bincount(owner, minlength=len(strings))
    first = counts.cumsum() - counts
    place = np.arange(len(numbers)) - first[owner]
    runs = numbers.copy()
    for later in (place % 2 == 1, (place % 2 == 0) & (place > 0)):
        steps = np.where(later, numbers, 0)
        sums = steps.cumsum()
        runs[later] = (sums - (sums - steps)[first[owner]])[later]

    foreign = np.bincount(string, (codes < 0) | (codes > 63), len(strings)) > 0
    long = np.bincount(owner, sizes > _MAX_CHARACTERS, len(strings)) > 0
    reasons = {
        "has an empty run-length encoding": ~filled,
        "has a run-length encoding with characters that mean nothing in one": foreign,
        "has a run-length encoding that is cut short": cut,
        "has a run-length encoding with a number of more than 32 bits": long,
    }
    found: list[NDArray[np.int64] | str] = list(np.split(runs, first[1:]))
    for reason, which in reversed(reasons.items()):
        for index in which.nonzero()[0]:
            found[index] = reason
    return found
