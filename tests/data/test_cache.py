"""Annotations that are kept between starts: the same as read anew, and read anew when they do not fit."""

import json
import os
from pathlib import Path

import pytest

from detpool.data import cache
from detpool.data.coco import COCODataset, published_files

ROWS = [
    {"id": i, "image_id": 7 + i % 2, "category_id": 3, "bbox": [1.25, 2, 10, 12], "segmentation": segmentation}
    for i, segmentation in enumerate(
        [[[1, 2, 11, 2.5, 11, 14]], {"size": [40, 60], "counts": [0, 40, 2360]}, {"size": [40, 60], "counts": "0P[2"}]
    )
]


@pytest.fixture
def root(coco, monkeypatch, tmp_path):
    monkeypatch.setattr(cache, "_WORTHWHILE", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return coco(ROWS)


@pytest.fixture
def messages(monkeypatch):
    said = []
    monkeypatch.setattr(cache, "rank_zero_info", said.append)
    return said


def refuse(*_):
    raise AssertionError("read anew")


def test_a_second_start_reads_what_the_first_kept(root, monkeypatch, messages):
    built = {masks: COCODataset(*published_files(root, "train"), masks=masks).ground_truth() for masks in (False, True)}
    assert built[True] == COCODataset(*published_files(root, "train"), masks=True, cache=False).ground_truth()
    assert [a["segmentation"] for a in built[True]["annotations"]] == [ROWS[i]["segmentation"] for i in (0, 2, 1)]
    monkeypatch.setattr("detpool.data.coco.read_instances", refuse)
    for masks, expected in built.items():
        assert COCODataset(*published_files(root, "train"), masks=masks).ground_truth() == expected
    assert not messages
    with pytest.raises(AssertionError, match="read anew"):
        COCODataset(*published_files(root, "train"), cache=False)


def test_a_changed_file_and_a_damaged_cache_are_read_anew(root, messages):
    first = COCODataset(*published_files(root, "train"), masks=True).ground_truth()
    (kept,) = (root / "annotations").glob(".*.cache")
    whole = kept.read_bytes()
    text = whole.index(b"[[1,2,11" if b"[[1,2,11" in whole else b"[[1, 2, 11")
    flipped = whole[: text + 2] + b"9" + whole[text + 3 :]
    for content in (flipped, whole[:-100], whole[: len(whole) // 2], b"", b"\0" * 1000):
        kept.write_bytes(content)
        assert COCODataset(*published_files(root, "train"), masks=True).ground_truth() == first
        assert "is damaged" in messages.pop()
        assert not messages
    path = root / "annotations/instances_train.json"
    path.write_text(path.read_text().replace("1.25", "1.75"))
    assert COCODataset(*published_files(root, "train"), masks=True).ground_truth()["annotations"][0]["bbox"][0] == 1.75
    assert "of another file" in messages.pop()


def test_of_a_folder_that_cannot_be_written_the_cache_lies_in_the_user_s(root, monkeypatch, messages, tmp_path):
    save = cache._save

    def save_unless_beside(place: Path, *rest) -> None:
        if tmp_path / "home" not in place.parents:
            raise PermissionError(place)
        save(place, *rest)

    monkeypatch.setattr(cache, "_save", save_unless_beside)
    first = COCODataset(*published_files(root, "train")).ground_truth()
    assert len(list((tmp_path / "home/detpool").rglob(".instances_train.json.boxes.cache"))) == 1
    assert not messages
    with monkeypatch.context() as patch:
        patch.setattr("detpool.data.coco.read_instances", refuse)
        assert COCODataset(*published_files(root, "train")).ground_truth() == first
    monkeypatch.setenv("XDG_CACHE_HOME", os.devnull)
    assert COCODataset(*published_files(root, "train")).ground_truth() == first
    assert "can be written" in messages.pop()


def test_small_files_are_read_each_time(coco):
    root = coco(ROWS)
    COCODataset(*published_files(root, "train"))
    assert json.loads((root / "annotations/instances_train.json").read_text())["annotations"] == ROWS
    assert len(list((root / "annotations").iterdir())) == 1
