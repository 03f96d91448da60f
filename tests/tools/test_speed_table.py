import csv
import json
from pathlib import Path

import pytest
import speed_table


def test_the_table_of_the_page_is_of_the_results_that_are_committed() -> None:
    page = speed_table.PAGE.read_text()
    assert speed_table.BEGIN in page
    assert page == speed_table.with_table(page), "run `python tools/speed_table.py`"
    with pytest.raises(ValueError, match="must hold .*speed_table.py.* once, found 0 times"):
        speed_table.with_table(page.replace(speed_table.BEGIN, ""))


def test_times_and_ratios(tmp_path: Path) -> None:
    fields = ["workload", "operator", "direction", "implementation", "layout", "status", "median_ms"]
    with (tmp_path / "bench.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(fields)
        for title, operators in speed_table.LINES.items():
            for operator in operators:
                name = title.partition(":")[0]
                for direction in ("forward", "forward+backward", "forward+backward+boxes"):
                    writer.writerow([name, operator, direction, "detpool cpu", "channels_last", "timed", "4"])
                    # Not shown: another layout, and what was not timed.
                    writer.writerow([name, operator, direction, "detpool cpu", "contiguous", "timed", "1"])
                    writer.writerow([name, operator, direction, "onnxruntime", "contiguous", "absent", ""])
        writer.writerow(["c4", "roi_align", "forward", "torchvision", "contiguous", "timed", "50"])
    (tmp_path / "bench.json").write_text(json.dumps({"command": "python tools/bench_ops.py"}))
    lines = speed_table.table(tmp_path).splitlines()
    assert lines[2].endswith("| `roi_align` | **4.0** (12x) | 50 |  |  | **4.0**, with box gradients **4.0** |  |")
    assert lines[3] == "|  | `roi_pool` | **4.0** |  |  |  | **4.0**, with box gradients **4.0** |  |"
    assert lines[-1] == "`python tools/bench_ops.py`"
