#!/usr/bin/env python
"""Writes the table of speeds in docs/benchmarks.md, from the results of `tools/bench_ops.py` in results/ops_cpu.

python tools/speed_table.py    # writes the table into the page
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
from pages import head, line, replace_between

ROOT = Path(__file__).resolve().parents[1]
PAGE, RESULTS = ROOT / "docs/benchmarks.md", ROOT / "results/ops_cpu"
BEGIN, END = "<!-- speed: tools/speed_table.py -->\n", "<!-- end of speed -->"

LINES = {
    "c4: 2 x 256 x 50 x 76, 512 RoIs": ("roi_align", "roi_pool", "pr_roi_pool"),
    "fpn: two 800 x 1216 images, 1024 RoIs": ("roi_align",),
    "mask: 14 x 14 bins, 256 RoIs": ("roi_align", "roi_pool"),
    "rfcn: 2 x 1029 x 50 x 76, 512 RoIs": ("ps_roi_pool", "ps_roi_align"),
}
"""Lines of the table: title (the name of the workload comes before the colon) and operators."""
OURS, PEER = "detpool cpu", "torchvision"


def table(results: Path = RESULTS) -> str:
    """Markdown table of median milliseconds of detpool (channels_last) and of the other implementations."""
    rows = pd.read_csv(results / "bench.csv")
    shown = (rows["implementation"] != OURS) | (rows["layout"] == "channels_last")
    columns = ["workload", "operator", "direction", "implementation"]
    times = rows[shown & (rows["status"] == "timed")].set_index(columns)["median_ms"].to_dict()
    header = ["workload", "operator", "forward", PEER, "OpenVINO", "ONNX Runtime", "forward + backward", PEER]
    lines = head(header)
    for title, operators in LINES.items():
        for operator in operators:
            key = (title.partition(":")[0], operator)
            cells = [title if operator == operators[0] else "", f"`{operator}`"]
            for direction, peers in (("forward", (PEER, "openvino", "onnxruntime")), ("forward+backward", (PEER,))):
                cells.append(_ours(times, (*key, direction)))
                cells += [_ms(times.get((*key, direction, peer))) for peer in peers]
            lines.append(line(cells))
    command = json.loads((results / "bench.json").read_text())["command"]
    return "\n".join([*lines, "", f"`{command}`"]) + "\n"


def _ours(times: dict[tuple[str, str, str, str], float], key: tuple[str, str, str]) -> str:
    ours, peer = times[(*key, OURS)], times.get((*key, PEER))
    boxes = times[(key[0], key[1], f"{key[2]}+boxes", OURS)] if key[2] != "forward" and peer is None else None
    if boxes is not None:
        return f"**{_ms(ours)}**, with box gradients **{_ms(boxes)}**"
    return f"**{_ms(ours)}**" + (f" ({_ms(peer / ours)}x)" if peer else "")


def _ms(value: float | None) -> str:
    """Formats milliseconds with one decimal, from 10 on without decimals."""
    return "" if value is None else f"{value:.1f}" if value < 9.95 else f"{value:.0f}"


def with_table(page: str) -> str:
    """Returns the page with an updated table."""
    return replace_between(page, BEGIN, END, table())


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
