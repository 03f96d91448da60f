"""Pictures of predictions beside the ground truth, as PNG files."""

from __future__ import annotations

import colorsys
import io
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import max_pool2d, pad
from torchvision.ops import box_convert, box_iou, masks_to_boxes
from torchvision.transforms.v2.functional import pil_to_tensor, resize, to_pil_image
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks, make_grid

from detpool.data.dataset import DetectionDataset
from detpool.evaluation.detections import Detections, Row
from detpool.evaluation.errors import judge_image
from detpool.files import write_bytes_atomically
from detpool.masks import decode_segmentation

# matplotlib ships a font with more than Latin letters, which is the same on every system.
_FONT = str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
_MARGIN = 10
_CORRECT, _WRONG = (0, 110, 45), (190, 0, 0)  # labels
_CROWDED = 12  # with more objects than this in a panel, only the legend names classes, not the labels


def write_pictures(
    folder: str | Path,
    dataset: DetectionDataset,
    rows: Detections | Iterable[Row],
    *,
    limit: int = 12,
    **options: Any,
) -> list[Path]:
    """Writes `<image id>.png` for images spread evenly over the data set, and all of them on `contact_sheet.png`.

    Args:
        folder: the folder to write to; created if missing.
        dataset, rows: as for `compare`.
        limit: maximum number of images.
        options: `score_threshold` and `masks` of `compare`.

    Returns:
        The files written, the contact sheet last; empty for an empty data set.
    """
    found, count = Detections.of(rows), min(limit, len(dataset.image_ids))
    chosen = [dataset.image_ids[i * len(dataset.image_ids) // count] for i in range(count)]
    drawn = zip(chosen, compare(dataset, found, chosen, **options), strict=True)
    pictures = {Path(folder) / f"{image_id}.png": picture for image_id, picture in drawn}
    if pictures:
        sheet = contact_sheet(list(compare(dataset, found, chosen, panel=400, **options)))
        pictures[Path(folder) / "contact_sheet.png"] = sheet
    for path, picture in pictures.items():
        content = io.BytesIO()
        picture.save(content, "PNG")
        write_bytes_atomically(path, content.getbuffer())
    return list(pictures)


def compare(
    dataset: DetectionDataset,
    rows: Detections | Iterable[Row],
    image_ids: Sequence[int],
    *,
    score_threshold: float = 0.5,
    masks: bool = False,
    panel: int = 640,
) -> Iterator[Image.Image]:
    """Draws ground truth on the left and predictions on the right, one picture per image.

    Labels of correct predictions are green. Labels of wrong ones are red and name the kind of error
    (`detpool.evaluation.errors`); objects that no prediction accounts for are labeled as missed. If there is only one
    class, each object has its own color, which the prediction that finds it shares.

    Args:
        dataset: images and ground truth. Its samples may be resized, but neither flipped nor cropped.
        rows: detections, as `Detections` (`DetectionEvaluator.results`) or in COCO's result format; those of other
            images are skipped.
        image_ids: the images of the data set to draw.
        score_threshold: detections with a lower score are not drawn.
        masks, panel: as for `draw_panels`.
    """
    classes = dict(zip(dataset.category_ids, dataset.class_names, strict=True))
    truth, found = dataset.ground_truth(), Detections.of(rows)
    files = {each["id"]: f" · {Path(each['file_name']).name}" for each in truth["images"] if "file_name" in each}
    found = found.take(found.scores >= score_threshold)
    for image_id in image_ids:
        image, target = dataset[dataset.image_ids.index(image_id)]
        objects = [each for each in truth["annotations"] if each["image_id"] == image_id]
        predicted = list(found.take(found.image_ids == image_id))
        objects, predicted, counts = _with_verdicts(objects, predicted, instances=len(classes) == 1)
        panels = [
            (f"ground truth · image {image_id}{files.get(image_id, '')}", objects),
            (f"predictions, score ≥ {score_threshold:g} · {counts}", predicted),
        ]
        yield draw_panels(image, panels, orig_size=target["orig_size"], classes=classes, panel=panel, masks=masks)


def _with_verdicts(
    objects: Sequence[Row], predicted: Sequence[Row], instances: bool
) -> tuple[list[Row], list[Row], str]:
    """Returns both with the keys that `draw_panels` adds to COCO's, and a text that counts the verdicts."""
    judged = judge_image(objects, predicted)
    marked = [
        each | ({"verdict": "missed"} if missed else {}) for each, missed in zip(objects, judged.missed, strict=True)
    ]
    rows = [each | ({"verdict": kind} if kind else {}) for each, kind in zip(predicted, judged.kinds, strict=True)]
    if instances:
        marked = [each | {"color": class_color(i)} for i, each in enumerate(marked)]
        colors = itertools.count(len(marked))
        owners = [next(colors) if owner is None else owner for owner in judged.objects]
        rows = [each | {"color": class_color(owner)} for each, owner in zip(rows, owners, strict=True)]
    correct = judged.kinds.count("correct")
    wrong = len(rows) - correct - judged.kinds.count(None)
    return marked, rows, f"{correct} correct, {wrong} wrong, {sum(judged.missed)} missed"


def draw_panels(
    image: Tensor,
    panels: Sequence[tuple[str, Sequence[Mapping[str, Any]]]],
    *,
    orig_size: tuple[int, int],
    classes: Mapping[int, str],
    panel: int = 640,
    masks: bool = False,
) -> Image.Image:
    """Draws an image once per panel, with the panel's caption and objects, and a legend of the classes below.

    Boxes of crowds and ignored objects are dashed. A class has the same color in every picture of a data set.

    Args:
        image: uint8 (3, H, W), RGB.
        panels: captions, and objects as COCO annotations or results, with boxes xywh in pixels of the image file. An
            object may have a `color` (red, green, blue) that replaces the color of its class and is not in the legend,
            and a `verdict`, "correct" or what is wrong with it.
        orig_size: (height, width) of the image file; `image` shows the whole file, at any size.
        classes: category id to name.
        panel: longer side of the image in the picture, pixels; small images are enlarged.
        masks: draw the masks of objects that have one, as well as their boxes.
    """
    sides = [max(1, round(side * panel / max(image.shape[-2:]))) for side in image.shape[-2:]]
    photo = resize(image.as_subclass(Tensor), sides)
    font = ImageFont.truetype(_FONT, max(11, panel // 46))
    line = round(1.5 * font.size)
    styles = {category: (name, class_color(i)) for i, (category, name) in enumerate(classes.items())}
    drawn = [_draw_objects(photo, objects, styles, orig_size, font, masks) for _, objects in panels]
    sheet = torch.cat([pad(each, (_MARGIN, 0, line + _MARGIN, _MARGIN), value=255) for each in drawn], dim=2)
    legend, x, y = {}, _MARGIN, sheet.shape[1]
    of_class = {each["category_id"] for _, objects in panels for each in objects if "color" not in each}
    for name, color in (styles[i] for i in sorted(of_class)):
        if x > _MARGIN and x + font.getlength(f"■ {name}") > sheet.shape[2]:
            x, y = _MARGIN, y + line
        legend[x, y] = (f"■ {name}", color)
        x += round(font.getlength(f"■ {name}   "))
    picture = to_pil_image(pad(sheet, (0, _MARGIN, 0, y + line + _MARGIN - sheet.shape[1]), value=255))
    pen = ImageDraw.Draw(picture)
    for number, (caption, _) in enumerate(panels):
        pen.text((_MARGIN + number * (sides[1] + _MARGIN), _MARGIN // 2), caption, fill="black", font=font)
    for place, (text, color) in legend.items():
        pen.text(place, text, fill="black", font=font)
        pen.text(place, "■", fill=color, font=font)
    return picture


def contact_sheet(pictures: Sequence[Image.Image], columns: int = 2) -> Image.Image:
    """Arranges pictures in rows and columns, each in a cell of the size of the largest."""
    size = [max(picture.size[i] for picture in pictures) for i in (0, 1)]
    cells = [pad(pil_to_tensor(p), (0, size[0] - p.width, 0, size[1] - p.height), value=255) for p in pictures]
    return to_pil_image(make_grid(cells, nrow=columns, padding=0))


def class_color(number: int) -> tuple[int, int, int]:
    """Returns a bright color (RGB) for class `number`, counted from 0; the first dozen differ clearly."""
    # Steps of the golden ratio keep consecutive hues far apart.
    red, green, blue = colorsys.hls_to_rgb((0.6 + number * 0.618034) % 1, (0.5, 0.66, 0.36)[number // 5 % 3], 0.9)
    return round(255 * red), round(255 * green), round(255 * blue)


def _fill(verdict: str | None, color: tuple[int, int, int]) -> tuple[int, int, int]:
    """Returns the color of a label."""
    return color if verdict is None else _CORRECT if verdict == "correct" else _WRONG


def _draw_objects(
    photo: Tensor,
    objects: Sequence[Mapping[str, Any]],
    styles: Mapping[int, tuple[str, tuple[int, int, int]]],
    orig_size: tuple[int, int],
    font: ImageFont.FreeTypeFont,
    masks: bool,
) -> Tensor:
    # Large objects first, so that a small object on a large one stays visible.
    objects = sorted(objects, key=lambda each: -each["bbox"][2] * each["bbox"][3])
    colors = [each.get("color", styles[each["category_id"]][1]) for each in objects]
    photo = photo.clone()
    for each, color in zip(objects, colors, strict=True):
        if masks and each.get("segmentation"):
            pixels = torch.from_numpy(decode_segmentation(each["segmentation"], orig_size))[None].float()
            mask = resize(pixels, list(photo.shape[1:])) > 0.5
            if mask.any():
                x1, y1, x2, y2 = masks_to_boxes(mask)[0].int().tolist()
                mask, part = mask[:, y1 : y2 + 1, x1 : x2 + 1], photo[:, y1 : y2 + 1, x1 : x2 + 1]
                edge = mask & (max_pool2d(pad((~mask).float(), (1, 1, 1, 1), value=1), 3, 1) > 0)
                filled = draw_segmentation_masks(part, mask, alpha=0.4, colors=color)
                part.copy_(draw_segmentation_masks(filled, edge, alpha=1, colors=color))

    size = torch.tensor([photo.shape[2], photo.shape[1]])
    boxes = torch.tensor([each["bbox"] for each in objects], dtype=torch.float).reshape(-1, 4)
    boxes = box_convert(boxes, "xywh", "xyxy") * (size / torch.tensor(orig_size[::-1])).repeat(2)
    edges = torch.cat([boxes[:, :2].round().clamp(min=0), boxes[:, 2:].round().minimum(size) - 1], dim=1)
    dashes = (torch.arange(photo.shape[1])[:, None] + torch.arange(photo.shape[2])) // 5 % 2 == 0
    for each, color, box in zip(objects, colors, edges, strict=True):
        if (box[:2] <= box[2:]).all():
            drawn = draw_bounding_boxes(photo, box[None], colors=color, width=2)
            dashed = each.get("iscrowd") or each.get("ignore")
            photo = torch.where(dashes, drawn, photo) if dashed else drawn

    texts, spots = [], torch.zeros(0, 4)
    for each, box in zip(objects, boxes, strict=True):
        words = [styles[each["category_id"]][0]] if len(objects) <= _CROWDED else []
        words += [f"{each['score']:.2f}"] if "score" in each else []
        words += ["(crowd)"] if each.get("iscrowd") else ["(ignored)"] if each.get("ignore") else []
        words += [each["verdict"]] if each.get("verdict", "correct") != "correct" else []
        texts.append(" ".join(words))
        room = torch.tensor([font.getlength(texts[-1]) + 5, 1.4 * font.size])
        # Above, below or inside the box, where it hides least of other labels, then of the object, which may be tiny.
        corners = box[[0, 1, 2, 1, 0, 3, 2, 3, 0, 1, 2, 3]].reshape(6, 2)
        corners = corners - room * torch.tensor([[0, 1], [1, 1], [0, 0], [1, 0], [0, 0], [1, 1]])
        corners = corners.minimum(size - room).clamp(min=0).round()
        places = torch.cat([corners, corners + room], dim=1)
        hidden = 1000 * box_iou(places, spots).sum(dim=1) + box_iou(places, box[None])[:, 0]
        spots = torch.cat([spots, places[hidden.argmin()][None]])
    if any(texts):
        fills = [_fill(each.get("verdict"), color) for each, color in zip(objects, colors, strict=True)]
        inks = ["white" if 0.299 * red + 0.587 * green + 0.114 * blue < 140 else "black" for red, green, blue in fills]
        labels: dict[str, Any] = {"colors": fills, "label_colors": inks, "font": _FONT, "font_size": font.size}
        photo = draw_bounding_boxes(photo, spots[:, [0, 1, 0, 1]], labels=texts, fill_labels=True, **labels)
    return photo
