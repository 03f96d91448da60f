"""Pictures of predictions beside the ground truth, as PNG files."""

from __future__ import annotations

import colorsys
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from detpool.evaluation.results import Row
from detpool.files import write_bytes_atomically
from detpool.masks import decode_segmentation

Color = tuple[int, int, int]
Rectangle = tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels of the panel

_PAPER: Color = (255, 255, 255)
_INK: Color = (40, 40, 40)
_MARGIN = 10
_MASK_OPACITY = 0.4
# red, orange, yellow, lime, green, cyan, azure, blue, violet, magenta, pink, red
_HUES = (0.0, 0.08, 0.14, 0.22, 0.36, 0.50, 0.57, 0.64, 0.74, 0.84, 0.93, 1.0)
_LINE = 2
_CROWDED = 12  # more objects than this in a panel: labels name no class, the legend below does


class PictureDataset(Protocol):
    """What the pictures read of a data set, whose samples must not be transformed at random."""

    @property
    def class_names(self) -> Sequence[str]: ...

    @property
    def category_ids(self) -> Sequence[int]: ...

    @property
    def image_ids(self) -> Sequence[int]: ...

    def ground_truth(self) -> dict[str, Any]: ...

    def __getitem__(self, index: int) -> tuple[Tensor, Mapping[str, Any]]: ...


class _Object(NamedTuple):
    box: Rectangle
    color: Color
    text: str
    dashed: bool
    mask: Image.Image | None  # mode L, 0 or 255, of the panel's size


