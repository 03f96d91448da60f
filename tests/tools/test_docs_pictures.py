import csv

import docs_pictures
import pytest
import torch
from matplotlib.patches import Polygon, Rectangle

from detpool import ops


def test_the_finding_is_what_the_results_say() -> None:
    """Oracle: the mean of the runs' own rows."""
    with (docs_pictures.SUMMARY.parent / "runs.csv").open(newline="") as file:
        runs = list(csv.DictReader(file))
    figure = docs_pictures.finding()
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    for panel, stride in zip(figure.axes, ("16", "32"), strict=True):
        assert panel.get_title().endswith(stride)
        bars = [patch.get_width() for patch in panel.patches if isinstance(patch, Rectangle)]
        drawn = dict(zip(names, bars, strict=True))
        for name, pooler in (("RoIPool", "roi_pool"), ("RoIWarp", "roi_warp"), ("Precise RoI pooling", "pr_roi_pool")):
            values = [
                float(run["mask_AP75"])
                for run in runs
                if f"pooler={pooler}" in run["configuration"] and f"output_stride={stride}" in run["data"]
            ]
            assert len(values) == 3
            assert drawn[name] == pytest.approx(100 * sum(values) / 3)


def test_the_turned_bins_are_where_the_operator_reads() -> None:
    """Oracle: on a map that holds each cell's place a bin's output is its centre."""
    x1, y1, x2, y2 = docs_pictures.BOX
    centre = torch.tensor([(x1 + x2) / 2, (y1 + y2) / 2])
    y, x = torch.meshgrid(torch.arange(40.0), torch.arange(40.0), indexing="ij")
    places = (torch.stack([x, y])[None] + 0.5) * docs_pictures.STRIDE
    box = torch.tensor([[0, 160, 160, x2 - x1, y2 - y1, docs_pictures.ANGLE]])
    read = ops.roi_align_rotated(places, box, docs_pictures.BINS, 1 / docs_pictures.STRIDE, sampling_ratio=2)[0] - 160
    panel = docs_pictures.rotated("roi_align_rotated").axes[0]
    bins = [torch.from_numpy(patch.get_xy()[:4]) for patch in panel.patches if isinstance(patch, Polygon)]
    drawn = torch.stack(bins).mean(1) - centre
    torch.testing.assert_close(drawn.float(), read.flatten(1).T, atol=1e-3, rtol=0)


def test_pictures_are_there_and_small() -> None:
    drawn = {path.stem for path in (docs_pictures.IMAGES / "operators").glob("*.png")}
    operators = {
        name for name in ops.__all__ if name.islower() and name.endswith(("pool", "align", "warp", "spp", "ated"))
    }
    assert drawn == operators - {"pool"}
    assert all(path.stat().st_size < 60_000 for path in (docs_pictures.IMAGES / "operators").glob("*.png"))
