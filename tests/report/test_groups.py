"""Which runs are averaged and compared, and what they are called."""

from __future__ import annotations

import os

import pytest

from detpool.errors import ConfigError
from detpool.report.collect import collect
from detpool.report.groups import check_baseline, differences, find_baseline, make_sections


def sections_of(folder):
    found = collect([folder])
    assert found.problems == []
    return make_sections(found.runs)


def labels(section):
    return {group.label: list(group.runs) for group in section.groups}


def test_seeds_and_places_make_no_difference(make_run, tmp_path):
    make_run("a/0", seed=0, **{"evaluation.pictures": 0, "ckpt_path": "last.ckpt"})
    make_run("b/1", seed=1, task="other")
    (section,) = sections_of(tmp_path)
    assert section.title == "shapes, test split"
    assert labels(section) == {"pooler=roi_align": [0, 1]}


def test_whole_operators_are_named_by_their_function(sweep):
    (section,) = sections_of(sweep)
    assert labels(section) == {"pooler=roi_pool": [0, 1, 2], "pooler=pr_roi_pool": [0, 1, 2]}


def test_leaves_are_named_where_they_differ(make_run, tmp_path):
    make_run("0", **{"optim.optimizer.lr": 0.01})
    make_run("1", **{"pooler.operator.sampling_ratio": 4})
    make_run("2", pooler="roi_pool")
    (section,) = sections_of(tmp_path)
    # Only objects of one function are compared argument by argument.
    assert list(labels(section)) == [
        "pooler=roi_align, pooler.sampling_ratio=2, optimizer.lr=0.01",
        "pooler=roi_align, pooler.sampling_ratio=4, optimizer.lr=0.02",
        "pooler=roi_pool, optimizer.lr=0.02",
    ]


def test_a_setting_that_is_off_is_as_good_as_none(make_run, tmp_path):
    make_run("0", seed=0)
    make_run("1", seed=1, context=None, **{"trainer.gradient_clip_val": None})
    make_run("2", **{"trainer.gradient_clip_val": 10})
    (section,) = sections_of(tmp_path)
    assert labels(section) == {"trainer.gradient_clip_val=unset": [0, 1], "trainer.gradient_clip_val=10": [0]}


def test_how_data_is_loaded_is_a_setting_and_which_data_it_is_a_section(make_run, tmp_path):
    make_run("0")
    make_run("1", **{"data.batch_size": 4})
    make_run("2", **{"data.size": 64})
    make_run("3", **{"evaluation.split": "val"})
    sections = sections_of(tmp_path)
    assert [section.title for section in sections] == [
        "shapes, test split (size=128)",
        "shapes, test split (size=64)",
        "shapes, val split (size=128)",
    ]
    assert list(labels(sections[0])) == ["data.batch_size=8", "data.batch_size=4"]


def test_other_data_sets_are_other_sections(make_run, tmp_path):
    make_run("0")
    make_run("1", data={"_target_": "detpool.data.coco.coco_datamodule", "root": "/coco", "seed": 0})
    assert [section.title for section in sections_of(tmp_path)] == ["shapes, test split", "coco, test split"]


def test_an_evaluation_of_a_run_does_not_count_beside_it(make_run, tmp_path):
    """`eval.py` leaves a run directory with the settings and seed of the training."""
    evaluated = make_run("eval", 0.5, curves=False)
    trained = make_run("train", 0.5)
    again = make_run("again", 0.6)
    for when, folder in enumerate([again, trained, evaluated]):
        os.utime(folder / "metrics.json", (when, when))
    (section,) = sections_of(tmp_path)
    (group,) = section.groups
    assert [run.folder for run in group.runs.values()] == [trained]
    assert sorted(str(problem) for problem in section.problems) == [
        f"{again}: left out: it has the settings and seed of {trained}",
        f"{evaluated}: left out: it has the settings and seed of {trained}",
    ]


def test_differences_of_nested_objects():
    lp = {"_target_": "detpool.ops.reductions.Lp", "p": 3}
    trees = [
        {"pooler": {"operator": {"_target_": "ops.pool", "reduction": "mean"}}, "a": {"x": {"rate": 1}}},
        {"pooler": {"operator": {"_target_": "ops.pool", "reduction": lp}}, "a": {"x": {"rate": 2}}},
        {"pooler": {"operator": {"_target_": "ops.pool"}}, "b": {"x": {"rate": 1}}, "a": {"x": {"rate": 1}}},
    ]
    assert differences(trees) == [
        [("pooler.reduction", "mean"), ("x.rate", "1"), ("b", "unset")],
        [("pooler.reduction", "Lp(p=3)"), ("x.rate", "2"), ("b", "unset")],
        [("pooler.reduction", "unset"), ("x.rate", "1"), ("b", '{"x": {"rate": 1}}')],
    ]


def test_keys_that_would_be_the_same_are_written_out():
    trees = [{"a": {"x": {"rate": 1}}, "b": {"x": {"rate": 1}}}, {"a": {"x": {"rate": 2}}, "b": {"x": {"rate": 2}}}]
    assert differences(trees)[0] == [("a.x.rate", "1"), ("b.x.rate", "1")]


def test_a_pooler_that_follows_the_boxes_pooler_is_not_named():
    def tree(boxes, masks):
        return {"pooler": {"operator": {"_target_": boxes}}, "mask_pooler": {"operator": {"_target_": masks}}}

    followed = [tree("a.roi_pool", "a.roi_pool"), tree("a.roi_align", "a.roi_align")]
    assert differences(followed) == [[("pooler", "roi_pool")], [("pooler", "roi_align")]]
    own = [*followed, tree("a.roi_align", "a.roi_pool")]
    assert differences(own)[2] == [("pooler", "roi_align"), ("mask_pooler", "roi_pool")]


def test_true_and_one_are_not_the_same():
    """As limits of batches 1.0 is all of them, 1 is one."""
    assert differences([{"limit": 1.0}, {"limit": 1}, {"limit": True}]) == [
        [("limit", "1.0")],
        [("limit", "1")],
        [("limit", "true")],
    ]


def test_baseline(make_run, tmp_path):
    for number, (pooler, rate) in enumerate([("roi_pool", 0.1), ("roi_align", 0.1), ("roi_align", 0.2)]):
        make_run(str(number), pooler=pooler, **{"optim.optimizer.lr": rate})
    sections = sections_of(tmp_path)
    (section,) = sections
    assert find_baseline(section, None) is section.groups[0]
    assert find_baseline(section, "pooler=roi_pool") is section.groups[0]
    assert find_baseline(section, "optimizer.lr=0.1, pooler=roi_align") is section.groups[1]
    assert find_baseline(section, section.groups[2].label) is section.groups[2]
    assert find_baseline(section, "pooler=roi_warp") is None
    with pytest.raises(ConfigError, match="'pooler=roi_align' fits 2 configurations of shapes"):
        find_baseline(section, "pooler=roi_align")
    check_baseline(sections, "pooler=roi_pool")
    with pytest.raises(ConfigError, match="'pooler=roi_pol' is no configuration .* did you mean 'pooler=roi_pool"):
        check_baseline(sections, "pooler=roi_pol")
