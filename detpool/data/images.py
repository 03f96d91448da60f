"""Image files of any kind to uint8 RGB."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
import torchvision.io
from PIL import ExifTags, Image
from torchvision import tv_tensors

from detpool.errors import DataError

_TURNS = {  # by EXIF orientation, how a picture is displayed; `ImageOps.exif_transpose` ends at a damaged note
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAP_SIDES = (5, 6, 7, 8)

# The same bits as Pillow's a sixth sooner; since 0.29 torchvision announces that a later release will be without it.
decode_jpeg: Callable[..., torch.Tensor] | None = getattr(torchvision.io, "decode_jpeg", None)


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) that the header of an image file states, its EXIF orientation aside.

    Raises:
        DataError: the file is missing or is no image.
    """
    with _open(path) as image:
        return image.height, image.width


def displayed_size(path: Path) -> tuple[int, int]:
    """(height, width) of an image file as it is displayed, turned as its EXIF orientation says.

    Raises:
        DataError: the file is missing or is no image.
    """
    with _open(path) as image:
        size = image.height, image.width
        return size[::-1] if _orientation(image) in _SWAP_SIDES else size


def read_image(path: Path, size: tuple[int, int] | None = None) -> tv_tensors.Image:
    """Read an image file, of which annotations may say how large it is.

    Grey, palette, CMYK and other colour models become RGB; 16-bit samples keep their upper 8 bits; transparency is
    ignored; of an animation the first frame counts. Cameras store a turned picture with an EXIF note on how to turn
    it back. The published data sets annotate the picture as it is stored, other tools as it is displayed: one with
    annotations is turned only where that, and not the stored picture, has the annotated size.

    Args:
        path: the file.
        size: (height, width) in the annotations, in pixels; None: there are none, and the picture is read as it is
            displayed.

    Returns:
        uint8, (3, height, width), in memory (height, width, 3), which is how files have it and resizing is fastest.

    Raises:
        DataError: the file is missing, truncated or no image, or its size differs from the annotated one.
    """
    with _open(path) as image, _decoding(path):
        turned = size is None or _is_annotated_turned(path, image, size)
        turn = _TURNS.get(_orientation(image)) if turned else None
        if decode_jpeg and turn is None and (image.format, image.mode) == ("JPEG", "RGB"):
            with suppress(RuntimeError):  # Pillow says what is wrong
                return tv_tensors.Image(decode_jpeg(torch.from_numpy(np.fromfile(path, np.uint8)), "RGB"))
        pixels = np.array(to_rgb(image if turn is None else image.transpose(turn)))
    return tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1))


def is_nearly_black(path: Path) -> bool:
    """Whether the values of an image lie in the lowest bits of their type: below 16 of 256, or 4096 of 65536.

    So do labels 0 and 1 in an 8-bit file, and 8-bit or 12-bit values in a 16-bit one. An image of nothing but 0 does
    not count.

    Raises:
        DataError: the file is missing, truncated or no image.
    """
    with _open(path) as image, _decoding(path):
        deep = image.mode.startswith("I")
        highest = np.array(image if deep else to_rgb(image)).max()
        return bool(0 < highest < (4096 if deep else 16))


def is_ambiguous(path: Path, size: tuple[int, int]) -> bool:
    """Whether an EXIF note turns or mirrors an image into another one that has the annotated size too.

    It may have been annotated as it is stored, as which it is read, or as it is displayed.

    Args:
        path: the file.
        size: see `read_image`.

    Raises:
        DataError: the file is missing or no image, or its size differs from the annotated one.
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
        # SyntaxError: Pillow's word for a malformed header.
        raise DataError(f"{path}: not a readable image: {error}") from error


def _orientation(image: Image.Image) -> int:
    """What the EXIF note says, 1 (as stored) if there is none or it is damaged, or Pillow follows it by itself."""
    if image.format == "TIFF":
        return 1
    with suppress(Exception):  # of many kinds: whatever the bytes make of Pillow's reader
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    return 1


def _is_annotated_turned(path: Path, image: Image.Image, size: tuple[int, int]) -> bool:
    """Whether an image has the annotated size only as it is displayed; DataError if in neither way."""
    stored = image.height, image.width
    turned = stored != size and _orientation(image) in _SWAP_SIDES
    if size != (stored[::-1] if turned else stored):
        raise DataError(f"{path}: is {_text(stored)} (height x width), but its annotations say {_text(size)}")
    return turned


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any color model as RGB; see `read_image`.

    Raises:
        ValueError: its samples are floating-point numbers.
    """
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip, not scale; "I" is its name in some formats
        image = Image.fromarray((np.clip(np.array(image), 0, 65535) >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("its samples are floating-point numbers of unknown range")
    elif "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns if the step is left out
    return image if image.mode == "RGB" else image.convert("RGB")


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
