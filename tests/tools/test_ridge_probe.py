"""The whole program, small: random weights, generated shapes."""

import csv
import json
import math

import pytest
from ridge_probe import main

from detpool.config import Configs, config_folder
from detpool.training import runs

SMALL = ["backbone=small", "backbone.widths=[8,8,16]", "backbone.output_stride=8", "data=shapes", "data.size=64"]
SMALL += ["data.masks=true", "data.num_workers=0", "images=12", "held_out=6", "features=196", "threads=1"]


def rows_of(folder):
    with (folder / "probe.csv").open() as file:
        return list(csv.DictReader(file))


def test_poolings_are_compared_and_bits_repeat(tmp_path, capsys):
    command = [*SMALL, "pooler=roi_pool,roi_align,spp"]
    main([*command, f"output={tmp_path / 'a'}"])
    printed = capsys.readouterr().out
    main([*command, f"output={tmp_path / 'b'}"])
    first, second = rows_of(tmp_path / "a"), rows_of(tmp_path / "b")
    assert [row["pooler"] for row in first] == ["roi_pool", "roi_align", "spp"]
    assert [row | {"seconds": ""} for row in first] == [row | {"seconds": ""} for row in second]
    pool, align, pyramid = first
    assert pool["IoU/before"] == align["IoU/before"] == pyramid["IoU/before"]  # the same boxes
    assert pool["R2/class"] != align["R2/class"]
    assert 0.5 < float(pool["IoU/before"]) < float(pool["IoU/after"]) + 0.2 < 1.2
    assert math.isfinite(float(align["mask_AP75"]))
    assert pyramid["mask_AP75"] == ""  # its bins are no square
    record = json.loads((tmp_path / "a" / "probe.json").read_text())
    assert record["settings"]["features"] == 196
    assert record["command"].endswith(f"output={tmp_path / 'a'}")
    assert "roi_align" in printed
    assert "R2/box" in printed


def test_the_backbone_of_a_run(tmp_path):
    """All maps that its detector pools, with its weights: two runs of other seeds give other numbers."""
    tiny = [
        "backbone=small",
        "backbone.widths=[8,8,16,16]",
        "model.fpn_channels=8",
        "data.size=64",
        "head_pool.channels=8",
    ]
    limits = [
        "trainer.max_epochs=1",
        "trainer.limit_train_batches=1",
        "trainer.limit_val_batches=1",
        "data.num_workers=0",
    ]
    found = []
    for seed in (0, 1):
        run = [f"seed={seed}", f"run_dir='{tmp_path / f'run{seed}'}'", "evaluation.pictures=0", "progress=false"]
        runs.train(
            Configs(config_folder(), "train").compose(
                [*tiny, *limits, *run, "data.train_images=8", "data.val_images=2"]
            )
        )
        main([*SMALL, f"ckpt_path={tmp_path / f'run{seed}'}", f"output={tmp_path / 'probe'}", "pooler=roi_align"])
        found += rows_of(tmp_path / "probe")
    assert found[0]["IoU/before"] == found[1]["IoU/before"]
    assert found[0]["R2/class"] != found[1]["R2/class"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pooler=roi_pol"], "did you mean 'roi_pool'?"),
        (["features=10"], "features: 10 are fewer than the 7 x 7 bins of a pooled map"),
        (["images=3"], "no box has an object, of the images to fit to or of those that choose the penalty"),
        (["pooler=ps_roi_pool"], "pooler, on maps of 16 channels"),
        (["images=0"], "must be a positive whole number, got '0'"),
        (["ckpt_path=/nowhere"], "/nowhere"),
    ],
)
def test_what_cannot_be_done_is_said(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([*SMALL, *arguments, f"output={tmp_path}"])
    assert message in capsys.readouterr().err
