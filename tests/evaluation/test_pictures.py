"""Pictures: what is drawn where. How they look is for eyes to judge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle

from detpool.evaluation.errors import error_decomposition, judge_image
from detpool.evaluation.pictures import class_color, compare, contact_sheet, draw_panels, write_pictures

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

CLASSES = {3: "disc", 8: "box"}
GREY = torch.full((3, 50, 100), 128, dtype=torch.uint8)  # the file is twice as large


def draw(*panels: list[dict[str, Any]], **options: Any) -> np.ndarray:
    named = [("a panel", objects) for objects in panels]
    return np.asarray(draw_panels(GREY, named, orig_size=(100, 200), classes=CLASSES, panel=400, **options)).astype(int)


def find(picture: np.ndarray, color: tuple[int, int, int], tolerance: int = 0) -> np.ndarray:
    return (np.abs(picture - np.array(color)) <= tolerance).all(axis=2)


def test_boxes_are_scaled_and_colored_by_class() -> None:
    grey = find(draw([], []), (128, 128, 128), 1)
    top, left = np.argwhere(grey)[0]
    # Enlarged from 50 x 100 to 200 x 400, twice beside each other with a margin between.
    assert grey.sum() == grey[top : top + 200, [*range(left, left + 400), *range(left + 410, left + 810)]].sum()
    assert grey.sum() == 2 * 200 * 400
    truth = [{"category_id": 8, "bbox": [40, 20, 100, 60]}]
    found = [{"category_id": 3, "bbox": [40, 20, 100, 60], "score": 0.75}]
    picture = draw(truth, found)
    for start, color in ((left, class_color(1)), (left + 410, class_color(0))):
        outline = find(picture, color)
        # 200 file pixels fill 400 pixels of the panel: x from 80 to 280, y from 40 to 160
        assert outline[top + 60 : top + 140, start + 80].all()
        assert outline[top + 60 : top + 140, start + 279].all()
        assert outline[top + 159, start + 80 : start + 280].all()
        assert not outline[top + 60 : top + 140, start + 84 : start + 276].any()
    assert not find(picture, class_color(0))[top : top + 200, left : left + 400].any()


def test_crowds_and_ignored_objects_are_dashed() -> None:
    plain = [{"category_id": 8, "bbox": [40, 20, 100, 60]}]
    solid = find(draw(plain), class_color(1))[20:].sum(axis=0).max()
    for flag in ("iscrowd", "ignore"):
        dashed = find(draw([plain[0] | {flag: 1}]), class_color(1))[20:].sum(axis=0).max()
        assert 0.4 * solid < dashed < 0.75 * solid


def test_masks() -> None:
    mask = np.zeros((100, 200), dtype=np.uint8, order="F")
    mask[30:70, 60:120] = 1
    annotation = {"category_id": 8, "bbox": [0, 0, 0, 0], "segmentation": rle.encode(mask)}
    picture = draw([annotation], masks=True)
    changed = np.argwhere(np.abs(picture - draw([annotation])).sum(axis=2) > 0)
    top, left = np.argwhere(find(draw([]), (128, 128, 128), 1))[0]
    low, high = changed.min(axis=0) - (top, left), changed.max(axis=0) - (top, left)
    np.testing.assert_allclose(low, (60, 120), atol=2)
    np.testing.assert_allclose(high, (139, 239), atol=2)
    blend = 0.6 * 128 + 0.4 * np.array(class_color(1))
    np.testing.assert_allclose(picture[top + 100, left + 180], blend, atol=3)
    # The outline is opaque.
    assert find(picture, class_color(1), 3)[top + 100, left + 118 : left + 122].any()


def test_labels_do_not_hide_each_other_or_small_objects() -> None:
    rows = [{"category_id": 3, "bbox": [50 + i, 40, 6, 6], "score": 1.0} for i in range(3)]
    alone, together = (find(draw(objects), class_color(0))[:210].sum() for objects in (rows[:1], rows))
    # Beside three labels the boxes are few pixels, of which some coincide.
    assert together > 2.5 * alone
    crowd = [{"category_id": 3, "bbox": [12 * i, 5 * i, 5, 5]} for i in range(13)]
    few, many = (find(draw(objects), class_color(0))[:210].sum() / len(objects) for objects in (crowd[:2], crowd))
    assert many < 0.5 * few  # boxes without names


def test_odd_boxes_do_no_harm() -> None:
    boxes = [[-50, -50, 20, 20], [190, 90, 50, 50], [300, 300, 10, 10], [10, 10, 0, 0], [5, 5, 0.2, 0.2]]
    rows = [{"category_id": 3, "bbox": box, "score": 1.0} for box in [*boxes, [0, 0, 200, 100]]]
    # the same picture above a legend of one line
    assert draw(rows, rows * 10).shape == draw(rows[-1:], []).shape


def test_a_long_legend_has_several_lines() -> None:
    classes = {i: f"a class with a long name {i}" for i in range(9)}
    objects = [{"category_id": i, "bbox": [0, 0, 9, 9]} for i in classes]
    picture = draw_panels(GREY, [("", objects)], orig_size=(100, 200), classes=classes, panel=400)
    assert picture.height > draw([]).shape[0] + 3 * 16
    assert all(find(np.asarray(picture).astype(int)[230:], class_color(i)).any() for i in classes)


def test_class_colors_differ() -> None:
    colors = np.array([class_color(i) for i in range(12)])
    distances = np.abs(colors[:, None] - colors[None]).sum(axis=2) + 999 * np.eye(12)
    assert distances.min() > 60
    assert len({class_color(i) for i in range(91)}) == 91


def test_contact_sheet_holds_every_picture() -> None:
    sizes = [(40, 30), (50, 60), (50, 20), (30, 30), (50, 10)]
    pictures = [Image.new("RGB", size, (10 * i + 10, 0, 0)) for i, size in enumerate(sizes)]
    sheet = np.asarray(contact_sheet(pictures))
    for i, (width, height) in enumerate(sizes):
        assert find(sheet.astype(int), (10 * i + 10, 0, 0)).sum() == width * height
    assert sheet.shape == (180, 100, 3)
    assert contact_sheet(pictures[:1]).size == (40, 30)


class Pictures:
    class_names = ("disc", "box")
    category_ids = (3, 8)
    image_ids = tuple(range(100, 130))

    def ground_truth(self) -> dict[str, Any]:
        return {
            "images": [{"id": i, "file_name": f"deep/{i}.jpg"} for i in self.image_ids],
            "annotations": [{"image_id": i, "category_id": 3, "bbox": [0, 0, 50, 50]} for i in self.image_ids],
        }

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict[str, Any]]:
        return torch.full((3, 32, 48), index, dtype=torch.uint8), {"orig_size": (320, 480)}


def test_files(tmp_path: Path) -> None:
    rows = [
        {"image_id": 100, "category_id": 8, "bbox": [240, 0, 240, 320], "score": 0.8},
        {"image_id": 115, "category_id": 8, "bbox": [240, 0, 240, 320], "score": 0.4},
    ]
    dataset: Any = Pictures()
    paths = write_pictures(tmp_path / "a", dataset, iter(rows), limit=2)
    assert [path.name for path in paths] == ["100.png", "115.png", "contact_sheet.png"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [path.name for path in paths]
    shown = [find(np.asarray(Image.open(path)).astype(int), class_color(1)).any() for path in paths]
    assert shown == [True, False, True]
    single, _, sheet = map(Image.open, paths)
    assert single.width < sheet.width < 2 * single.width
    again = write_pictures(tmp_path / "b", dataset, rows, limit=2)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]
    lower = write_pictures(tmp_path / "c", dataset, rows, limit=2, score_threshold=0.3)
    assert find(np.asarray(Image.open(lower[1])).astype(int), class_color(1)).any()
    dataset.image_ids = ()
    assert write_pictures(tmp_path / "none", dataset, []) == []


SHAPES: dict[str, Any] = {"images": [{"id": 1}], "categories": [{"id": 3}, {"id": 8}], "annotations": [
    {"image_id": 1, "category_id": 3, "bbox": [0, 0, 50, 50]},
    {"image_id": 1, "category_id": 8, "bbox": [100, 0, 50, 50]},
    {"image_id": 1, "category_id": 8, "bbox": [100, 100, 50, 50], "iscrowd": 1},
    {"image_id": 1, "category_id": 3, "bbox": [0, 100, 50, 50]},
]}  # fmt: skip
FOUND = [
    {"image_id": 1, "category_id": 3, "bbox": [0, 0, 50, 40], "score": 0.6},  # another has it
    {"image_id": 1, "category_id": 3, "bbox": [0, 0, 50, 48], "score": 0.9},
    {"image_id": 1, "category_id": 3, "bbox": [100, 0, 50, 50], "score": 0.8},  # of the other class
    {"image_id": 1, "category_id": 8, "bbox": [110, 110, 20, 20], "score": 0.7},  # in the crowd
    {"image_id": 1, "category_id": 3, "bbox": [300, 0, 20, 20], "score": 0.5},
]


def test_each_detection_is_judged_as_in_the_counts() -> None:
    verdicts = judge_image(SHAPES["annotations"], FOUND)
    assert verdicts.kinds == ["duplicate", "correct", "classification", None, "background"]
    assert verdicts.objects == [None, 0, None, None, None]
    assert verdicts.missed == [False, False, False, True]
    # Of a class with as many objects as detections all are counted.
    objects = [{**SHAPES["annotations"][0], "bbox": [1000 + i, 0, 1, 1]} for i in range(9)]
    many = SHAPES | {"annotations": [*SHAPES["annotations"], *objects]}
    counts = error_decomposition(many, FOUND)
    assert {kind: counts[kind] for kind in ("correct", "duplicate", "classification", "background")} == {
        "correct": 1, "duplicate": 1, "classification": 1, "background": 1,
    }  # fmt: skip
    assert counts["missed"] == 9 + sum(verdicts.missed)


class OneImage:
    image_ids = (1,)

    def __init__(self, names: tuple[str, ...]) -> None:
        self.class_names, self.category_ids = names, (3, 8)[: len(names)]

    def ground_truth(self) -> dict[str, Any]:
        annotations = [each for each in SHAPES["annotations"] if each["category_id"] in self.category_ids]
        return {**SHAPES, "annotations": annotations}

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict[str, Any]]:
        return torch.full((3, 200, 400), 128, dtype=torch.uint8), {"orig_size": (200, 400)}


def halves(dataset: Any, rows: list[dict[str, Any]]) -> list[np.ndarray]:
    (picture,) = compare(dataset, rows, [1], score_threshold=0.0)
    return np.split(np.asarray(picture).astype(int)[:, : picture.width // 2 * 2], 2, axis=1)


def test_labels_tell_correct_wrong_and_missed_apart() -> None:
    green, red = (0, 110, 45), (190, 0, 0)
    truth, found = halves(OneImage(("disc", "box")), FOUND[1:2])
    assert find(found, green).sum() > 200
    assert not find(found, red).any()
    assert find(truth, red).sum() > 200  # two are missed
    assert not find(truth, green).any()
    _, found = halves(OneImage(("disc", "box")), FOUND)
    assert find(found, red).sum() > 3 * find(found, green).sum() > 0


def test_objects_of_a_single_class_have_colors_of_their_own() -> None:
    rows = [FOUND[1], {**FOUND[1], "bbox": [2, 102, 50, 50]}, FOUND[4]]
    truth, found = halves(OneImage(("disc",)), rows)
    for number in range(2):
        assert find(truth, class_color(number)).sum() > 50
        assert find(found, class_color(number)).sum() > 50
    assert not find(truth, class_color(2)).any()
    assert find(found, class_color(2)).sum() > 50  # what found nothing
