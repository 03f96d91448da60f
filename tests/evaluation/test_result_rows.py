"""Predictions as COCO result rows, and the file that holds them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as rle

from detpool.evaluation import read_results, to_detections, write_results

# pycocotools 2.0 under numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def prediction(boxes: list[list[float]], labels: list[int], **more: torch.Tensor) -> dict[str, torch.Tensor]:
    scores = torch.linspace(0.9, 0.5, len(boxes))
    return {
        "boxes": torch.tensor(boxes).reshape(-1, 4),
        "labels": torch.tensor(labels).long(),
        "scores": scores,
        **more,
    }


def test_scales_to_the_file() -> None:
    found = to_detections(
        prediction([[10, 20, 30, 60], [0, 0, 300, 100]], [2, 1]),
        image_id=7,
        orig_size=(50, 600),  # the input is twice as high and half as wide
        input_size=(100, 300),
        category_ids=[18, 90],
    )
    rows = list(found)
    assert rows == [
        {"image_id": 7, "category_id": 90, "bbox": [20, 10, 40, 20], "score": pytest.approx(0.9)},
        {"image_id": 7, "category_id": 18, "bbox": [0, 0, 600, 50], "score": pytest.approx(0.5)},
    ]
    assert json.loads(json.dumps(rows)) == rows


def test_no_detections() -> None:
    masks = torch.zeros(0, 1, 8, 9)
    sizes = {"orig_size": (8, 9), "input_size": (8, 9)}
    assert len(to_detections(prediction([], [], masks=masks), image_id=1, category_ids=[1], **sizes)) == 0


@pytest.mark.parametrize(
    ("dtype", "orig_size"), [(torch.bool, (24, 40)), (torch.uint8, (6, 10)), (torch.float32, (12, 40))]
)
def test_masks_follow_the_boxes(dtype: torch.dtype, orig_size: tuple[int, int]) -> None:
    mask = torch.zeros(1, 1, 12, 20)
    mask[0, 0, 2:8, 4:16] = 1
    values = mask * 0.8 + 0.1 if dtype == torch.float32 else mask.to(dtype)
    (row,) = to_detections(
        prediction([[4, 2, 16, 8]], [1], masks=values),
        image_id=1,
        orig_size=orig_size,
        input_size=(12, 20),
        category_ids=[1],
    )
    json.dumps(row)
    decoded = rle.decode(row["segmentation"])
    assert decoded.shape == orig_size
    x, y, width, height = (round(value) for value in row["bbox"])
    expected = np.zeros(orig_size, dtype=np.uint8)
    expected[y : y + height, x : x + width] = 1
    np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": torch.zeros(2, 5)}, r"image 3: boxes, labels and scores must be .* got \(2, 5\), \(2,\) and \(2,\)"),
        ({"labels": torch.ones(3).long()}, r"got \(2, 4\), \(3,\) and \(2,\)"),
        ({"labels": torch.tensor([1, 3])}, r"labels must lie in 1 .. 2, got 1 .. 3"),
        ({"scores": torch.tensor([0.5, torch.nan])}, "hold NaN or infinity"),
        ({"masks": torch.zeros(2, 1, 28, 28)}, r"masks must be \(2, 1, 10, 10\).*got \(2, 1, 28, 28\)"),
        ({"mask_probabilities": torch.zeros(2, 28, 14)}, r"mask_probabilities must be \(2, M, M\), got \(2, 28, 14\)"),
        ({"mask_probabilities": torch.zeros(1, 28, 28)}, r"\(2, M, M\), got \(1, 28, 28\)"),
    ],
)
def test_malformed_predictions(change: dict[str, torch.Tensor], message: str) -> None:
    bad = prediction([[0, 0, 1, 1], [0, 0, 1, 1]], [1, 2]) | change
    with pytest.raises(ValueError, match=message):
        to_detections(bad, image_id=3, orig_size=(10, 10), input_size=(10, 10), category_ids=[1, 2])


def test_file_round_trip(tmp_path: Path) -> None:
    rows = [{"image_id": 1, "category_id": 2, "bbox": [0.1, 1 / 3, 5.0, 6.0], "score": 0.123456789012345}]
    path = tmp_path / "new" / "predictions.json"
    write_results(path, rows)
    assert read_results(path) == [rows[0] | {"bbox": [0.1, 0.33, 5.0, 6.0]}]
    write_results(path, iter([]))
    assert read_results(path) == []
    assert [file.name for file in path.parent.iterdir()] == ["predictions.json"]


def test_compressed_files_are_the_same(tmp_path: Path) -> None:
    plain, packed = tmp_path / "predictions.json", tmp_path / "predictions.json.gz"
    for path in (plain, packed):
        write_results(path, [{"image_id": 1, "category_id": 2, "bbox": [0, 0, 1, 1], "score": 0.5}] * 100)
    assert gzip.decompress(packed.read_bytes()) == plain.read_bytes()
    assert read_results(packed) == read_results(plain)
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"predictions\.json\.gz is cut short or damaged"):
        read_results(packed)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "predictions.json"
    write_results(path, [])
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_results(path, [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": float("nan")}])
    assert read_results(path) == []
    assert [file.name for file in tmp_path.iterdir()] == ["predictions.json"]


def test_broken_files(tmp_path: Path) -> None:
    path = tmp_path / "predictions.json"
    row = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}
    for content, message in [
        ('[{"image_id": 1, ', "is not valid JSON"),
        ('{"annotations": []}', "expected a list of COCO result rows, got a JSON dict"),
        ('[{"image_id": 1, "category_id": 1}]', "row 0 has no bbox, score"),
        (json.dumps([row, row | {"bbox": [0, 0, 1, "1"]}]), "row 1 has bbox .* expected four"),
        (json.dumps([row | {"bbox": 5}]), "row 0 has bbox 5 and score 1"),
        (json.dumps([row | {"score": "high"}]), "and score 'high'"),
        (json.dumps([row | {"score": float("nan")}]), "and score nan"),
        ("[3]", "row 0 has no image_id, category_id, bbox, score"),
    ]:
        path.write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=message) as caught:
            read_results(path)
        assert str(path) in str(caught.value)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        read_results(path)
