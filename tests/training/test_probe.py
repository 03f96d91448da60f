"""`tools/probe.py` and `tools/shift.py` on a trained run: as `eval.py` where nothing differs, and what they refuse."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import probe as probe_tool
import pytest
import shift as shift_tool
from scipy.spatial.distance import cdist

import detpool
from detpool.errors import ConfigError, WeightsError
from detpool.probing.shifts import coarsest_stride, detect_shifted
from detpool.probing.variants import configure, variants_of
from detpool.probing.weights import METRICS, probe
from detpool.report.collect import collect
from detpool.run_record import read_metrics
from detpool.training import runs

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="module")
def run(compose_tiny, tmp_path_factory):
    """The directory of a finished run with an RPN."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    runs.train(compose_tiny(folder, "data.val_images=6"))
    return folder


def probed(run, *arguments):
    results = []
    for variant in variants_of(arguments):
        config = configure(run, variant, CONFIGS)
        results.append(probe(config, runs.find_checkpoint(run), runs.build_data(config)))
    return results


def test_without_changes_metrics_are_those_of_the_run(run):
    ((metrics, table, notes),) = probed(run)
    recorded = read_metrics(run / "metrics.json")["metrics"]
    assert {name: metrics[name] for name in METRICS if name in metrics} == pytest.approx(
        {name: recorded[name] for name in METRICS if name in recorded}
    )
    assert notes == []
    assert (table["cell_w"] == table["cell_h"]).all()


def test_of_a_part_of_the_images_the_objects_of_that_part_count(run):
    ((_, whole, _),) = probed(run)
    ((_, part, _),) = probed(run, "trainer.limit_val_batches=1", "trainer.limit_test_batches=1")
    assert 0 < part["image_id"].nunique() < whole["image_id"].nunique()


def test_proposals_of_objects_take_the_place_of_the_rpn(run, capsys):
    results = probed(run, "noise=0,0.3", "pooler=roi_align,pr_roi_pool")
    assert len(results) == 4
    assert "weights of rpn" in capsys.readouterr().out
    # An object each is proposed: as many detections at most as objects times classes, and both poolers see the same.
    assert all(len(table) == len(results[0][1]) for _, table, _ in results)


def test_what_does_not_fit_is_said(run):
    for argument, error, message in [
        ("pooler=ps_roi_pool", Exception, "multiple of 7 x 7 channels"),
        ("pooler.output_size=5", WeightsError, r"box_head.fc6.weight .*heads take pooled features of the shape"),
        ("pooler=all_levels pooler.fusion=concat", WeightsError, "missing: model.roi_heads.box_roi_pool.mix.weight"),
        ("proposals=given", ConfigError, "data.val_proposals must name files"),
        ("mask_pooler=roi_pool", ConfigError, "mask_pooler: the run has none to replace"),
        ("pooler=roi_pol", ConfigError, "did you mean 'roi_pool'"),
        ("pooler.operator.alignedd=true", ConfigError, "did you mean 'aligned'"),
    ]:
        with pytest.raises(error, match=message):
            probed(run, *argument.split())


def test_moves_by_the_coarsest_stride_change_nothing_and_others_do(run):
    """The receptive field must not reach the border of the canvas, and no limit may drop one of many boxes."""
    limits = ["pre_nms_top_n_test=100000", "post_nms_top_n_test=100000", "score_thresh=0.35"]
    settings = [*(f"model.rpn.{limit}" for limit in limits), "model.roi_heads.detections_per_img=10000"]
    predictor = detpool.load(run, *settings, "model.roi_heads.score_thresh=0.1", device="cpu")
    dataset = runs.build_data(predictor.config).val_dataset
    stride = coarsest_stride(predictor.model)
    assert stride == 64
    for found in detect_shifted(predictor, dataset, [0, 1], [0, 5, stride], margin=128):
        # Nearly equal scores may change places: to the nearest detection of the class, pixels and hundredths of scores.
        rows = [np.column_stack([f.boxes, 100 * f.scores, 1e4 * f.category_ids]) for f in found]
        still, moved, whole = rows
        assert len(still) == len(whole) > 5
        # Coordinates of the canvas, up to 400 pixels, have steps of 3e-5, which deltas of boxes multiply.
        assert cdist(still, whole, "chebyshev").min(1).max() < 1e-2
        assert cdist(still, moved, "chebyshev").min(1).max() > 0.1


def test_programs_write_what_they_print_and_name_mistakes(run, tmp_path, capsys):
    probe_tool.main([f"ckpt_path={run}", "pooler=roi_align,roi_pool", "noise=0,0.2", f"output={tmp_path / 'probe'}"])
    table = pd.read_csv(tmp_path / "probe" / "probe.csv")
    every = table[table["size"] == "all"]
    assert every["pooler"].tolist() == ["roi_align *", "roi_align *", "roi_pool", "roi_pool"]
    assert every["distance"].tolist() == [0, 0.2] * 2
    assert {"AP", "AP75", "dx", "dh_cells", "found"} <= {*table}
    assert (tmp_path / "probe" / "probe.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert f"{100 * every['AP'].iloc[0]:.1f}" in printed
    shift_tool.main([f"ckpt_path={run}", "images=2", "shifts=0,3,64", "margin=0"])
    record = json.loads((run / "shift.json").read_text())
    assert [row["shift"] for row in record["shifts"]] == [0, 3, 64]
    assert (record["images"], record["stride"], record["margin"]) == (2, 64, 0)
    assert record["summary"].keys() >= {"AP_std", "AP_range", "iou", "kept"}
    assert collect([run]).runs[0].numbers()["shift/AP_range"] == record["summary"]["AP_range"]
    capsys.readouterr()
    for tool, arguments, message in [
        (probe_tool, [], "no value given for ckpt_path"),
        (probe_tool, ["ckpt_path=nowhere"], "does not exist"),
        (probe_tool, [f"ckpt_path={run}", "poler=roi_pool"], "did you mean 'pooler'"),
        (shift_tool, ["ckpt_path=nowhere"], "does not exist"),
        (shift_tool, [f"ckpt_path={tmp_path / 'probe'}"], "neither a run directory nor a folder of finished runs"),
        (shift_tool, [f"ckpt_path={run}", "shifts=0"], "two whole numbers of pixels or more"),
        (shift_tool, [f"ckpt_path={run}", "direction=left"], "unknown name 'left'"),
        (shift_tool, [f"ckpt_path={run}", "pooler.output_size=7"], "name a folder for what is found then"),
    ]:
        with pytest.raises(SystemExit) as ended:
            tool.main(arguments)
        assert ended.value.code == 2
        assert message in capsys.readouterr().err
