import struct
import warnings

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from detpool.data import images
from detpool.data.images import displayed_size, image_size, is_ambiguous, is_nearly_black, read_image
from detpool.errors import DataError


def save(folder, image, name="image.png", **options):
    path = folder / name
    image.save(path, **options)
    return path


def assert_shows(image, expected, tolerance=0):
    assert image.dtype == torch.uint8
    assert image.permute(1, 2, 0).is_contiguous()
    expected = torch.from_numpy(np.array(expected)).permute(2, 0, 1).int()
    assert image.shape == expected.shape
    assert (image.int() - expected).abs().max() <= tolerance


@pytest.mark.parametrize("name", ["image.png", "image.bmp", "image.tif", "image.webp"])
def test_rgb_formats(tmp_path, picture, name):
    path = save(tmp_path, Image.fromarray(picture), name, **({"lossless": True} if name.endswith("webp") else {}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_shows(read_image(path, (40, 60)), picture)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_colour_models(tmp_path, picture, mode):
    image = Image.fromarray(picture)
    name = {"CMYK": "image.tif", "YCbCr": "image.tif"}.get(mode, "image.png")
    path = save(tmp_path, image.convert(mode), name)
    expected = image.convert(mode).convert("RGB")
    assert_shows(read_image(path, (40, 60)), expected)
    if mode not in ("1", "L", "LA"):  # the colours themselves are kept, as far as the model can
        assert_shows(read_image(path, (40, 60)), picture, tolerance=2 if mode != "P" else 60)


@pytest.mark.parametrize("decoder", [images.decode_jpeg, None])
def test_jpeg_has_the_pixels_of_pillow(tmp_path, monkeypatch, decoder):
    monkeypatch.setattr(images, "decode_jpeg", decoder)
    noise = np.random.default_rng(0).integers(0, 255, (5, 8, 3), np.uint8)
    image = Image.fromarray(noise).resize((61, 39), Image.Resampling.BICUBIC)
    exif = image.getexif()
    exif[0x0112] = 6
    for options in ({}, {"subsampling": 0}, {"progressive": True}, {"keep_rgb": True}, {"quality": 20}, {"exif": exif}):
        path = save(tmp_path, image, "image.jpg", **options)
        with Image.open(path) as opened:
            assert_shows(read_image(path, (39, 61)), opened)
            if "exif" in options:
                assert_shows(read_image(path, (61, 39)), opened.rotate(-90, expand=True))


def test_grey_and_cmyk_jpeg(tmp_path, picture):
    grey = Image.fromarray(picture).convert("L")
    path = save(tmp_path, grey, "grey.jpg", quality=95)
    assert_shows(read_image(path, (40, 60)), grey.convert("RGB"), tolerance=12)
    path = save(tmp_path, Image.fromarray(picture).convert("CMYK"), "cmyk.jpg", quality=100, subsampling=0)
    assert_shows(read_image(path, (40, 60)), picture, tolerance=12)


def test_transparency_is_ignored_without_a_warning(tmp_path, picture):
    alpha = np.full((40, 60, 1), 0, np.uint8)
    path = save(tmp_path, Image.fromarray(np.concatenate([picture, alpha], 2)))
    assert_shows(read_image(path, (40, 60)), picture)
    palette = Image.fromarray(picture).quantize(8)
    path = save(tmp_path, palette, transparency=bytes([0, 128, 255]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_shows(read_image(path, (40, 60)), palette.convert("RGB"))


@pytest.mark.parametrize("name", ["deep.png", "deep.tif"])
def test_16_bit_grey_keeps_the_upper_bits(tmp_path, name):
    deep = np.arange(40 * 60, dtype=np.uint16).reshape(40, 60) * 27
    path = save(tmp_path, Image.fromarray(deep), name)
    assert_shows(read_image(path, (40, 60)), np.repeat((deep // 256).astype(np.uint8)[..., None], 3, 2))


def test_first_frame_of_an_animation(tmp_path, picture):
    frames = [Image.fromarray(picture), Image.new("RGB", (60, 40))]
    path = save(tmp_path, frames[0], "image.tif", save_all=True, append_images=frames[1:])
    assert_shows(read_image(path, (40, 60)), picture)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_only_what_the_annotations_turned(tmp_path, picture, orientation):
    image = Image.fromarray(picture)
    exif = image.getexif()
    exif[0x0112] = orientation
    path = save(tmp_path, image, exif=exif)
    # Annotated as stored: not turned, whatever the note says.
    assert image_size(path) == (40, 60)
    assert_shows(read_image(path, (40, 60)), picture)
    # Annotated as displayed. Expected: the turns of the EXIF standard, by hand.
    turned = {
        5: picture.transpose(1, 0, 2),
        6: np.rot90(picture, -1),
        7: picture[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(picture, 1),
    }
    if orientation in turned:
        assert_shows(read_image(path, (60, 40)), turned[orientation])
    else:
        with pytest.raises(DataError, match=r"is 40 x 60 .* say 60 x 40"):
            read_image(path, (60, 40))
    assert is_ambiguous(path, (40, 60)) == (orientation in (2, 3, 4))
    path = save(tmp_path, image.crop((0, 0, 40, 40)), exif=exif)
    assert is_ambiguous(path, (40, 40)) == (orientation != 1)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("side", [40, 60])
def test_without_annotations_an_image_is_read_as_it_is_displayed(tmp_path, suffix, side):
    noise = np.random.default_rng(0).integers(0, 255, (40, side, 3), np.uint8)
    image = Image.fromarray(noise)
    for orientation in range(1, 9):
        exif = image.getexif()
        exif[0x0112] = orientation
        path = save(tmp_path, image, f"image.{suffix}", exif=exif)
        with Image.open(path) as opened:
            expected = ImageOps.exif_transpose(opened)
            assert_shows(read_image(path), expected)
            assert displayed_size(path) == (expected.height, expected.width)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_a_damaged_note_says_nothing(tmp_path, picture):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    for length in range(8, len(exif.tobytes())):
        path = save(tmp_path, Image.fromarray(picture), exif=exif.tobytes()[:length])
        if displayed_size(path) == (40, 60):
            assert_shows(read_image(path), picture)
        else:
            assert_shows(read_image(path), np.rot90(picture, -1))
        assert_shows(read_image(path, (40, 60)), picture)


def test_files_that_are_no_images_of_the_annotated_size(tmp_path, picture):
    def refused(path, message, read=read_image, size=((40, 60),)):
        with pytest.raises(DataError, match=message):
            read(path, *size)

    refused(tmp_path / "absent.jpg", "absent.jpg: the image does not exist")
    refused(tmp_path, "not a readable image")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8))
    for name in ("image.jpg", "image.png"):
        path = save(tmp_path, noise, name)
        refused(path, f"^{path}: is 40 x 60 .height x width., but its annotations say 40 x 61$", size=((40, 61),))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        refused(path, f"{path}: the image cannot be decoded, it may be truncated")
        path.write_bytes(b"")
        refused(path, f"{path}: not a readable image")
        path.write_bytes(b"<html>404</html>")
        refused(path, f"{path}: not a readable image", image_size, ())
    refused(save(tmp_path, Image.fromarray(np.ones((40, 60), np.float32)), "float.tif"), "floating-point")


@pytest.mark.parametrize("name", ["low.png", "low.tif"])
def test_values_in_the_lowest_bits(tmp_path, name):
    for highest, dtype, low in (
        (1, np.uint8, True),  # labels
        (15, np.uint8, True),
        (16, np.uint8, False),
        (0, np.uint8, False),  # black
        (255, np.uint16, True),  # 8 bits in 16
        (4095, np.uint16, True),  # 12 bits in 16
        (4096, np.uint16, False),
        (0, np.uint16, False),
    ):
        values = (np.arange(40 * 60).reshape(40, 60) % (highest + 1)).astype(dtype)
        values[-1, -1] = highest
        path = save(tmp_path, Image.fromarray(values), name)
        assert is_nearly_black(path) == low
        assert (read_image(path, (40, 60)).max() < 16) == (low or highest == 0)


def test_16_bit_tiff_of_either_byte_order(tmp_path):
    values = np.arange(40 * 60).reshape(40, 60) * 27
    for order, mark in (("<", b"II"), (">", b"MM")):  # the latter is ImageJ's
        pixels = values.astype(f"{order}u2").tobytes()
        entries = {256: 60, 257: 40, 258: 16, 259: 1, 262: 1, 273: 8, 277: 1, 278: 40, 279: len(pixels)}
        fields = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in entries.items())
        path = tmp_path / "deep.tif"
        head = mark + struct.pack(f"{order}HI", 42, 8 + len(pixels))
        path.write_bytes(head + pixels + struct.pack(f"{order}H", len(entries)) + fields + bytes(4))
        assert_shows(read_image(path, (40, 60)), np.repeat((values // 256).astype(np.uint8)[..., None], 3, 2))
        assert not is_nearly_black(path)


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGBA", "CMYK"])
def test_palettes_inks_and_transparency_are_no_values(tmp_path, mode):
    bright = Image.new("RGB", (60, 40), (250, 250, 250))
    bright.putpixel((3, 3), (0, 0, 0))
    name = "image.tif" if mode == "CMYK" else "image.png"
    assert not is_nearly_black(save(tmp_path, bright.convert(mode), name))
    dark = Image.new("RGBA", (60, 40), (1, 0, 1, 255))  # opaque
    assert is_nearly_black(save(tmp_path, dark, "dark.png"))
