"""docs/own_study.md as it stands: from an export of a labelling tool to a report, in processes of their own."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from torchvision.transforms.v2.functional import to_pil_image

from detpool.data.shapes import ShapesDataset
from detpool.evaluation.results import RESULTS, read_results

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```(sh|yaml)(?: (\S+))?\n(.*?)```", (ROOT / "docs/own_study.md").read_text(), re.DOTALL)


def write_export(folder: Path) -> None:
    """Pictures and boxes as Label Studio exports them."""
    dataset = ShapesDataset("train", 240, size=128, classes=["circle", "star"], seed=1)
    content = dataset.ground_truth()
    (folder / "images").mkdir(parents=True)
    for index, image in enumerate(content["images"]):
        image["file_name"] = f"images/{image['id']:04}.png"
        to_pil_image(dataset.load(index)[0]).save(folder / image["file_name"])
    (folder / "result.json").write_text(json.dumps(content))


@pytest.mark.slow
def test_the_page(tmp_path: Path) -> None:
    write_export(tmp_path / "export")
    printed = ""
    for kind, name, content in BLOCKS:
        if kind == "yaml":
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
            continue
        programs = re.sub(r"\bpython ((?:tools/)?\w+\.py)", rf"{shlex.quote(sys.executable)} {ROOT}/\1", content)
        assert str(ROOT) in programs
        done = subprocess.run(
            ["bash", "-ec", programs], cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        printed += done.stdout
    assert "Traceback" not in printed
    assert (tmp_path / "samples.png").stat().st_size > 10_000
    runs = sorted((tmp_path / "logs/mine").glob("pooler=*/metrics.json"))
    assert len(runs) == 4
    table = (tmp_path / "report" / "report.md").read_text().replace("\\", "")
    assert "roi_align" in table
    assert "roi_pool" in table
    assert (tmp_path / "report" / "report.html").is_file()
    rows = read_results(tmp_path / "found" / RESULTS)
    assert {row["image_id"] for row in rows} <= set(range(1, 241))
    assert len(rows) > 100
