"""That everything written in a plot can be read: within the figure, and not on top of the panels."""

import warnings

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from detpool.report import plots
from detpool.report.collect import collect
from detpool.report.groups import make_sections

LONG = "a_pooler_with_a_rather_long_name_that_no_line_of_a_legend_of_many_columns_would_hold"


@pytest.fixture
def groups(make_run, tmp_path):
    """17 configurations with labels of three settings each, as a study of a grid has them."""
    for number in range(17):
        settings = {"trainer.max_epochs": number, "optim.optimizer.lr": 0.01 * number}
        make_run(f"logs/{number}", pooler=f"{LONG}_{number}", **settings)
    (section,) = make_sections(collect([tmp_path / "logs"]).runs)
    return section.groups


@pytest.mark.parametrize("name", ["metric", "iou", "curves", "cost", "sizes", "errors"])
def test_long_labels_of_many_configurations_have_room(groups, name):
    figure = {
        "metric": lambda: plots.plot_metric(groups, groups[0], "AP"),
        "iou": lambda: plots.plot_iou(groups, groups[0], ""),
        "curves": lambda: plots.plot_curves(groups, "AP"),
        "cost": lambda: plots.plot_cost(groups, "AP"),
        "sizes": lambda: plots.plot_sizes(groups, {"APs": "small: below 32² pixels", "APm": "medium"}),
        "errors": lambda: plots.plot_errors(groups),
    }[name]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Matplotlib's, that there is no room
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    whole = figure.bbox.padded(1)
    boxes = [axes.get_tightbbox(canvas.get_renderer()) for axes in figure.axes]
    legends = [legend.get_window_extent() for legend in figure.legends]
    for box in (*boxes, *legends):
        assert whole.x0 <= box.x0 <= box.x1 <= whole.x1
        assert whole.y0 <= box.y0 <= box.y1 <= whole.y1
    assert not any(box.overlaps(legend) for box in boxes for legend in legends)
    for axes, after in zip(figure.axes, figure.axes[1:], strict=False):
        assert axes.xaxis.label.get_window_extent().x1 < after.xaxis.label.get_window_extent().x0
    assert all(axes.get_window_extent().height > 150 for axes in figure.axes)


def test_panels_without_a_curve_are_left_out(make_run, tmp_path):
    folder = make_run("logs/0")
    (folder / "csv" / "metrics.csv").write_text("epoch,step,train/loss_epoch\n0,9,1.0\n1,18,0.5\n")
    (section,) = make_sections(collect([tmp_path / "logs"]).runs)
    assert [panel.get_ylabel() for panel in plots.plot_curves(section.groups, "AP").axes] == [
        "training loss (mean of the epoch)"
    ]
