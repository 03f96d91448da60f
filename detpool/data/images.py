"""Reads image files of any kind as uint8 RGB."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
import torchvision.io
from PIL import ExifTags, Image
from torchvision import tv_tensors

from detpool.errors import DataError

_TURNS = {  # by EXIF orientation; `ImageOps.exif_transpose` raises an error for damaged EXIF data
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAP_SIDES = (5, 6, 7, 8)

# Gives the same pixels as Pillow in five sixths of the time. Deprecated since torchvision 0.29, hence the `getattr`.
decode_jpeg: Callable[..., torch.Tensor] | None = getattr(torchvision.io, "decode_jpeg", None)


def image_size(path: Path) -> tuple[int, int]:
    """Returns (height, width) of an image file as stored, from its header, ignoring its EXIF orientation.

    Raises:
        DataError: If the file is missing or is not an image.
    """
    with _open(path) as image:
        return image.height, image.width


def displayed_size(path: Path) -> tuple[int, int]:
    """Returns (height, width) of an image file as displayed, that is, rotated according to its EXIF orientation.

    Raises:
        DataError: If the file is missing or is not an image.
    """
    with _open(path) as image:
        size = image.height, image.width
        return size[::-1] if _orientation(image) in _SWAP_SIDES else size


def read_image(path: Path, size: tuple[int, int] | None = None) -> tv_tensors.Image:
    """Reads an image file as RGB, and checks its size against the annotations if there are any.

    Gray, palette, CMYK and other color models are converted to RGB. 16-bit samples keep their upper 8 bits,
    transparency is ignored, and the first frame of an animation is read. Cameras store rotated images with an EXIF
    orientation. The published data sets annotate images as stored, other tools as displayed: an annotated image is
    rotated only if the rotated image has the annotated size and the stored one does not.

    Args:
        path: the file.
        size: annotated (height, width) in pixels; None: there are no annotations, and the image is read as displayed.

    Returns:
        uint8 (3, height, width), stored in memory as (height, width, 3), as in files; resizing is fastest this way.

    Raises:
        DataError: If the file is missing, truncated or not an image, or its size differs from the annotated one.
    """
    with _open(path) as image, _decoding(path):
        turned = size is None or _is_annotated_turned(path, image, size)
        turn = _TURNS.get(_orientation(image)) if turned else None
        if decode_jpeg and turn is None and (image.format, image.mode) == ("JPEG", "RGB"):
            with suppress(RuntimeError):  # Pillow, below, gives the reason
                return tv_tensors.Image(decode_jpeg(torch.from_numpy(np.fromfile(path, np.uint8)), "RGB"))
        pixels = np.array(to_rgb(image if turn is None else image.transpose(turn)))
    return tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1))


def is_nearly_black(path: Path) -> bool:
    """Whether all values of an image use only the lowest bits of their type: below 16 of 256, or 4096 of 65536.

    This is the case for labels 0 and 1 in an 8-bit file, or 8-bit or 12-bit values in a 16-bit file. False for an image
    in which all values are 0.

    Raises:
        DataError: If the file is missing, truncated or not an image.
    """
    with _open(path) as image, _decoding(path):
        deep = image.mode.startswith("I")
        highest = np.array(image if deep else to_rgb(image)).max()
        return bool(0 < highest < (4096 if deep else 16))


def is_ambiguous(path: Path, size: tuple[int, int]) -> bool:
    """Whether an image has the annotated size both as stored and as displayed, with a different orientation.

    Such an image is read as stored, but may have been annotated as displayed.

    Args:
        path: the file.
        size: see `read_image`.

    Raises:
        DataError: If the file is missing or not an image, or its size differs from the annotated one.
    """
    with _open(path) as image:
        square = image.height == image.width
        if _is_annotated_turned(path, image, size):
            return False
        orientation = _orientation(image)
        return orientation in _TURNS and (square or orientation not in _SWAP_SIDES)


@contextmanager
def _decoding(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: the image cannot be decoded, it may be truncated: {error}") from error


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except FileNotFoundError as error:
        raise DataError(f"{path}: the image does not exist") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # Pillow raises SyntaxError for a malformed header.
        raise DataError(f"{path}: not a readable image: {error}") from error


def _orientation(image: Image.Image) -> int:
    """EXIF orientation; 1 (as stored) if it is missing or damaged, or if Pillow applies it itself (TIFF)."""
    if image.format == "TIFF":
        return 1
    with suppress(Exception):  # Pillow may raise anything for damaged EXIF data
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    return 1


def _is_annotated_turned(path: Path, image: Image.Image, size: tuple[int, int]) -> bool:
    """Whether an image has the annotated size only as displayed; raises DataError if it has another size both ways."""
    stored = image.height, image.width
    turned = stored != size and _orientation(image) in _SWAP_SIDES
    if size != (stored[::-1] if turned else stored):
        raise DataError(f"{path}: is {_text(stored)} (height x width), but its annotations say {_text(size)}")
    return turned


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts an image of any color model to RGB; see `read_image`.

    Raises:
        ValueError: If its samples are floating-point numbers.
    """
    if image.mode.startswith("I"):  # 16-bit gray ("I" in some formats), which Pillow would clip instead of scale
        image = Image.fromarray((np.clip(np.array(image), 0, 65535) >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("its samples are floating-point numbers of unknown range")
    elif "transparency" in image.info:
        image = image.convert("RGBA")  # without this step, Pillow warns
    return image if image.mode == "RGB" else image.convert("RGB")


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
