"""Which runs are averaged and compared, and what they are called."""

from __future__ import annotations

import os

import pandas as pd
import pytest

from detpool.errors import ConfigError
from detpool.report.collect import collect
from detpool.report.groups import make_sections
from detpool.report.names import differences, flatten
from detpool.study.layout import write_plan


def sections_of(folder, **options):
    found = collect([folder])
    assert found.problems == []
    return make_sections(found.runs, **options)


def labels(section):
    return {label: list(runs) for label, runs in section.runs.items()}


def compare(*configs):
    return differences(pd.DataFrame([flatten(config) for config in configs]).fillna("unset"))


def test_seeds_and_places_make_no_difference(make_run, tmp_path):
    make_run("a/0", seed=0, **{"evaluation.pictures": 0, "ckpt_path": "last.ckpt"})
    # A setting that is off is as good as none, and samples do not depend on who loads them.
    make_run("b/1", seed=1, task="other", context=None, **{"data.num_workers": 4, "data.pin_memory": True})
    (section,) = sections_of(tmp_path)
    assert section.title == "shapes, test split"
    assert labels(section) == {"pooler=roi_align": [0, 1]}


def test_runs_of_before_a_setting_are_those_of_today_where_it_changes_nothing(make_run, tmp_path):
    make_run("0", seed=0)
    off = {"optim.backbone_rate": 1.0, "optim.frozen": [], "data.drop_others": "objects", "data.split_seed": 0}
    off |= {"model.roi_heads": {"nms": "hard", "box_loss": "smooth_l1"}, "model.class_agnostic": False}
    make_run("1", seed=1, **off)
    make_run("2", seed=2, **off | {"optim.backbone_rate": 0.1})
    (section,) = sections_of(tmp_path)
    assert sorted(list(seeds) for seeds in labels(section).values()) == [[0, 1], [2]]


def test_evaluations_of_a_part_of_the_images_are_not_compared_with_those_of_all(make_run, tmp_path):
    make_run("0", **{"trainer.limit_test_batches": 0.1})
    make_run("1", **{"trainer.limit_test_batches": 1.0})
    make_run("2", seed=1, **{"trainer.limit_test_batches": 1.0})
    make_run("3", pooler="roi_pool", **{"trainer.limit_test_batches": 1.0, "trainer.limit_val_batches": 0})
    part, whole = sections_of(tmp_path)
    assert part.title == "shapes, test split (trainer.limit_test_batches=0.1)"
    assert sorted(list(seeds) for seeds in labels(whole).values()) == [[0], [0, 1]]


def test_leaves_are_named_where_they_differ(make_run, tmp_path):
    make_run("0", **{"optim.optimizer.lr": 0.01})
    make_run("1", **{"pooler.operator.sampling_ratio": 4})
    make_run("2", pooler="roi_pool")
    (section,) = sections_of(tmp_path)
    # Only objects of one function are compared argument by argument.
    assert list(section.runs) == [
        "pooler=roi_align, pooler.sampling_ratio=2, optimizer.lr=0.01",
        "pooler=roi_align, pooler.sampling_ratio=4, optimizer.lr=0.02",
        "pooler=roi_pool, optimizer.lr=0.02",
    ]


def test_how_data_is_loaded_is_a_setting_and_which_data_it_is_a_section(make_run, tmp_path):
    make_run("0")
    make_run("1", **{"data.batch_size": 4})
    make_run("2", **{"data.size": 64})
    make_run("3", **{"evaluation.split": "val"})
    make_run("4", data={"_target_": "detpool.data.coco.coco_datamodule", "root": "/coco", "seed": 0})
    sections = sections_of(tmp_path)
    assert [section.title for section in sections] == [
        "shapes, test split (size=128)",
        "shapes, test split (size=64)",
        "shapes, val split (size=128)",
        "coco, test split",
    ]
    assert list(sections[0].runs) == ["data.batch_size=4", "data.batch_size=8"]


@pytest.mark.parametrize(
    ("setting", "values", "splits"),
    [
        ("data.train_images", (100, 1000), False),
        ("data.train_transform", ({"hflip": 0.5}, {"hflip": 0.0}), False),
        ("data.masks", (False, True), False),
        ("trainer.max_epochs", (3, 12), False),
        ("model", ({"_target_": "a.faster_rcnn"}, {"_target_": "a.mask_rcnn"}), False),
        ("data.val_images", (100, 200), True),
        ("data.eval_transform.min_size", (400, 800), True),
        ("evaluation.max_dets", ([1, 10, 100], [1, 10, 300]), True),
        ("evaluation.voc_iou_threshold", (0.5, 0.7), True),
    ],
)
def test_runs_are_split_by_what_changes_the_meaning_of_a_metric(make_run, tmp_path, setting, values, splits):
    for number, value in enumerate(values):
        make_run(str(number), **{setting: value})
    assert len(sections_of(tmp_path)) == (2 if splits else 1)


