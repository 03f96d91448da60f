"""Finished weights under other poolers and proposals, against a detector whose errors are known."""

import math

import pandas as pd
import pytest
import torch
from constructed import STRIDE, detector, ramps

from detpool.evaluation.box_errors import box_errors
from detpool.evaluation.results import to_detections
from detpool.poolers import AllLevelsPooler, RoIPooler, SpatialPyramidPooler
from detpool.probing.weights import cell_sides, summarize

BOXES = torch.tensor([[40.0, 52, 71, 90], [30.0, 33.5, 88, 97], [45.25, 60, 77, 80]])


def errors(aligned, noise):
    """Signed errors of the constructed detector on its images."""
    torch.manual_seed(0)
    annotations, rows = [], []
    for number, box in enumerate(BOXES, 1):
        target = {"boxes": box[None], "labels": torch.tensor([1])}
        (prediction,), _ = detector(aligned, noise).evaluate([ramps(128, box)], [target])
        rows += to_detections(
            prediction, image_id=number, orig_size=(128, 128), input_size=(128, 128), category_ids=[1]
        )
        x, y, right, bottom = box.tolist()
        shape = [x, y, right - x, bottom - y]
        annotations.append({"image_id": number, "category_id": 1, "bbox": shape, "area": shape[2] * shape[3]})
    truth = {"images": [{"id": n} for n in (1, 2, 3)], "categories": [{"id": 1}], "annotations": annotations}
    return box_errors(truth, rows)


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_weights_that_are_exact_when_aligned_are_half_a_cell_off_when_not(noise):
    right, wrong = errors(True, noise), errors(False, noise)
    assert right["dx"].notna().all()
    # Ramps of slope 1 / 256 in float32 place a centre to 256 x 6e-8 pixels, a dozen operations later to 1e-3.
    for name in ("dx", "dy"):
        assert right[name].abs().max() < 1e-3
        assert (wrong[name] + STRIDE / 2).abs().max() < 1e-3
    # The head keeps the sides of the proposals, which without noise are the objects'.
    for name in ("dw", "dh"):
        assert (right[name].abs().max() < 1e-4) == (noise == 0)
        assert (right[name] - wrong[name]).abs().max() < 1e-3


def test_cells_are_those_of_the_map_that_a_box_is_pooled_from():
    boxes = torch.tensor([[0.0, 0, 20, 20], [0.0, 0, 111, 111], [0.0, 0, 113, 113], [0.0, 0, 500, 500]])
    pooler = RoIPooler(["0", "1", "2"], 7, torch.nn.Identity, strides=[4, 8, 16])
    assert cell_sides(pooler, boxes).tolist() == [4, 4, 8, 16]
    assert cell_sides(SpatialPyramidPooler(["0"], strides=[16]), boxes).tolist() == [16] * 4
    # steps of the square root of 2: a box of 224 pixels belongs to stride 16, one of 160 to the map before
    thirds = RoIPooler(["0", "1", "2", "3"], 7, torch.nn.Identity, strides=[4, 8, 8 * 2**0.5, 16])
    square = torch.tensor([[0.0, 0, side, side] for side in (60.0, 120.0, 160.0, 230.0)])
    assert cell_sides(thirds, square).tolist() == pytest.approx([4, 8, 8 * 2**0.5, 16])
    several = AllLevelsPooler(["0", "1"], 7, torch.nn.Identity, strides=[4, 8])
    assert cell_sides(several, boxes).isnan().all()
    assert cell_sides(torch.nn.Identity(), boxes).isnan().all()


def test_summary_has_means_by_size():
    rows = [[1, "s", 1.0, 4.0], [1, "s", 3.0, 4.0], [1, "s", math.nan, 4.0], [1, "l", 8.0, 16.0]]
    table = pd.DataFrame(rows, columns=["image_id", "size", "dx", "cell_w"])
    table = table.assign(dy=table["dx"], dw=table["dx"], dh=table["dx"], cell_h=table["cell_w"])
    every, small, large = summarize({"AP": 0.5, "AP50": 0.6, "APs": 0.2, "APl": 0.9, "AP/cat": 1.0}, table)
    assert (every["size"], every["objects"], every["found"], every["AP"], every["AP50"], every["dx"]) == (
        "all",
        4,
        3,
        0.5,
        0.6,
        4.0,
    )
    assert every["dx_cells"] == pytest.approx((0.25 + 0.75 + 0.5) / 3)
    assert (small["size"], small["objects"], small["found"], small["AP"]) == ("s", 3, 2, 0.2)
    assert (small["dx"], small["dx_std"], small["dx_cells"]) == (2.0, pytest.approx(2**0.5), 0.5)
    assert (large["size"], large["AP"], "AP50" in large) == ("l", 0.9, False)
