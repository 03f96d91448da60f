"""COCO's segmentations: their check, and their conversion to compressed run lengths and arrays.

pycocotools and faster-coco-eval read them in C without checks: a truncated string makes them read beyond its end. All
segmentations from files therefore pass through this module first.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import compress
from numbers import Real
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle

from detpool.errors import show
from detpool.ops.backends.cpu.compiling import exact_kernel

Size = tuple[int, int]  # (height, width) of the image in pixels

MAX_PIXELS = 2**31 - 1
"""Largest number of pixels of an image: the libraries count in 32 bits."""

_MAX_OUTSIDE = 10  # times the image's side that a polygon may reach outside: time and memory grow with it
_MAX_CHARACTERS = 7  # per number in a compressed string, with five bits per character
_STRINGS = 4096  # segmentations that are checked at a time


class SegmentationError(ValueError):
    """A segmentation is malformed. The message begins with "has"; `index` is its position in the input sequence."""

    def __init__(self, reason: str, index: int) -> None:
        super().__init__(reason)
        self.index = index


def check_segmentations(segmentations: Sequence[Any], sizes: Sequence[Size]) -> None:
    """Checks segmentations as `to_rles` does, without drawing polygons.

    Raises:
        SegmentationError: See `to_rles`.
    """
    for _ in _runs(segmentations, sizes):
        pass


def check_texts(
    data: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64], sizes: NDArray[np.int64]
) -> None:
    """Checks segmentations as `check_segmentations` does, given as JSON texts with valid syntax.

    Args:
        data: the bytes of a file that holds all texts.
        starts, ends: (n,), where each text begins and ends in `data`.
        sizes: (n, 2), height and width of their images in pixels.

    Raises:
        SegmentationError: See `to_rles`.
    """
    odd = (~_are_polygons(data, starts, ends, sizes.max(1, initial=0))).nonzero()[0]
    for start in range(0, len(odd), _STRINGS):
        part = odd[start : start + _STRINGS]
        try:
            texts = [data[starts[i] : ends[i]].tobytes() for i in part]
            check_segmentations([loads(text) for text in texts], [(h, w) for h, w in sizes[part].tolist()])
        except SegmentationError as error:
            raise SegmentationError(str(error), int(part[error.index])) from error


@exact_kernel
def _are_polygons(
    data: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64], sides: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Returns which texts are polygons [[x1, y1, x2, ...], ...] of plain numbers (12, -3.45) that are surely in range.

    Converting the numbers of COCO's polygons to Python objects would take seconds. A number with no more digits before
    the point than the longer side of its image is less than `_MAX_OUTSIDE` sides.
    """
    found = np.zeros(len(starts), np.bool_)
    for text in range(len(starts)):
        longest = 1
        while 10**longest <= sides[text]:
            longest += 1
        depth, numbers, polygons, good, place, end = 0, 0, 0, True, starts[text], ends[text]
        while place < end and good:
            code = data[place]
            if (
                code == 45 or 48 <= code <= 57
            ):  # minus, digits; the loops are not in a function, since it would not be inlined
                begin = place + 1 if code == 45 else place
                place = begin
                while place < end and 48 <= data[place] <= 57:
                    place += 1
                good = depth == 2 and 0 < place - begin <= longest and (place == begin + 1 or data[begin] != 48)
                if place < end and data[place] == 46:
                    begin = place + 1
                    place = begin
                    while place < end and 48 <= data[place] <= 57:
                        place += 1
                    good = good and place > begin
                numbers += 1
                continue
            place += 1
            if code == 91:  # [
                depth += 1
                numbers = 0
                good = depth <= 2
            elif code == 93:  # ]
                good = depth == 1 or (numbers >= 6 and numbers % 2 == 0)
                polygons += depth == 2
                depth -= 1
            else:  # comma, white space
                good = code == 44 or code == 32 or code == 10 or code == 13 or code == 9
        found[text] = good and depth == 0 and polygons > 0
    return found


def loads(text: Any) -> Any:
    """Parses JSON in bytes or a string, including NaN and numbers of any length, which msgspec rejects."""
    try:
        return msgspec.json.decode(text)
    except msgspec.MsgspecError:
        return json.loads(text if isinstance(text, str) else bytes(text))