def test_what_a_sweep_varies_of_the_evaluation_does_not_split_it(make_run, tmp_path):
    for size in (400, 800):
        make_run(f"sweep/{size}", **{"data.eval_transform.min_size": size, "data.size": size // 4})
    write_plan(tmp_path / "sweep", ["400", "800"])
    # The data are others all the same.
    assert [section.title for section in sections_of(tmp_path)] == [
        "shapes, test split (size=100)",
        "shapes, test split (size=200)",
    ]
    for size in (400, 800):
        make_run(f"more/{size}", **{"data.eval_transform.min_size": size})
    write_plan(tmp_path / "more", ["400", "800"])
    (section,) = sections_of(tmp_path / "more")
    assert list(section.runs) == ["eval_transform.min_size=400", "eval_transform.min_size=800"]


def test_years_of_the_training_do_not_split_runs_that_are_evaluated_on_the_same_year(make_run, tmp_path):
    voc = {"_target_": "detpool.data.voc.voc_datamodule", "root": "/voc", "seed": 0}
    for number, year in enumerate([2007, [2007, 2012]]):
        make_run(f"same/{number}", data=voc | {"year": year, "eval_year": 2007})
        make_run(f"own/{number}", data=voc | {"year": year})
    assert [list(section.runs) for section in sections_of(tmp_path / "same")] == [
        ["data.year=2007", "data.year=[2007, 2012]"]
    ]
    assert len(sections_of(tmp_path / "own")) == 2


def test_variants_are_called_by_their_names(make_run, tmp_path):
    variants = {
        "maximum": {"pooler.operator.reduction": "max"},
        "points": {"pooler.operator.sampling_ratio": 4, "optim.optimizer.lr": 1},
        "default": {},
    }
    for name, settings in variants.items():
        for stride in (16, 32):
            backbone = {"_target_": "a.backbone", "output_stride": stride}
            command = f"train.py -m study=x backbone.output_stride={stride} variant={name}"
            make_run(f"x/{name}{stride}", record={"command": command}, backbone=backbone, **settings)
    (section,) = sections_of(tmp_path / "x", baseline="points, backbone.output_stride=32")
    assert {*section.runs} == {f"{name}, backbone.output_stride={stride}" for name in variants for stride in (16, 32)}
    assert section.baseline == "points, backbone.output_stride=32"
    assert section.spelled["maximum, backbone.output_stride=16"] == {
        "pooler.reduction": "max",
        "pooler.sampling_ratio": "2",
        "optimizer.lr": "0.02",
        "backbone.output_stride": "16",
    }
    # As a command line has it, and by what it stands for.
    for wanted in ("variant=maximum", "pooler.reduction=max"):
        sections = sections_of(tmp_path / "x", by="backbone.output_stride", baseline=wanted)
        assert [section.baseline for section in sections] == ["maximum"] * 2
    with pytest.raises(ConfigError, match="'point' is no configuration .* did you mean 'points'"):
        sections_of(tmp_path / "x", by="backbone.output_stride", baseline="point")
    # Of two studies, a name that each has for something else says nothing.
    other = {"command": "train.py -m study=y variant=default"}
    make_run("x/other", record=other, backbone={"_target_": "a.backbone", "output_stride": 8}, **{"pooler": "other"})
    (section,) = sections_of(tmp_path / "x")
    assert not {key for part in section.settings.values() for key in part} & {"variant"}


def test_an_evaluation_of_a_run_does_not_count_beside_it(make_run, tmp_path):
    """`eval.py` leaves a run directory with the settings and seed of the training."""
    evaluated = make_run("eval", 0.5, curves=False)
    trained = make_run("train", 0.5)
    again = make_run("again", 0.6)
    for when, folder in enumerate([again, trained, evaluated]):
        os.utime(folder / "metrics.json", (when, when))
    (section,) = sections_of(tmp_path)
    assert [run.folder for run in section.all_runs] == [trained]
    reason = f"left out: it has the settings and seed of {trained}"
    assert sorted(section.notes) == [f"{again}: {reason}", f"{evaluated}: {reason}"]


def test_a_run_is_given_the_metrics_that_only_an_evaluation_of_it_has(make_run, tmp_path):
    """Asked for more, `eval.py` computes what the training did not; what both have is the training's."""
    more = {"metrics": {"AP": 0.4, "dAP50/missed": 0.1, "boundary_AP": 0.2}}
    asked = {"evaluation.diagnostics": ["tide"], "evaluation.iou_types": ["bbox", "segm", "boundary"]}
    trained = make_run("train", 0.5)
    evaluated = make_run("eval", curves=False, record=more, **asked)
    make_run("other", 0.3, seed=1, **asked)  # another seed, asked for more from the beginning
    (section,) = sections_of(tmp_path)
    assert labels(section) == {"pooler=roi_align": [0, 1]}
    given = section.values("pooler=roi_align", "boundary_AP")
    assert given[0] == 0.2
    assert pd.isna(given[1])
    assert list(section.values("pooler=roi_align", "AP")) == [0.5, 0.3]
    assert section.notes == [
        f"{trained} has its metrics dAP50/missed, boundary_AP from {evaluated}, an evaluation of it"
    ]
    # One sweep that varies what is asked for studies it.
    for number, backend in enumerate(["pycocotools", "faster_coco_eval"]):
        make_run(f"sweep/{number}", **{"evaluation.backend": backend})
    write_plan(tmp_path / "sweep", ["0", "1"])
    (section,) = sections_of(tmp_path / "sweep")
    assert list(section.runs) == ["evaluation.backend=pycocotools", "evaluation.backend=faster_coco_eval"]


def test_numbers_are_in_the_order_of_their_size_and_words_as_they_come(make_run, tmp_path):
    for number, (pooler, rate) in enumerate(
        [("roi_pool", 0.1), ("roi_align", 1e-05), ("roi_pool", 0.02), ("roi_pool", 2)]
    ):
        make_run(str(number), pooler=pooler, record={"command": ""}, **{"optim.optimizer.lr": rate})
    (section,) = sections_of(tmp_path)
    assert [tuple(part.values()) for part in section.settings.values()] == [
        ("roi_pool", "0.02"),
        ("roi_pool", "0.1"),
        ("roi_pool", "2"),
        ("roi_align", "1e-05"),
    ]
    assert [s.value.rpartition("=")[2] for s in sections_of(tmp_path, by="optim.optimizer.lr")] == [
        "1e-05",
        "0.02",
        "0.1",
        "2",
    ]


HEADS = {
    "token_cls": {"_target_": "a.TokenHead", "pool": {"_target_": "b.ClsTokenPool"}, "class_token": True},
    "token_last": {"_target_": "a.TokenHead", "pool": {"_target_": "b.LastTokenPool"}},
    "flatten": {"_target_": "a.FlattenHead"},
}


def test_choices_go_by_the_names_that_they_were_given(make_run, tmp_path):
    for name, head in HEADS.items():
        for seed in range(2):
            command = f"train.py -m study=heads head_pool={name} seed={seed} 'x=[1, 2]'"
            make_run(f"heads/{name}{seed}", seed=seed, head_pool=head, record={"command": command})
    evaluated = make_run("heads/eval", head_pool=HEADS["flatten"], curves=False)
    (evaluated / "csv").mkdir()  # its command names no choice, that of the training does
    (section,) = sections_of(tmp_path / "heads")
    assert labels(section) == {f"head_pool={name}": [0, 1] for name in ("flatten", "token_cls", "token_last")}
    # A choice that leaves the part out is one by its name, too.
    for name, layer in {"own": None, "max": {"_target_": "a.Max"}, "l2": {"_target_": "a.Lp", "p": 2.0}}.items():
        make_run(f"slots/{name}", downsample=layer, record={"command": f"train.py -m study=slots downsample={name}"})
    (section,) = sections_of(tmp_path / "slots", baseline="downsample=own")
    assert sorted(section.runs) == ["downsample=l2", "downsample=max", "downsample=own"]
    # What follows the choice of the pooler is not named either.
    for name in ("roi_pool", "roi_align"):
        mask_pooler = {"operator": {"_target_": f"detpool.ops.{name}"}}
        make_run(f"masks/{name}", pooler=name, mask_pooler=mask_pooler, **{"pooler.operator": mask_pooler["operator"]})
    (section,) = sections_of(tmp_path / "masks")
    assert list(section.runs) == ["pooler=roi_align", "pooler=roi_pool"]
    # A choice of which a setting was changed, or that some run does not name, is known by its settings.
    changed = HEADS["flatten"] | {"width": 5}
    make_run("heads/other", head_pool=changed, record={"command": "train.py head_pool=flatten head_pool.width=5"})
    (section,) = sections_of(tmp_path / "heads")
    assert "head_pool=TokenHead, pool=ClsTokenPool, head_pool.class_token=true" in section.runs
    assert "head_pool=FlattenHead, head_pool.width=5" in section.runs


def test_plots_show_the_baseline_the_best_and_what_is_asked_for(make_run, tmp_path):
    for number in range(12):
        make_run(str(number), 0.1 + 0.05 * ((7 * number) % 12), **{"optim.optimizer.lr": number})
    (section,) = sections_of(tmp_path, asked=["optimizer.lr=5"])
    worst_last = sorted(range(12), key=lambda number: -((7 * number) % 12))
    best = [number for number in worst_last if number not in (0, 5)][:6]
    assert section.drawn("AP") == [f"optimizer.lr={number}" for number in sorted([0, 5, *best])]
    with pytest.raises(ConfigError, match="--show 'optimizer.lr=12' is no configuration"):
        sections_of(tmp_path, asked=["optimizer.lr=12"])


def test_objects_are_named_by_their_functions():
    def config(reduction, rate, target="a.pool"):
        return {"pooler": {"operator": {"_target_": target, "reduction": reduction}}, "a": {"x": {"rate": rate}}}

    lp = {"_target_": "detpool.ops.reductions.Lp", "p": 3}
    assert compare(config("mean", 1), config(lp, 2), config(lp | {"p": 4}, 1), {"b": 1}) == [
        {"pooler": "pool", "pooler.reduction": "mean", "x.rate": "1", "b": "unset"},
        {"pooler": "pool", "pooler.reduction": "Lp", "reduction.p": "3", "x.rate": "2", "b": "unset"},
        {"pooler": "pool", "pooler.reduction": "Lp", "reduction.p": "4", "x.rate": "1", "b": "unset"},
        {"pooler": "unset", "x.rate": "unset", "b": "1"},
    ]
    nested = [{"optim": {"optimizer": {"_target_": f"torch.optim.{name}"}}} for name in ("SGD", "Adam")]
    assert compare(*nested, {}) == [{"optimizer": "SGD"}, {"optimizer": "Adam"}, {"optimizer": "unset"}]
    # Functions of the same name, and keys that would be the same, are written out.
    assert compare(config("mean", 1), config("mean", 1, "b.pool")) == [{"pooler": "a.pool"}, {"pooler": "b.pool"}]
    assert compare({"a": {"x": {"p": 1}}, "b": {"x": {"p": 1}}}, {})[0] == {"a.x.p": "1", "b.x.p": "1"}


def test_a_pooler_that_follows_the_boxes_pooler_is_not_named():
    def config(boxes, masks):
        return {"pooler": {"operator": {"_target_": boxes}}, "mask_pooler": {"operator": {"_target_": masks}}}

    followed = [config("a.roi_pool", "a.roi_pool"), config("a.roi_align", "a.roi_align")]
    assert compare(*followed) == [{"pooler": "roi_pool"}, {"pooler": "roi_align"}]
    own = compare(*followed, config("a.roi_align", "a.roi_pool"))
    assert own[2] == {"pooler": "roi_align", "mask_pooler": "roi_pool"}


def test_values_of_other_types_are_other_values():
    """As limits of batches 1.0 is all of them, 1 is one; words and numbers that look alike are not the same."""
    found = compare(*({"limit": limit} for limit in (1.0, 1, True, "1")))
    assert [config["limit"] for config in found] == ["1.0", "1", "true", '"1"']


def test_baseline(make_run, tmp_path):
    for number, (pooler, rate) in enumerate([("roi_pool", 0.1), ("roi_align", 0.1), ("roi_align", 0.2)]):
        make_run(str(number), pooler=pooler, **{"optim.optimizer.lr": rate})
    found = [
        sections_of(tmp_path, baseline=baseline)[0].baseline
        for baseline in (None, "pooler=roi_pool", "optimizer.lr=0.1, pooler=roi_align")
    ]
    first, second, _ = sections_of(tmp_path)[0].runs
    assert found == [first, first, second]
    assert sections_of(tmp_path, baseline=second)[0].others[0] == first
    with pytest.raises(ConfigError, match="'pooler=roi_align' fits 2 configurations of shapes"):
        sections_of(tmp_path, baseline="pooler=roi_align")
    with pytest.raises(ConfigError, match="'pooler=roi_pol' is no configuration .* did you mean 'pooler=roi_pool"):
        sections_of(tmp_path, baseline="pooler=roi_pol")
    # Where only other sections have it, the first is the baseline, and a note says so.
    *_, last = sections_of(tmp_path, by="optim.optimizer.lr", baseline="pooler=roi_pool")
    assert (last.baseline, last.notes) == (
        "pooler=roi_align",
        ["No configuration here is pooler=roi_pool: the first one is the baseline."],
    )
