"""What an operator is shown to read, against its formula worked out by hand."""

import math

import pytest
import torch
from PIL import Image

from detpool import ops
from detpool.visualization import footprint, plot_footprints
from detpool.visualization.style import save

BOX = (13.2, 9.7, 61.4, 50.1)
STRIDE = 8.0
MAP = (8, 10)


def look(operator, box=BOX, size=(3, 3), **arguments):
    def bound(features, rois, output_size, scale):
        return operator(features, rois, output_size=output_size, spatial_scale=scale, **arguments)

    return footprint(bound, box, size, MAP, STRIDE)


def read(found, row, column):
    """(rows, columns) that a bin reads, which must be all of a rectangle."""
    cells = (found.weights[row, column] > 0).nonzero()
    rows, columns = (sorted(set(cells[:, axis].tolist())) for axis in (0, 1))
    assert len(cells) == len(rows) * len(columns)
    return rows, columns


@pytest.mark.parametrize("aligned", [False, True])
def test_points_of_roi_align(aligned):
    """start = x1 s - offset; point t of 2 in bin p at start + (p + (t + 1/2) / 2) size / P, in cells from a centre."""
    found = look(ops.roi_align, sampling_ratio=2, aligned=aligned)
    offset = 0.5 if aligned else 0.0
    for i in range(3):
        for j in range(3):
            expected = [
                tuple(
                    (low / 8 - offset + (p + (t + 0.5) / 2) * (high - low) / 8 / 3 + 0.5) * 8
                    for low, high, p, t in ((BOX[0], BOX[2], j, s), (BOX[1], BOX[3], i, r))
                )
                for r in range(2)
                for s in range(2)
            ]
            torch.testing.assert_close(found.points[i, j], torch.tensor(expected, dtype=torch.float64))
    # An aligned box is cut where it lies; otherwise half a cell of 8 pixels to the right of it and below.
    assert found.bins[0, 0, :2].tolist() == pytest.approx([BOX[0] + 4 - 8 * offset, BOX[1] + 4 - 8 * offset])
    assert found.offset == pytest.approx((4 - 8 * offset, 4 - 8 * offset))
    torch.testing.assert_close(found.weights.sum((2, 3)), torch.ones(3, 3, dtype=torch.float64))


def test_cells_of_roi_pool():
    """x: round(1.65) = 2 to round(7.675) = 8, 7 cells, bins of 7/3; y: 1 to 6, 6 cells, bins of 2."""
    found = look(ops.roi_pool)
    assert [read(found, 0, j)[1] for j in range(3)] == [[2, 3, 4], [4, 5, 6], [6, 7, 8]]
    assert [read(found, i, 0)[0] for i in range(3)] == [[1, 2], [3, 4], [5, 6]]
    assert set(found.weights.flatten().tolist()) == {0.0, 1.0}
    assert found.bins[1, 1].tolist() == pytest.approx([16 + 56 / 3, 24, 16 + 112 / 3, 40])
    assert found.points is None
    assert found.cells == 6
    # Cells 2 to 8 are centred on pixel 44, the box on 37.3; cells 1 to 6 on 32, the box on 29.9.
    assert found.offset == pytest.approx((6.7, 2.1))


def test_cells_of_ps_roi_pool():
    """x: 2 to 8, 6 cells, bins of 2; y: 1 to 6, 5 cells, bins of 5/3: 0 .. 1.67, 1.67 .. 3.33, 3.33 .. 5."""
    found = look(ops.ps_roi_pool)
    assert [read(found, 0, j)[1] for j in range(3)] == [[2, 3], [4, 5], [6, 7]]
    assert [read(found, i, 2)[0] for i in range(3)] == [[1, 2], [2, 3, 4], [4, 5]]
    torch.testing.assert_close(found.weights.sum((2, 3)), torch.ones(3, 3, dtype=torch.float64))
    assert float(found.weights[1, 0].max()) == pytest.approx(1 / 6)


def test_weights_of_pr_roi_pool():
    """The bin 2 .. 3 sees half of the hats of cells 2 and 3; 2 .. 4 a quarter, a half and a quarter of three."""
    found = look(ops.pr_roi_pool, box=(16.0, 16.0, 24.0, 32.0), size=(1, 1))
    expected = torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64)[:, None] * torch.tensor([0.5, 0.5])
    torch.testing.assert_close(found.weights[0, 0, 2:5, 2:4], expected)
    assert float(found.weights.sum()) == pytest.approx(1)


def test_maximum_over_points_shows_the_largest_weight():
    """One point on the centre of a cell reads that cell alone, and a second one half a cell on reads half of two."""
    found = look(
        ops.roi_align, box=(14.0, 16.0, 22.0, 24.0), size=(1, 1), sampling_ratio=2, aligned=True, reduction="max"
    )
    # x: 1.75 - 0.5 + (t + 0.5) / 2 = 1.5, 2; y: 2 - 0.5 + ... = 1.75, 2.25
    expected = torch.tensor([[0.25, 0], [0.75, 0], [0.25, 0]]) + torch.tensor([[0.0, 0.25], [0, 0.75], [0, 0.25]])
    expected[:, 0] *= 0.5
    torch.testing.assert_close(found.weights[0, 0, 1:4, 1:3].float(), expected)


def test_deformed_bins():
    offsets = torch.zeros(1, 2, 1, 2)
    offsets[0, 0, 0, 1] = 1.0  # the second bin to the right, by a tenth of the box
    offsets[0, 1, 0, 0] = -2.0  # the first one up, by two tenths
    found = look(ops.deform_roi_pool, box=(16.0, 16.0, 56.0, 36.0), size=(1, 2), offsets=offsets, sampling_ratio=1)
    assert found.bins[0, 0].tolist() == pytest.approx([16, 12, 36, 32])
    assert found.bins[0, 1].tolist() == pytest.approx([40, 16, 60, 36])
    torch.testing.assert_close(found.points[0, :, 0], torch.tensor([[26.0, 22], [50, 26]], dtype=torch.float64))


def test_what_lies_outside_the_map():
    found = look(ops.roi_align, box=(-40.0, 16.0, 8.0, 32.0), size=(1, 2), sampling_ratio=1, aligned=True)
    assert found.points[0, 0].isnan().all()
    assert found.points[0, 1].tolist() == [[pytest.approx(4), pytest.approx(24)]]  # moved in from x = -4
    assert not found.weights[0, 0].any()
    gone = look(ops.roi_align, box=(-40.0, 16.0, -20.0, 32.0), aligned=True)
    assert all(math.isnan(value) for value in gone.offset)


def test_an_operator_without_upright_bins():
    def rotated(features, rois, size, scale):
        turned = torch.cat([rois, torch.full((1, 1), 30.0)], dim=1)
        return ops.roi_align_rotated(features, turned, size, scale, 2)

    with pytest.raises(ValueError, match="no upright bins"):
        footprint(rotated, BOX, (3, 3), MAP, STRIDE)
    with pytest.raises(ValueError, match="output_size"):
        footprint(lambda f, rois, size, scale: ops.roi_pool(f, rois, 0, scale), BOX, (3, 3), MAP, STRIDE)


def test_the_picture(tmp_path):
    found = {"roi_pool": look(ops.roi_pool), "roi_align": look(ops.roi_align, sampling_ratio=2)}
    save(plot_footprints(found, torch.zeros(3, 64, 80, dtype=torch.uint8)), tmp_path / "a" / "bins.png")
    with Image.open(tmp_path / "a" / "bins.png") as picture:
        assert picture.width == 1200
    with pytest.raises(ValueError, match="got none"):
        plot_footprints({})
