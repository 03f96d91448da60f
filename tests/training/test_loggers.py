"""The CSV log holds whole rows, whatever happens."""

import csv

import pytest

from detpool.files import WriteError
from detpool.training.loggers import WholeRowsCSVLogger


def test_a_full_disk_leaves_whole_rows_and_the_next_try_loses_none(tmp_path, room_for):
    logger = WholeRowsCSVLogger(tmp_path, name="csv", version="")
    logger.save()
    path = tmp_path / "csv" / "metrics.csv"
    assert not path.exists()
    for step in range(3):
        logger.log_metrics({"train/loss": step / 2}, step)
    logger.save()
    before = path.read_bytes()
    assert before == b"train/loss,step\n0.0,0\n0.5,1\n1.0,2\n"
    logger.log_metrics({"val/AP": 0.123456789}, 3)
    with pytest.raises(WriteError, match=f"^cannot write {path}: "), room_for(len(before) + 5):
        logger.save()
    assert path.read_bytes() == before
    logger.finalize("failed")
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [row["step"] for row in rows] == ["0", "1", "2", "3"]
    assert (rows[3]["val/AP"], rows[3]["train/loss"], rows[0]["val/AP"]) == ("0.123456789", "", "")
