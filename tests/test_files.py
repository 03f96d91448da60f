"""Files are written whole or not at all."""

from __future__ import annotations

import errno
import json
import math
import os
import stat

import pytest
import torch

from detpool import files
from detpool.data.proposals import write_proposals
from detpool.data.shapes import ShapesDataset
from detpool.evaluation.pictures import write_pictures
from detpool.evaluation.results import write_results
from detpool.files import (
    WriteError,
    naming_full_disks,
    remove_temporary_files,
    write_csv_atomically,
    write_json_atomically,
    write_text_atomically,
)
from detpool.run_record import write_metrics
from detpool.study.layout import write_plan, write_status

LONG = "x" * 20_000
ROW = {"image_id": 1, "category_id": 1, "bbox": [0.0, 0.0, 1.0, 1.0], "score": 0.5}


def test_a_full_disk_leaves_what_was_there_and_names_the_path(tmp_path, room_for):
    writers = {
        "a.txt": lambda path: write_text_atomically(path, LONG),
        "metrics.json": lambda path: write_metrics(path, {LONG: 0.5}, seconds=1),
        "predictions.json": lambda path: write_results(path, [ROW] * 999),
        "status.json": lambda path: write_status(path.parent, "failed", LONG),
        "sweep.json": lambda path: write_plan(path.parent, [LONG]),
        "proposals.npz": lambda path: write_proposals(path, {1: torch.rand(9999, 4)}),
        "1.png": lambda path: write_pictures(path.parent, ShapesDataset("val", 1), [], limit=1),
    }
    for name, write in writers.items():
        path = tmp_path / name / name
        path.parent.mkdir()
        path.write_bytes(b"before")
        with pytest.raises(WriteError) as error, room_for(9_000):
            write(path)
        assert str(error.value) == f"cannot write {path}: {os.strerror(errno.EFBIG)}"
        assert path.read_bytes() == b"before"
        assert os.listdir(path.parent) == [name]
        write(path)
        assert len(path.read_bytes()) > 9_000


def test_what_is_cut_short_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_text_atomically(path, "before")

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        write_text_atomically(path, "after")
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_others_may_read_the_file_and_folders_are_made(tmp_path):
    path = tmp_path / "a" / "b" / "c.txt"
    write_text_atomically(path, "é")
    assert path.read_bytes() == b"\xc3\xa9"
    assert path.stat().st_mode & stat.S_IRUSR
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_json_and_csv(tmp_path):
    write_json_atomically(tmp_path / "a.json", {"x": 1})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json_atomically(tmp_path / "a.json", {"x": math.nan})
    write_csv_atomically(tmp_path / "a.csv", [{"run": 'a "b", c', "AP": 0.1 + 0.2}, {"run": "d", "AR": None}])
    assert (tmp_path / "a.csv").read_text() == 'run,AP,AR\n"a ""b"", c",0.30000000000000004,\nd,,\n'


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match=f"^cannot write {tmp_path}/file: "):
        write_text_atomically(tmp_path / "file" / "a.txt", "")


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path, monkeypatch):
    kept = [tmp_path / "a.ckpt", tmp_path / "b" / ".lock", tmp_path / "b" / "c.tmp"]
    for path in kept:
        write_text_atomically(path, "")
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", lambda *_: os._exit(1))
        if not (child := os.fork()):
            write_text_atomically(tmp_path / "b" / "best.ckpt", "half")
        os.waitpid(child, 0)
    assert len(list((tmp_path / "b").iterdir())) == 3
    remove_temporary_files(tmp_path)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == kept


def test_whoever_finds_no_room_the_path_is_named(tmp_path, room_for):
    path = tmp_path / "log"
    with pytest.raises(WriteError, match=f"^cannot write {tmp_path}: "), naming_full_disks(tmp_path), room_for(99):
        path.write_text(LONG)
    with pytest.raises(WriteError, match=f"^cannot write {path}: "), naming_full_disks(tmp_path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    with pytest.raises(FileNotFoundError), naming_full_disks(tmp_path):
        (tmp_path / "nothing").read_text()
