"""The CSV log holds whole rows, whatever happens."""

import csv

import pytest

from detpool.files import WriteError
from detpool.training.loggers import WholeRowsCSVLogger


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("new_column", [False, True], ids=["appended", "with a longer header"])
def test_a_full_disk_leaves_whole_rows_and_the_next_try_loses_none(tmp_path, room_for, new_column):
    logger = WholeRowsCSVLogger(tmp_path, name="csv", version="")
    path = tmp_path / "csv" / "metrics.csv"
    for step in range(3):
        logger.log_metrics({"train/loss": step / 2}, step)
    logger.save()
    before = path.read_bytes()
    assert [row["train/loss"] for row in rows(path)] == ["0.0", "0.5", "1.0"]

    name = "val/AP" if new_column else "train/loss"
    logger.log_metrics({name: 0.123456789}, 3)
    with pytest.raises(WriteError, match=f"^cannot write {path}: "), room_for(len(before) + 5):
        logger.save()
    assert path.read_bytes() == before
    logger.finalize("failed")
    assert [row["step"] for row in rows(path)] == ["0", "1", "2", "3"]
    assert rows(path)[3][name] == "0.123456789"
    assert rows(path)[0].get("val/AP", "") == ""
