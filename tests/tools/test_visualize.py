"""The program: files, numbers, messages. What the numbers mean is tested in tests/visualization."""

import csv
import re
import sys
from pathlib import Path

import pytest
import visualize
from omegaconf import OmegaConf
from PIL import Image

from detpool.config import Configs
from detpool.evaluation.results import RESULTS, write_results
from detpool.ops import sampling
from detpool.training.runs import build_data

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "visualization.md").read_text()


def table_of(page: str, header: str) -> dict[str, list[str]]:
    """The rows of a Markdown table by their first column, without code marks."""
    lines = page[page.index(header) :].splitlines()[2:]
    rows = {}
    for line in lines:
        if not line.startswith("|"):
            break
        name, *values = (cell.strip().strip("`") for cell in line.strip("|").split("|"))
        rows[name] = values
    return rows


@pytest.mark.parametrize(
    ("command", "header"),
    [
        ("bins", "| operator | cells per bin |"),
        ("continuity", "| operator | J, coarse |"),
        ("gradients", "| operator | alignment |"),
    ],
)
def test_pictures_and_the_numbers_of_the_page(tmp_path, command, header):
    visualize.main([command, "--output", str(tmp_path)])
    with Image.open(tmp_path / f"{command}.png") as picture:
        assert picture.width == 1200
    rows = list(csv.reader((tmp_path / f"{command}.csv").open()))[1:]
    page = table_of(PAGE, header)
    assert [name for name, *_ in rows] == list(page)
    for name, *values in rows:
        for value, written in zip(values, page[name], strict=True):
            # As many digits as the page gives; what is not quite zero is rounding.
            assert float(written.replace("∞", "inf")) == pytest.approx(float(value), rel=5e-3, abs=1e-6)


def test_every_command_of_the_page_is_understood():
    for command in re.findall(r"python tools/visualize.py (.*)", PAGE):
        if "<" not in command:
            visualize._arguments(command.split("#")[0].replace("\\", "").split())


def test_an_image_below_the_bins(tmp_path):
    Image.new("RGB", (100, 80), (0, 90, 200)).save(tmp_path / "blue.png")
    arguments = ["bins", "--operators", "roi_pool", "--output", str(tmp_path / "out")]
    visualize.main([*arguments, "--image", str(tmp_path / "blue.png"), "--bins", "2", "4"])
    with Image.open(tmp_path / "out" / "bins.png") as picture:
        colours = picture.convert("RGB").getcolors(1 << 24)
    # 60 % of the blue over white.
    (_, most), *_ = sorted(((n, c) for n, c in colours if c != (255, 255, 255)), reverse=True)
    assert most == pytest.approx((102, 156, 222), abs=2)


@pytest.fixture
def run_dir(tmp_path):
    """What a finished run on generated shapes leaves, its predictions being the truth."""
    overrides = ["data=shapes", "data.train_images=2", "data.val_images=3", "data.size=64", f"run_dir={tmp_path}"]
    config = Configs(ROOT / "configs", "train").compose(overrides)
    OmegaConf.save(config, tmp_path / "config.yaml", resolve=True)
    truth = build_data(config).val_dataset.ground_truth()["annotations"]
    keys = ("image_id", "category_id", "bbox")
    write_results(tmp_path / RESULTS, [{key: row[key] for key in keys} | {"score": 0.9} for row in truth])
    return tmp_path


