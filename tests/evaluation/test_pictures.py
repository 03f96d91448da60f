"""Pictures: what is drawn where. How they look is for eyes to judge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle

from detpool.evaluation.pictures import class_color, contact_sheet, draw_comparison, write_pictures

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

CLASSES = {3: "disc", 8: "box"}
GREY = torch.full((3, 50, 100), 128, dtype=torch.uint8)  # the file is twice as large


def draw(ground_truth: list[dict[str, Any]], predictions: list[dict[str, Any]], **options: Any) -> np.ndarray:
    picture = draw_comparison(
        GREY, ground_truth, predictions, orig_size=(100, 200), classes=CLASSES, panel=400, **options
    )
    return np.asarray(picture).astype(int)


def find(picture: np.ndarray, color: tuple[int, int, int], tolerance: int = 0) -> np.ndarray:
    return (np.abs(picture - np.array(color)) <= tolerance).all(axis=2)


def test_layout() -> None:
    picture = draw([], [])
    grey = find(picture, (128, 128, 128), 1)
    rows, columns = np.flatnonzero(grey.any(axis=1)), np.flatnonzero(grey.any(axis=0))
    assert len(rows) == 200  # enlarged from 50 x 100 to 200 x 400, twice beside each other
    assert len(columns) == 800
    assert (np.diff(columns) != 1).sum() == 1


def test_boxes_are_scaled_and_coloured_by_class() -> None:
    truth = [{"category_id": 8, "bbox": [40, 20, 100, 60]}]
    found = [{"category_id": 3, "bbox": [40, 20, 100, 60], "score": 0.75}]
    picture = draw(truth, found)
    grey = find(draw([], []), (128, 128, 128), 1)
    top, left = np.argwhere(grey)[0]
    right = left + 410  # the second panel, behind a margin
    for start, color in ((left, class_color(1)), (right, class_color(0))):
        outline = find(picture, color)
        # 200 file pixels fill 400 pixels of the panel: x from 80 to 280, y from 40 to 160
        assert outline[top + 60 : top + 140, start + 80].all()
        assert outline[top + 60 : top + 140, start + 279].all()
        assert outline[top + 159, start + 80 : start + 280].all()
        assert not outline[top + 60 : top + 140, start + 84 : start + 276].any()
    assert not find(picture, class_color(0))[top : top + 200, left : left + 400].any()


def test_crowds_and_ignored_objects_are_dashed() -> None:
    plain = [{"category_id": 8, "bbox": [40, 20, 100, 60]}]
    solid = find(draw(plain, []), class_color(1)).sum(axis=0).max()
    for flag in ("iscrowd", "ignore"):
        dashed = find(draw([plain[0] | {flag: 1}], []), class_color(1)).sum(axis=0).max()
        assert 0.4 * solid < dashed < 0.75 * solid


@pytest.mark.parametrize("form", ["polygon", "counts", "compressed"])
def test_masks(form: str) -> None:
    mask = np.zeros((100, 200), dtype=np.uint8, order="F")
    mask[30:70, 60:120] = 1
    counts = [60 * 100 + 30] + [40, 60] * 59 + [40, 30 + 80 * 100]
    segmentation: Any = {
        "polygon": [[60, 30, 120, 30, 120, 70, 60, 70]],
        "counts": {"size": [100, 200], "counts": counts},
        "compressed": rle.encode(mask),
    }[form]
    annotation = {"category_id": 8, "bbox": [0, 0, 0, 0], "segmentation": segmentation}
    shown = draw([annotation], [], masks=True) - draw([annotation], [])
    top, left = np.argwhere(find(draw([], []), (128, 128, 128), 1))[0]
    changed = np.argwhere(np.abs(shown).sum(axis=2) > 0)
    low, high = changed.min(axis=0) - (top, left), changed.max(axis=0) - (top, left)
    np.testing.assert_allclose(low, (60, 120), atol=2)
    np.testing.assert_allclose(high, (139, 239), atol=2)
    centre = draw([annotation], [], masks=True)[top + 100, left + 180]
    blend = 0.6 * 128 + 0.4 * np.array(class_color(1))
    np.testing.assert_allclose(centre, blend, atol=3)


def test_odd_boxes_do_no_harm() -> None:
    boxes = [
        [-50, -50, 20, 20],
        [190, 90, 50, 50],
        [300, 300, 10, 10],
        [10, 10, 0, 0],
        [5, 5, 0.2, 0.2],
        [0, 0, 200, 100],
    ]
    rows = [{"category_id": 3, "bbox": box, "score": 1.0} for box in boxes]
    # the same picture above a legend of one line
    assert draw(rows, rows * 10).shape == draw(rows[-1:], []).shape


def test_class_colors_differ() -> None:
    colors = np.array([class_color(i) for i in range(12)])
    distances = np.abs(colors[:, None] - colors[None]).sum(axis=2) + 999 * np.eye(12)
    assert distances.min() > 60
    assert len({class_color(i) for i in range(91)}) == 91


def test_contact_sheet_holds_every_picture() -> None:
    sizes = [(40, 30), (50, 60), (50, 20), (30, 30), (50, 10)]
    colors = [(10 * i + 10, 0, 0) for i in range(5)]
    sheet = np.asarray(
        contact_sheet([Image.new("RGB", size, color) for size, color in zip(sizes, colors, strict=True)])
    )
    for (width, height), color in zip(sizes, colors, strict=True):
        assert find(sheet.astype(int), color).sum() == width * height
    assert sheet.shape == (80, 100, 3)


class Pictures:
    class_names = ("disc", "box")
    category_ids = (3, 8)
    image_ids = tuple(range(100, 130))

    def ground_truth(self) -> dict[str, Any]:
        return {"annotations": [{"image_id": i, "category_id": 3, "bbox": [0, 0, 50, 50]} for i in self.image_ids]}

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict[str, Any]]:
        return torch.full((3, 32, 48), index, dtype=torch.uint8), {"orig_size": (320, 480)}


def test_files(tmp_path: Path) -> None:
    rows = [
        {"image_id": 100, "category_id": 8, "bbox": [240, 0, 240, 320], "score": 0.8},
        {"image_id": 104, "category_id": 8, "bbox": [240, 0, 240, 320], "score": 0.4},
    ]
    paths = write_pictures(tmp_path / "pictures", Pictures(), rows, limit=8)
    names = [f"{100 + i * 30 // 8}.png" for i in range(8)]
    assert [path.name for path in paths] == [*names, "contact_sheet.png"]
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == sorted(path.name for path in paths)
    shown = [find(np.asarray(Image.open(path)).astype(int), class_color(1)).any() for path in paths[:2]]
    assert shown == [True, False]
    sheet, single = Image.open(paths[-1]), Image.open(paths[0])
    assert sheet.width < 2 * single.width

    paths = write_pictures(tmp_path / "chosen", Pictures(), rows, image_ids=[104], score_threshold=0.3)
    assert [path.name for path in paths] == ["104.png", "contact_sheet.png"]
    assert find(np.asarray(Image.open(paths[0])).astype(int), class_color(1)).any()
    assert write_pictures(tmp_path / "none", Pictures(), [], image_ids=[]) == []
    with pytest.raises(ValueError, match=r"image_ids: not in the data set: \[1\]"):
        write_pictures(tmp_path, Pictures(), [], image_ids=[104, 1])


def test_same_input_same_file(tmp_path: Path) -> None:
    first, second = (write_pictures(tmp_path / name, Pictures(), [], limit=2) for name in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
