"""Command lines of `tools/probe.py`: what they list, and what they may not."""

import math

import pytest

from detpool.config import Configs, config_folder, replace_parts
from detpool.errors import ConfigError
from detpool.probing.variants import variants_of


def test_each_combination_of_listed_values():
    found = variants_of(["pooler=roi_align,roi_pool", "noise=0,0.1", "data.val_images=5", "seed=1,2"])
    assert len(found) == 8
    first, last = found[0], found[-1]
    assert (first.label, first.proposals, first.measure, first.distance) == (
        "roi_align, seed=1",
        "jittered",
        "noise",
        0,
    )
    assert (last.label, last.distance) == ("roi_pool, seed=2", 0.1)
    assert set(last.overrides) == {
        *("pooler=roi_pool", "data.val_images=5", "seed=2", "proposals=jittered", "model.proposals.noise=0.1"),
        *("model.proposals.boxes_per_object=1", "model.proposals.background_per_object=0"),
    }
    (own,) = variants_of([])
    assert (own.label, own.overrides, own.measure) == ("as trained", (), "")
    assert math.isnan(own.distance)
    labels = [each.label for each in variants_of(["pooler.operator.aligned=true,false", "mask_pooler=roi_pool"])]
    assert labels == ["aligned=true", "aligned=false"]
    labels = [each.label for each in variants_of(["pooler=roi_align,roi_pool", "proposals=rpn,jittered"])]
    assert labels == [f"{pooler}, proposals={p}" for pooler in ("roi_align", "roi_pool") for p in ("rpn", "jittered")]
    (single,) = variants_of(["pooler=roi_pool", "mask_pooler=roi_pool", "data.val_images=5"])
    assert single.label == "roi_pool, mask_pooler=roi_pool"
    (several,) = variants_of(["iou=0.5", "model.proposals.boxes_per_object=8"])
    assert "model.proposals.boxes_per_object=8" in several.overrides


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["noise=0", "iou=1"], "give one"),
        (["noise=0", "proposals=rpn"], "proposals=jittered, and not rpn"),
        (["noise=small"], "noise=small must be a number"),
        (["nois=0"], "did you mean 'noise'"),
        (["pooler=roi_align", "pooler=roi_pool"], "given twice"),
        (["pooler"], "expected key=value"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ConfigError, match=message):
        variants_of(arguments)


def test_the_poolers_of_stages_are_replaced_as_others_are():
    folder = config_folder()
    own = ["model=cascade_mask_rcnn", "stage2_pooler=roi_align", "stage3_pooler=pr_roi_pool"]
    config = Configs(folder, "train").compose(own)
    assert replace_parts(config, ["stage3_pooler=roi_pool", "mask_pooler=roi_pool", "seed=1"], folder) == ["seed=1"]
    parts = [config[part] for part in ("pooler", "stage2_pooler", "stage3_pooler", "mask_pooler")]
    operators = [part.operator._target_.rpartition(".")[2] for part in parts]
    assert operators == ["roi_align", "roi_align", "roi_pool", "roi_pool"]
    assert parts[3].output_size == 14, "what the trained head expects"
