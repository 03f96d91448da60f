"""Tables of metrics, as they arrive in a log file."""

from __future__ import annotations

import io
import math

from rich.console import Console

from detpool.evaluation.table import print_metrics

COCO = {"AP": 0.57812, "AP50": 0.917, "AP75": 0.6, "APs": math.nan, "APm": 0.1, "APl": 1.0}
RECALL = {"AR1": 0.2, "AR10": 0.3, "AR150": 0.45, "ARs": 0.5, "ARm": 0.6, "ARl": 0.7}


def printed(metrics: dict[str, float], title: str | None = None) -> list[str]:
    """The lines that are not blank, in a file 80 characters wide."""
    file = io.StringIO()
    print_metrics(metrics, title, Console(file=file, width=80))
    return [line.rstrip() for line in file.getvalue().splitlines() if line.strip()]


def test_box_metrics() -> None:
    lines = printed(COCO | RECALL | {"AP@0.50": 0.917, "AP/cat": 0.5, "AP/[dog]": math.nan}, "val [3]")
    assert lines[0] == "val [3]"
    names, values = (line.split() for line in (lines[-3], lines[-1]))
    assert names == ["COCO,", "%", "AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR150"]
    assert values == ["box", "57.8", "91.7", "60.0", "-", "10.0", "100.0", "20.0", "30.0", "45.0"]
    assert [line.split() for line in lines if "cat" in line or "dog" in line] == [["cat", "50.0"], ["[dog]", "-"]]
    assert "\x1b" not in "".join(lines)
    assert all(len(line) <= 80 for line in lines)


def test_masks_and_voc() -> None:
    masks = {f"mask_{name}": value / 2 for name, value in (COCO | RECALL).items()} | {"mask_AP/cat": 0.25}
    voc = {"voc_AP": 0.8, "voc_AP11": 0.7, "voc_AP/cat": 0.8, "voc_AP11/cat": 0.7}
    lines = printed(COCO | RECALL | {"AP/cat": 0.5} | masks | voc)
    assert [line.split() for line in lines if line.split()[0] in ("cat", "box", "mask")] == [
        ["cat", "50.0", "25.0", "80.0", "70.0"],
        ["box", "57.8", "91.7", "60.0", "-", "10.0", "100.0", "20.0", "30.0", "45.0"],
        ["mask", "28.9", "45.9", "30.0", "-", "5.0", "50.0", "10.0", "15.0", "22.5"],
        ["box", "80.0", "70.0"],
    ]


def test_voc_alone() -> None:
    lines = printed({"voc_AP": 0.8, "voc_AP11": 0.7})
    assert len(lines) == 3
    assert lines[-1].split() == ["box", "80.0", "70.0"]


def test_every_class_appears_once() -> None:
    names = [f"class{i:02d}" for i in range(21)]  # more than stand below each other
    lines = printed(COCO | RECALL | {f"AP/{name}": i / 100 for i, name in enumerate(names)})
    words = " ".join(lines).split()
    for i, name in enumerate(names):
        assert words.count(name) == 1
        assert words[words.index(name) + 1] == f"{i:.1f}"
    assert all(len(line) <= 80 for line in lines)


def test_a_terminal_without_unicode() -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    print_metrics(COCO | RECALL, console=Console(file=file, width=80))
    file.flush()
    assert b"57.8" in file.buffer.getvalue()


def test_diagnostics() -> None:
    costs = {"dAP50/missed": 0.2, "dAP50/false_positive": 0.05, "mask_dAP50/missed": 0.3}
    lines = printed(COCO | RECALL | costs | {"AP/cat": 0.5, "ECE": 0.12, "ECE/cat": 0.125, "boundary_AP": 0.25})
    words = [line.split() for line in lines]
    assert ["missed", "20.0", "30.0"] in words
    assert ["false", "positive", "5.0", "-"] in words
    assert ["cat", "50.0", "12.5"] in words
    assert ["all", "classes", "12.0"] in words
    assert ["boundary", "25.0", *"-" * 8] in words