def test_predictions_of_a_run(run_dir, capsys):
    visualize.main(["predictions", str(run_dir), "--count", "2"])
    assert len(list((run_dir / "pictures").glob("*.png"))) == 3  # two images and the sheet
    assert "3 pictures in" in capsys.readouterr().out
    visualize.main(["predictions", str(run_dir), "--score", "0.95", "--output", str(run_dir / "none")])
    name = min(path.name for path in (run_dir / "pictures").glob("[0-9]*.png"))
    assert (run_dir / "pictures" / name).read_bytes() != (run_dir / "none" / name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bins", "--operators", "roi_algn"], "unknown operator 'roi_algn'; did you mean 'roi_align'"),
        (
            ["bins", "--operators", "roi_align:alined=True"],
            "roi_align has no argument 'alined'; did you mean 'aligned'",
        ),
        (["bins", "--operators", "roi_align:aligned=true"], "aligned of roi_align must be True or False, got 'true'"),
        (["bins", "--operators", "roi_align_rotated"], "no upright bins"),
        (["bins", "--box", "61", "9", "13", "50"], "--box must have x1 < x2 and y1 < y2, got 61 9 13 50"),
        (["bins", "--box", "0", "0", "inf", "9"], "--box must be finite, got 0 0 inf 9"),
        (
            ["bins", "--box", "0", "0", "1e5", "1e5"],
            "cells is more than can be drawn (40000 cells): give a larger --stride",
        ),
        (["bins", "--box", "-9", "-9", "-2", "-2"], "lies outside the image"),
        (["bins", "--image", "nowhere.png"], "nowhere.png: the image does not exist"),
        (["continuity", "--operators", "deform_roi_pool"], "its bins move by offsets"),
        (["gradients", "--operators", "roi_pool"], "--operators roi_pool: the operator gives boxes no gradient"),
        (["gradients", "--stride", "0"], "must be a positive number, got '0'"),
        (["continuity", "--bins", "3", "x"], "must be a positive whole number, got 'x'"),
        (["predictions", "nowhere"], "nowhere/config.yaml does not exist: is nowhere the directory of a finished run?"),
    ],
)
def test_errors(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        visualize.main(arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_operators_of_ones_own(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_rules.py").write_text(
        "from detpool import ops\n"
        "def centre(features, rois, output_size, spatial_scale):\n"
        "    x, y = ((rois[:, 1:3] + rois[:, 3:]) / 2 * spatial_scale).long().T\n"
        "    return features[rois[:, 0].long(), :, y, x][:, :, None, None].expand(-1, -1, *output_size)\n"
        "ops.register_sampling('exact', ops.sampling.SAMPLING['integral'])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    arguments = ["--output", str(tmp_path), "--box", "13", "9", "61", "50"]
    monkeypatch.setitem(sampling.SAMPLING, "exact", None)  # so that its end takes out what is registered
    del sampling.SAMPLING["exact"]
    names = ["my_rules.centre", "pool:sampling=exact", "pool:sampling=integral"]
    visualize.main(["bins", "--import", "my_rules", "--operators", *names, *arguments])
    (_, *own), (_, *registered), (_, *known) = list(csv.reader((tmp_path / "bins.csv").open()))[1:]
    # The box's centre is at (37, 29.5), in the cell whose centre is at (36, 28).
    assert [float(value) for value in own] == [1, -1, -1.5]
    assert registered == known
    with pytest.raises(SystemExit):
        visualize.main(["bins", "--import", "no_such_module"])
    assert "error: --import no_such_module: there is no module 'no_such_module'" in capsys.readouterr().err


def test_pictures_of_a_run_import_nothing_that_its_config_names(run_dir, capsys):
    config = OmegaConf.load(run_dir / "config.yaml")
    config.imports, config.pooler.operator._target_ = ["antigravity"], "antigravity.operator"
    OmegaConf.save(config, run_dir / "config.yaml")
    with pytest.raises(SystemExit):
        visualize.main(["predictions", str(run_dir)])
    assert "antigravity.operator is not among what a config may name" in capsys.readouterr().err
    assert "antigravity" not in sys.modules


def test_a_box_beyond_its_image(tmp_path, capsys):
    Image.new("RGB", (20, 30)).save(tmp_path / "small.png")
    with pytest.raises(SystemExit):
        visualize.main(["bins", "--image", str(tmp_path / "small.png"), "--box", "25", "5", "40", "20"])
    assert "small.png, which is 20 pixels wide and 30 high" in capsys.readouterr().err


def test_an_output_that_is_no_folder(run_dir, tmp_path, capsys):
    file = tmp_path / "file"
    file.touch()
    for command in (["bins", "--operators", "roi_pool"], ["predictions", str(run_dir)]):
        with pytest.raises(SystemExit) as end:
            visualize.main([*command, "--output", str(file)])
        assert end.value.code == 2
        assert f"error: cannot write {file}: " in capsys.readouterr().err


def test_broken_predictions(run_dir, capsys):
    (run_dir / "predictions.json").write_text("[{}]")
    with pytest.raises(SystemExit):
        visualize.main(["predictions", str(run_dir)])
    assert "row 0 has no image_id" in capsys.readouterr().err
