"""That everything written in a plot can be read, and that plots show the numbers of the runs."""

from itertools import pairwise

import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from detpool.report import plots
from detpool.report.collect import collect
from detpool.report.groups import make_sections

LONG = "a_pooler_with_a_rather_long_name_that_no_line_of_a_legend_of_many_columns_would_hold"


COSTS = {"step_ms": 250.0, "inference_ms": 90.0, "step_mib": 40.0}
"""Of every configuration."""


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn, as such, by the names of their files."""
    drawn = {}
    monkeypatch.setattr(plots, "_picture", lambda figure, name, *_: drawn.update({name: figure}))
    return drawn


def draw_all(folder, by=None):
    sections = make_sections(collect([folder]).runs, by)
    for draw in (plots.plot_metric, plots.plot_iou, plots.plot_curves, plots.plot_sizes):
        draw(sections[0], "AP")
    costs = pd.DataFrame(COSTS, sections[0].runs)
    plots.plot_cost(sections[0], "AP", costs)
    plots.plot_errors(sections[0], "AP")
    if by:
        plots.plot_across(sections, "AP")


def test_long_labels_of_many_configurations_have_room(make_run, tmp_path, figures):
    for number in range(18):  # labels of three settings each, as a study of a grid has them
        settings = {"trainer.max_epochs": number // 2, "optim.optimizer.lr": 0.01 * (number % 2)}
        make_run(f"logs/{number}", pooler=f"{LONG}_{number // 2}", **settings)
    draw_all(tmp_path / "logs", by="optim.optimizer.lr")
    assert set(figures) == {"AP", "iou", "training", "cost", "sizes", "errors", "differences"}
    for figure in figures.values():
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        boxes = [axes.get_tightbbox(canvas.get_renderer()) for axes in figure.axes]
        legends = [legend.get_window_extent() for legend in figure.legends]
        # What is saved is as large as all of it.
        assert not any(box.overlaps(legend) for box in boxes for legend in legends)
        for axes, after in pairwise(figure.axes):
            assert axes.xaxis.label.get_window_extent().x1 < after.xaxis.label.get_window_extent().x0
        assert all(axes.get_window_extent().height > 150 for axes in figure.axes)
        ticks = [label.get_window_extent() for label in figure.axes[0].get_yticklabels() if label.get_text()]
        assert not any(one.overlaps(other) for one, other in pairwise(ticks))


def test_panels_show_what_was_recorded(make_run, tmp_path, figures):
    record = {"errors": None, "peak_memory_bytes": None}
    folder = make_run("logs/0", 0.4, record=record)
    (folder / "csv" / "metrics.csv").write_text("epoch,step,train/loss_epoch\n0,9,1.0\n1,18,0.5\n")
    make_run("logs/1", 0.6, seed=1, curves=False, record=record)
    draw_all(tmp_path / "logs")
    assert set(figures) == {"AP", "iou", "training", "cost", "sizes"}
    (panel,) = figures["training"].axes
    assert panel.get_ylabel() == "training loss (mean of the epoch)"
    assert [line.get_xydata().tolist() for line in panel.lines] == [[[1, 1], [2, 0.5]], []]
    (panel,) = figures["AP"].axes
    points, mean = panel.lines
    assert points.get_xdata() == pytest.approx([40, 60])
    assert mean.get_xdata() == pytest.approx([50])
    assert figures["cost"].axes[0].lines[0].get_xdata().tolist() == [250, 250]
