"""The numbers of continuity: of functions whose jumps and kinks are known, and of the operators."""

import math

import pytest
import torch

from detpool import ops
from detpool.visualization import measure_continuity, plot_continuity
from detpool.visualization.continuity import GROW
from detpool.visualization.features import Waves

BOX = (13.2, 9.7, 61.4, 50.1)


def measure(operator, box=BOX, size=(3, 3), **options):
    return measure_continuity(operator, box, size, 8.0, **options)


def of_x(function):
    """An operator that gives a function of x1, in cells, and reads no feature."""
    return lambda features, rois, size, scale: function(rois[:, 1] * scale).reshape(-1, 1, 1, 1)


def test_a_step():
    result = measure(of_x(lambda x: 0.7 * (x % 1 >= 0.3)))
    assert result.jumps == pytest.approx((0.7, 0.7))
    assert result.discontinuity == pytest.approx(0.7)
    assert result.kink == math.inf


def test_a_step_on_a_slope():
    """J(d) = 0.7 + 2 d in cells; the fine step is 2^-13 cells, the coarse one 2^-9."""
    result = measure(of_x(lambda x: 0.7 * (x >= 4.9) + 2 * x))
    assert result.jumps == pytest.approx((0.7 + 2 * 2**-9, 0.7 + 2 * 2**-13))
    assert result.discontinuity == pytest.approx(0.7)


def test_a_kink():
    """From -1.5 to 1.5 a cell, which is 8 pixels; between two steps, at a place that is no multiple of either."""
    result = measure(of_x(lambda x: 1.5 * (x - 5.25).abs()))
    assert result.jumps[0] == pytest.approx(16 * result.jumps[1])
    assert result.discontinuity == pytest.approx(0, abs=1e-12)
    assert result.kink == pytest.approx(3 / 8)


def test_a_smooth_curve():
    result = measure(of_x(lambda x: x.square() + (5 * x).sin()))
    assert result.discontinuity == pytest.approx(0, abs=1e-6)
    assert result.kink == pytest.approx(0, abs=1e-6)


def test_shift_errors_of_what_is_known():
    assert measure(of_x(torch.zeros_like)).shift_error == 0
    # x1 itself moves by half a cell on average: 64 quasi-random points are close to it.
    assert measure(of_x(lambda x: x)).shift_error == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("name", ["roi_pool", "roi_warp", "ps_roi_pool"])
def test_rounding_jumps_however_small_the_step(name):
    result = measure(getattr(ops, name), position_sensitive=name.startswith("ps"))
    assert result.jumps[1] == pytest.approx(result.jumps[0])
    assert result.discontinuity > 0.1
    assert result.kink == math.inf


def test_roi_align_is_continuous_with_kinks():
    """One point in one bin: where it passes the centre of cell i its slope jumps by F[i + 1] - 2 F[i] + F[i - 1]."""
    seen = []

    def operator(features, rois, size, scale):
        seen.append((features, rois))
        return ops.roi_align(features, rois, size, scale, 1, True)

    result = measure(operator, size=(1, 1))
    assert result.jumps[0] == pytest.approx(16 * result.jumps[1], rel=0.01)
    assert result.discontinuity < 1e-5

    features, rois = seen[0][0], torch.cat([rois for features, rois in seen if features is seen[0][0]])
    x = (rois[:, 1] + rois[:, 3]) / 2 / 8 - 0.5
    y = float((rois[0, 2] + rois[0, 4]) / 2 / 8 - 0.5)
    row = int(y)
    line = (row + 1 - y) * features[0, :, row] + (y - row) * features[0, :, row + 1]
    passed = range(math.ceil(float(x.min())), math.floor(float(x.max())) + 1)
    assert len(passed) == 3
    bends = [(line[:, i + 1] - 2 * line[:, i] + line[:, i - 1]).abs().max() for i in passed]
    assert result.kink == pytest.approx(float(max(bends)) / 8, rel=1e-4)


def test_pr_roi_pool_is_smooth():
    rough, smooth = measure(lambda *a: ops.roi_align(*a, 2, True)), measure(ops.pr_roi_pool)
    assert smooth.discontinuity < 1e-5
    assert smooth.kink < 1e-3 * rough.kink
    assert smooth.shift_error < rough.shift_error


def test_adaptive_sampling_jumps_where_a_box_grows_past_a_whole_cell():
    """ceil(size / 3 bins) of points: from 47 / 24 to 71 / 24 cells a bin passes 2."""
    box = (13.2, 9.7, 60.2, 50.1)
    assert measure(lambda *a: ops.roi_align(*a, 0, True), box, motion=GROW).kink == math.inf
    assert measure(lambda *a: ops.roi_align(*a, 2, True), box, motion=GROW).kink < 1


def test_waves():
    waves = Waves(channels=50, seed=3)
    here = waves.map((20, 30))
    assert here.shape == (1, 50, 20, 30)
    torch.testing.assert_close(waves.map((20, 30), (1, 2))[..., 2:, 1:], here[..., :-2, :-1])
    assert float(here.square().mean()) == pytest.approx(1, abs=0.05)
    # No two neighbours of a wave of four cells differ by more than its amplitude times sqrt 2.
    assert float(here.diff(dim=3).abs().max()) < 16 * math.sqrt(2 / 16) * math.sqrt(2)


def test_the_figure():
    results = {"roi_pool": measure(ops.roi_pool), "pr_roi_pool": measure(ops.pr_roi_pool)}
    figure = plot_continuity(results)
    texts = [panel.get_xlabel() for panel in figure.axes]
    assert f"discontinuity {results['roi_pool'].discontinuity:.3f}" in texts[0]
    assert "kink ∞" in texts
    with pytest.raises(ValueError, match="got none"):
        plot_continuity({})