def write_pictures(
    folder: str | Path,
    dataset: PictureDataset,
    rows: Iterable[Row],
    *,
    image_ids: Sequence[int] | None = None,
    limit: int = 12,
    score_threshold: float = 0.5,
    masks: bool = False,
) -> list[Path]:
    """One picture an image (`<image id>.png`), and all of them on `contact_sheet.png`.

    Args:
        folder: where to; made if missing.
        dataset: images and ground truth. Its samples may be resized, but neither flipped nor cropped.
        rows: detections in COCO's result format (`DetectionEvaluator.results`), of these or more images.
        image_ids: which images; default `limit` of them, spread evenly over the data set.
        limit: how many images at most where `image_ids` is not given.
        score_threshold: detections of a lower score are not drawn.
        masks: draw masks as well as boxes, where there are some.

    Returns:
        The files written, the contact sheet last; empty for an empty data set.

    Raises:
        ValueError: an image id is not in the data set.
    """
    if image_ids is None:
        count = min(limit, len(dataset.image_ids))
        image_ids = [dataset.image_ids[i * len(dataset.image_ids) // count] for i in range(count)]
    if not image_ids:
        return []
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths, cells = [], []
    compared = compare(dataset, rows, image_ids, score_threshold=score_threshold, masks=masks, panels=(640, 400))
    for image_id, (picture, cell) in zip(image_ids, compared, strict=True):
        path = folder / f"{image_id}.png"
        _save(picture, path)
        paths.append(path)
        cells.append(cell)
    path = folder / "contact_sheet.png"
    _save(contact_sheet(cells), path)
    return [*paths, path]


def _save(picture: Image.Image, path: Path) -> None:
    content = io.BytesIO()
    picture.save(content, "PNG")
    write_bytes_atomically(path, content.getbuffer())


def compare(
    dataset: PictureDataset,
    rows: Iterable[Row],
    image_ids: Sequence[int],
    *,
    score_threshold: float = 0.5,
    masks: bool = False,
    panels: Sequence[int] = (640,),
) -> Iterator[list[Image.Image]]:
    """The pictures of :func:`write_pictures`, image after image: one for each size of `panels`.

    Args:
        dataset, rows, score_threshold, masks: as for :func:`write_pictures`.
        image_ids: which images.
        panels: longer sides of the image in the pictures, pixels.

    Raises:
        ValueError: an image id is not in the data set.
    """
    index_of = {image_id: index for index, image_id in enumerate(dataset.image_ids)}
    if unknown := [image_id for image_id in image_ids if image_id not in index_of]:
        raise ValueError(f"image_ids: not in the data set: {unknown}")
    classes = dict(zip(dataset.category_ids, dataset.class_names, strict=True))
    truth: dict[int, list[Mapping[str, Any]]] = {image_id: [] for image_id in image_ids}
    for annotation in dataset.ground_truth()["annotations"]:
        if annotation["image_id"] in truth:
            truth[annotation["image_id"]].append(annotation)
    found: dict[int, list[Row]] = {image_id: [] for image_id in image_ids}
    for row in rows:
        if row["image_id"] in found and row["score"] >= score_threshold:
            found[row["image_id"]].append(row)

    for image_id in image_ids:
        image, target = dataset[index_of[image_id]]
        height, width = (int(side) for side in target["orig_size"])
        yield [
            draw_comparison(
                image,
                truth[image_id],
                found[image_id],
                orig_size=(height, width),
                classes=classes,
                panel=panel,
                masks=masks,
                captions=(f"ground truth · image {image_id}", f"predictions, score ≥ {score_threshold:g}"),
            )
            for panel in panels
        ]


def draw_comparison(
    image: Tensor,
    ground_truth: Sequence[Mapping[str, Any]],
    predictions: Sequence[Row],
    *,
    orig_size: tuple[int, int],
    classes: Mapping[int, str],
    panel: int = 640,
    masks: bool = False,
    captions: tuple[str, str] = ("ground truth", "predictions"),
) -> Image.Image:
    """The ground truth on the left, the predictions on the right, a legend of the classes below.

    Crowds and ignored objects are dashed. Each class has the same colour in every picture of a data set.

    Args:
        image: uint8 (3, H, W), RGB.
        ground_truth: the image's COCO annotations, boxes xywh in pixels of the image file.
        predictions: the image's detections in COCO's result format, in the same pixels.
        orig_size: (height, width) of the image file; `image` is the whole of it, at any size.
        classes: category id to name.
        panel: longer side of the image in the picture, pixels; small images are enlarged.
        masks: draw segmentations too.
        captions: of the two halves.
    """
    halves = list(zip(captions, (ground_truth, predictions), strict=True))
    return draw_panels(image, halves, orig_size=orig_size, classes=classes, panel=panel, masks=masks)


def draw_panels(
    image: Tensor,
    panels: Sequence[tuple[str, Sequence[Mapping[str, Any]]]],
    *,
    orig_size: tuple[int, int],
    classes: Mapping[int, str],
    panel: int = 640,
    masks: bool = False,
) -> Image.Image:
    """The same image beside itself with different objects, a legend of the classes below.

    Args:
        image: uint8 (3, H, W), RGB.
        panels: from the left, caption and objects, which are COCO annotations or detections.
        orig_size, classes, panel, masks: as for :func:`draw_comparison`.
    """
    height, width = int(image.shape[-2]), int(image.shape[-1])
    scale = panel / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    photo = Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).resize(size, Image.Resampling.BICUBIC)
    colors = {category_id: class_color(number) for number, category_id in enumerate(sorted(classes))}
    zoom = (size[0] / orig_size[1], size[1] / orig_size[0])

    def objects(annotations: Sequence[Mapping[str, Any]]) -> list[_Object]:
        named = len(annotations) <= _CROWDED
        return [_object(a, zoom, size, orig_size, classes, colors, named, masks) for a in annotations]

    font = _font(max(11, panel // 46))
    line = _line_height(font)
    inner = len(panels) * (size[0] + _MARGIN) - _MARGIN
    present = sorted({row["category_id"] for _, shown in panels for row in shown})
    legend = _legend([(classes[i], colors[i]) for i in present], inner, font)
    canvas = Image.new("RGB", (inner + 2 * _MARGIN, size[1] + line + legend.height + 3 * _MARGIN), _PAPER)
    pen = ImageDraw.Draw(canvas)
    for number, (caption, shown) in enumerate(panels):
        left = _MARGIN + number * (size[0] + _MARGIN)
        pen.text((left, _MARGIN // 2), caption, fill=_INK, font=font)
        canvas.paste(_draw(photo, objects(shown), font), (left, line + _MARGIN))
    canvas.paste(legend, (_MARGIN, line + size[1] + 2 * _MARGIN))
    return canvas


def contact_sheet(pictures: Sequence[Image.Image], columns: int = 2) -> Image.Image:
    """Pictures in columns, each below the shortest column so far, so that different heights leave few gaps."""
    columns = min(columns, len(pictures))
    width = max(picture.width for picture in pictures)
    heights, places = [0] * columns, []
    for picture in pictures:
        column = heights.index(min(heights))
        places.append((column * width + (width - picture.width) // 2, heights[column]))
        heights[column] += picture.height
    sheet = Image.new("RGB", (width * columns, max(heights)), _PAPER)
    for picture, place in zip(pictures, places, strict=True):
        sheet.paste(picture, place)
    return sheet


def class_color(number: int) -> Color:
    """A bright colour for class `number` (from 0), which depends on nothing else; the first dozen differ clearly."""
    # Steps of the golden ratio keep any few numbers far apart on a circle, on which the hues that people tell apart
    # (there are few greens among them) are spread evenly.
    place = (0.4545 + number * 0.61803398875) % 1
    hue = float(np.interp(place * (len(_HUES) - 1), range(len(_HUES)), _HUES))
    lightness = (0.53, 0.66, 0.42)[(number // 7) % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.9)
    return round(255 * red), round(255 * green), round(255 * blue)


def _object(
    annotation: Mapping[str, Any],
    zoom: tuple[float, float],
    size: tuple[int, int],
    orig_size: tuple[int, int],
    classes: Mapping[int, str],
    colors: Mapping[int, Color],
    named: bool,
    masks: bool,
) -> _Object:
    x, y, w, h = annotation["bbox"]
    box = (x * zoom[0], y * zoom[1], (x + w) * zoom[0], (y + h) * zoom[1])
    words = [classes[annotation["category_id"]]] if named else []
    if "score" in annotation:
        words.append(f"{annotation['score']:.2f}")
    crowd, ignored = bool(annotation.get("iscrowd")), bool(annotation.get("ignore"))
    if crowd or ignored:
        words.append("(crowd)" if crowd else "(ignored)")
    mask = None
    if masks and annotation.get("segmentation"):
        pixels = decode_segmentation(annotation["segmentation"], orig_size) * np.uint8(255)
        mask = Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR).point(lambda v: 255 * (v > 127))
    return _Object(box, colors[annotation["category_id"]], " ".join(words), crowd or ignored, mask)


def _draw(photo: Image.Image, objects: Sequence[_Object], font: ImageFont.FreeTypeFont) -> Image.Image:
    panel = photo.copy()
    # Large ones first: a small object on a large one stays visible.
    objects = sorted(objects, key=lambda item: -_area(item.box))
    for item in objects:
        if item.mask is not None:
            panel.paste(item.color, mask=item.mask.point(lambda value: round(value * _MASK_OPACITY)))
            panel.paste(item.color, mask=_outline(item.mask))
    pen = ImageDraw.Draw(panel, "RGBA")
    for item in objects:
        _draw_box(pen, item, panel.size)
    taken: list[Rectangle] = []
    for item in objects:
        if item.text:
            taken.append(_draw_label(pen, item, taken, panel.size, font))
    return panel


def _outline(mask: Image.Image) -> Image.Image:
    """The pixels of a mask that touch the outside, which begins at the edge of the picture."""
    inside = np.asarray(mask) > 0
    padded = np.pad(inside, 1)
    interior = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return Image.fromarray((inside & ~interior).astype(np.uint8) * np.uint8(255))


def _draw_box(pen: ImageDraw.ImageDraw, item: _Object, size: tuple[int, int]) -> None:
    x1, y1 = max(0, round(item.box[0])), max(0, round(item.box[1]))
    x2, y2 = min(size[0], round(item.box[2])) - 1, min(size[1], round(item.box[3])) - 1
    if x2 < x1 or y2 < y1:
        return
    if not item.dashed:
        pen.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=(0, 0, 0, 110))
        pen.rectangle((x1, y1, x2, y2), outline=item.color, width=_LINE)
        return
    for x in range(x1, x2 + 1, 10):
        for y in (y1, y2 - _LINE + 1):
            pen.rectangle((x, y, min(x + 5, x2), y + _LINE - 1), fill=item.color)
    for y in range(y1, y2 + 1, 10):
        for x in (x1, x2 - _LINE + 1):
            pen.rectangle((x, y, x + _LINE - 1, min(y + 5, y2)), fill=item.color)


def _draw_label(
    pen: ImageDraw.ImageDraw,
    item: _Object,
    taken: Sequence[Rectangle],
    size: tuple[int, int],
    font: ImageFont.FreeTypeFont,
) -> Rectangle:
    """Draw the label at the corner of the box where it hides least, and return its place."""
    width, height = math.ceil(font.getlength(item.text)) + 6, _line_height(font)
    x1, y1, x2, y2 = item.box
    corners = (
        (x1, y1 - height),
        (x2 - width, y1 - height),
        (x1, y2),
        (x2 - width, y2),
        (x1, y1),
        (x2 - width, y2 - height),
    )
    places = []
    for left, top in corners:
        left, top = min(max(left, 0), size[0] - width), min(max(top, 0), size[1] - height)
        places.append((left, top, left + width, top + height))
    # Least over other labels, then least over the object itself, which it could hide where that is tiny.
    place = min(places, key=lambda place: (sum(_overlap(place, other) for other in taken), _overlap(place, item.box)))
    red, green, blue = item.color
    dark = 0.299 * red + 0.587 * green + 0.114 * blue < 140
    pen.rounded_rectangle(place, radius=3, fill=(*item.color, 225))
    pen.text((place[0] + 3, place[1] + 1), item.text, fill=(255, 255, 255) if dark else (0, 0, 0), font=font)
    return place


def _legend(classes: Sequence[tuple[str, Color]], width: int, font: ImageFont.FreeTypeFont) -> Image.Image:
    """Class names beside squares of their colours, in as many lines as they need."""
    line = _line_height(font)
    square, gap = line - 6, 18
    places, x, y = [], 0, 0
    for name, _ in classes:
        needed = square + 6 + math.ceil(font.getlength(name))
        if x and x + needed > width:
            x, y = 0, y + line
        places.append((x, y))
        x += needed + gap
    legend = Image.new("RGB", (width, y + line if classes else 1), _PAPER)
    pen = ImageDraw.Draw(legend)
    for (name, color), (left, top) in zip(classes, places, strict=True):
        pen.rounded_rectangle((left, top + 3, left + square, top + 3 + square), radius=3, fill=color)
        pen.text((left + square + 6, top + 1), name, fill=_INK, font=font)
    return legend


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    # matplotlib brings a font that has more than Latin letters, on every system the same.
    return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def _line_height(font: ImageFont.FreeTypeFont) -> int:
    return sum(font.getmetrics()) + 2


def _area(box: Rectangle) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _overlap(a: Rectangle, b: Rectangle) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