def to_rles(segmentations: Sequence[Any], sizes: Sequence[Size]) -> list[dict[str, Any]]:
    """Converts segmentations of any kind to compressed run-length encodings, as COCO's libraries need them.

    Args:
        segmentations: as in COCO's annotations: polygons, or uncompressed or compressed run-length encodings.
        sizes: (height, width) of their images in pixels.

    Raises:
        SegmentationError: If a segmentation is malformed, for example if its runs do not sum to height x width.
    """
    encoded = []
    for segmentation, size, runs in zip(segmentations, sizes, _runs(segmentations, sizes), strict=True):
        if runs is not None:
            encoded.append(rle.frPyObjects({"size": list(size), "counts": _without_empty(runs)}, *size))
        elif isinstance(segmentation, dict):
            counts = segmentation["counts"]
            encoded.append({"size": list(size), "counts": counts if isinstance(counts, bytes) else counts.encode()})
        else:
            encoded.append(rle.merge(rle.frPyObjects(segmentation, *size)))
    return encoded


def decode_segmentation(segmentation: Any, size: Size) -> NDArray[np.uint8]:
    """Converts a segmentation to an array of 0 and 1.

    Args:
        segmentation: see `to_rles`.
        size: (height, width) of the image in pixels.

    Returns:
        uint8 (height, width).

    Raises:
        SegmentationError: See `to_rles`.
    """
    return rle.decode(to_rles([segmentation], [size])[0])


def crop_rles(rles: Sequence[dict[str, Any]]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Converts masks to the pixels within their bounding boxes, without arrays of whole images.

    Args:
        rles: n compressed encodings (`to_rles`).

    Returns:
        The pixels (0 or 1) of all bounding boxes, row by row, in one uint8 array; and int64 (n, 5): x, y, width and
        height of each box in pixels and the index of its first pixel in that array. The box of an empty mask has one
        pixel.
    """
    extents = np.zeros((len(rles), 5), np.int64)
    if rles:
        extents[:, :4] = rle.toBbox(list(rles))
    extents[:, 2:4] = np.maximum(extents[:, 2:4], 1)
    ends = (extents[:, 2] * extents[:, 3]).cumsum()
    extents[1:, 4] = ends[:-1]
    pixels = np.zeros(ends[-1] if rles else 0, np.uint8)
    strings = [item["counts"] for item in rles]
    places = np.array([0, *map(len, strings)]).cumsum()
    heights = np.array([item["size"][0] for item in rles], np.int64)
    _draw(np.frombuffer(b"".join(strings), np.uint8), places, heights, extents, pixels)
    return pixels, extents


@exact_kernel
def _draw(
    data: NDArray[np.uint8],
    ends: NDArray[np.int64],
    heights: NDArray[np.int64],
    extents: NDArray[np.int64],
    pixels: NDArray[np.uint8],
) -> None:
    """Sets the pixels of valid encodings, whose runs go down one column of the image after another."""
    for string in range(len(extents)):
        x, y, width, _, start = extents[string]
        before = last = number = row = column = np.int64(0)
        shift = runs = 0
        for place in range(ends[string], ends[string + 1]):
            code = np.int64(data[place]) - 48
            number |= (code & 31) << shift
            shift += 5
            if code & 32:
                continue
            if code & 16:
                number -= 1 << shift
            if runs > 2:
                number += before
            if runs % 2:
                for pixel in range(column * heights[string] + row, column * heights[string] + row + number):
                    line = pixel // heights[string]
                    pixels[start + (pixel - line * heights[string] - y) * width + line - x] = 1
            row += number
            column += row // heights[string]
            row %= heights[string]
            before, last = last, number
            number, shift, runs = np.int64(0), 0, runs + 1


def _runs(segmentations: Sequence[Any], sizes: Sequence[Size]) -> Iterator[NDArray[np.int64] | None]:
    """Checks segmentations and yields the run lengths of each, or None if the libraries can read it as it is."""
    for start in range(0, len(segmentations), _STRINGS):
        part, of = segmentations[start : start + _STRINGS], sizes[start : start + _STRINGS]
        compressed = [_is_compressed(item) for item in part]
        strings = [item["counts"] for item in compress(part, compressed)]
        decoded = iter(_decode_strings(strings, [h * w for h, w in compress(of, compressed)]))
        for index, (segmentation, size, is_compressed) in enumerate(zip(part, of, compressed, strict=True), start):
            found: NDArray[np.int64] | str | None
            if is_compressed:
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
    return isinstance(segmentation, dict) and isinstance(segmentation.get("counts"), (str, bytes))


def _has_size(segmentation: dict[str, Any], size: Size) -> bool:
    given = segmentation.get("size")
    return isinstance(given, (list, tuple)) and list(given) == list(size)


def _are_numbers(values: list[Any]) -> bool:
    kinds = set(map(type, values))
    return kinds <= {int, float} or all(kind is not bool and issubclass(kind, Real) for kind in kinds)


def _polygons_fault(segmentation: Any, size: Size) -> str | None:
    if not isinstance(segmentation, list) or not segmentation:
        return f"has segmentation {show(segmentation)}, expected polygons or a run-length encoding"
    side = max(size)
    for polygon in segmentation:
        # For example, pycocotools takes polygons of two points for boxes.
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2 or not _are_numbers(polygon):
            return "has a polygon that is not a list [x1, y1, x2, y2, ...] of at least three points"
        low, high = min(polygon), max(polygon)
        if not -_MAX_OUTSIDE * side <= low <= high <= (1 + _MAX_OUTSIDE) * side:
            return f"has a polygon with coordinates from {low!s:.20} to {high!s:.20} in an image of {list(size)}"
        if math.isnan(sum(polygon)):
            return "has a polygon with a coordinate that is NaN"
    return None


def _read_counts(counts: list[Any]) -> NDArray[np.int64] | str:
    """Returns uncompressed run lengths as an array, or a message that says what is wrong with them."""
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
    """Removes empty runs except the first: the libraries stop where two masks have empty runs at the same place."""
    if runs[1:].all():
        return runs
    kept = runs.nonzero()[0]
    value = kept % 2
    starts = np.flatnonzero(np.diff(value, prepend=-1))
    merged = np.add.reduceat(runs[kept], starts)
    return np.concatenate([[0], merged]) if value[0] else merged


def _decode_strings(strings: list[str | bytes], pixels: list[int]) -> list[NDArray[np.int64] | str | None]:
    """Returns for each compressed string its run lengths, a message that it is malformed, or None if it is plain."""
    encoded = [text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass") for text in strings]
    ends = np.array([0, *map(len, encoded)]).cumsum()
    plain = _are_plain(np.frombuffer(b"".join(encoded), np.uint8), ends, np.array(pixels, np.int64))
    others = iter(_decode_odd_strings([text for text, sound in zip(encoded, plain, strict=True) if not sound]))
    return [None if sound else next(others) for sound in plain]


@exact_kernel
def _are_plain(data: NDArray[np.uint8], ends: NDArray[np.int64], pixels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Returns which strings are valid, sum to the pixels of their image, and have no empty run except the first."""
    plain = np.zeros(len(pixels), np.bool_)
    for string in range(len(pixels)):
        before = last = number = total = np.int64(0)
        shift = runs = 0
        sound = True
        for place in range(ends[string], ends[string + 1]):
            code = np.int64(data[place]) - 48
            if code < 0 or code > 63 or shift > 5 * (_MAX_CHARACTERS - 1):
                sound = False
                break
            number |= (code & 31) << shift
            shift += 5
            if code & 32:
                continue
            if code & 16:
                number -= 1 << shift
            if runs > 2:
                number += before
            if number < 0 or (number == 0 and runs > 0):
                sound = False
                break
            before, last, total = last, number, total + number
            number, shift, runs = np.int64(0), 0, runs + 1
        plain[string] = sound and runs > 0 and shift == 0 and total == pixels[string]
    return plain


def _decode_odd_strings(encoded: list[bytes]) -> list[NDArray[np.int64] | str]:
    """Returns for each compressed string its run lengths or a message that it is malformed, all at once.

    Each character, counted from "0", holds five bits of a number, the lowest bits first; its sixth bit says that more
    characters follow. From the fourth number on, each is the difference from the number two places before it.
    """
    lengths = np.array(list(map(len, encoded)), np.int64)
    codes = np.frombuffer(b"".join(encoded), np.uint8).astype(np.int64) - ord("0")
    if not len(codes):
        return ["has an empty run-length encoding"] * len(encoded)
    string = np.repeat(np.arange(len(encoded)), lengths)
    filled, final = lengths > 0, lengths.cumsum() - 1

    last = codes & 32 == 0  # whether it is the last character of its number
    cut = filled & ~last[final]
    last[final[filled]] = True
    ends = last.nonzero()[0]
    starts = np.concatenate([[0], ends[:-1] + 1])
    sizes = ends - starts + 1
    shifts = 5 * np.minimum(np.arange(len(codes)) - np.repeat(starts, sizes), 10)
    numbers = np.add.reduceat((codes & 31) << shifts, starts)
    numbers -= np.where(codes[ends] & 16, 1 << 5 * np.minimum(sizes, 11), 0)

    owner = string[ends]
    counts = np.bincount(owner, minlength=len(encoded))
    first = counts.cumsum() - counts
    place = np.arange(len(numbers)) - first[owner]
    runs = numbers.copy()
    for later in (place % 2 == 1, (place % 2 == 0) & (place > 0)):
        steps = np.where(later, numbers, 0)
        sums = steps.cumsum()
        runs[later] = (sums - (sums - steps)[first[owner]])[later]

    foreign = np.bincount(string, (codes < 0) | (codes > 63), len(encoded)) > 0
    long = np.bincount(owner, sizes > _MAX_CHARACTERS, len(encoded)) > 0
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
