"""Checking a command line: every config composes, every typo is caught and named."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from detpool.config import Configs, apply_overrides, check_config, check_keys, parse_command_line
from detpool.errors import ConfigError
from detpool.study.plan import drop_variants

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
ALL = Configs(CONFIGS, "train")
# What a user must give for a choice that has no default for it.
NEEDED = {
    "data=coco": ["data.root=somewhere"],
    "data=voc": ["data.root=somewhere"],
    "backbone=timm": ["backbone.name=resnet18"],
}
RECIPES_ON_COCO = [
    "mask_rcnn_r50_c4",
    "mask_rcnn_r50_c5",
    "faster_rcnn_r50_fpn_1x",
    "light_head_rcnn_r101",
    "iou_net_r50_fpn",
]
NEEDED |= {
    f"experiment={name}": ["data.root=somewhere"] for name in [*RECIPES_ON_COCO, "rfcn_r50_voc", "rfcn_r101_voc"]
}
NEEDED |= {f"reduction={path.stem}": ["pooler=pool"] for path in CONFIGS.glob("reduction/*.yaml")}
CHOICES = sorted(f"{path.parent.relative_to(CONFIGS)}={path.stem}" for path in CONFIGS.glob("*/*.yaml"))


@pytest.mark.parametrize("choice", [choice for choice in CHOICES if not choice.startswith("hydra=")])
def test_every_config_composes_and_has_only_known_arguments(choice):
    overrides = [choice, *NEEDED.get(choice, [])]
    try:
        config = ALL.compose(overrides)
    except ConfigError as error:
        if choice.startswith(("launcher=", "sweeper=")) and "is not installed" in str(error):
            pytest.skip(str(error))
        raise
    drop_variants(config)
    if choice == "experiment=bccd":
        assert OmegaConf.missing_keys(config) == set()
    check_keys(config, ALL)
    check_config(config)


@pytest.mark.parametrize("pooler", ["all_levels", "pool", "pr_roi_pool", "roi_align", "roi_pool", "roi_warp", "spp"])
@pytest.mark.parametrize("experiment", ["demo", "nuclei"])
def test_experiments_that_set_the_canonical_size_take_any_shared_pooler(experiment, pooler):
    check_config(ALL.compose([f"experiment={experiment}", f"pooler={pooler}"]))


@pytest.mark.parametrize("experiment", sorted(CONFIGS.glob("experiment/*.yaml")), ids=lambda path: path.stem)
def test_experiments_begin_with_their_command(experiment):
    lines = experiment.read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert f"python train.py experiment={experiment.stem}" in lines[1]


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        # Mask R-CNN, section 3.1: RoIs an image in training and evaluation
        ("mask_rcnn_r50_c4", {"box_batch_size_per_image": 64, "rpn_post_nms_top_n_test": 300}),
        # R-FCN, section 2: RoIs, hard examples, and the IoU of suppression
        ("rfcn_r50_voc", {"rpn_post_nms_top_n_train": 300, "box_batch_size_per_image": 128, "box_nms_thresh": 0.3}),
        ("rfcn_r101_voc", {"rpn_post_nms_top_n_test": 300, "box_batch_size_per_image": 128, "box_nms_thresh": 0.3}),
        # Light-Head R-CNN, section 4.1
        ("light_head_rcnn_r101", {"rpn_post_nms_top_n_test": 1000, "box_batch_size_per_image": 256}),
    ],
)
def test_recipes_have_their_papers_numbers_of_rois(recipe, settings):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("train", overrides=[f"experiment={recipe}", "run_dir=run"])
    assert {name: config.model[name] for name in settings} == settings
    # All proposals are of one map, so the numbers before suppression cannot be those of a pyramid's levels.
    assert (config.model.rpn_pre_nms_top_n_train, config.model.rpn_pre_nms_top_n_test) == (12000, 6000)


@pytest.mark.parametrize(
    ("recipe", "rate", "images", "falls"),
    [
        # of the paper: rate, millions of images, and after how many of them the rate falls
        ("mask_rcnn_r50_c4", 0.02, 2.56, [1.92]),
        ("mask_rcnn_r50_c5", 0.02, 2.56, [1.92]),
        ("faster_rcnn_r50_fpn_1x", 0.02, 1.44, [0.96, 1.28]),
        ("light_head_rcnn_r101", 0.01, 2.0, [1.5]),
        ("iou_net_r50_fpn", 0.01, 2.56, [1.92]),
        ("rfcn_r50_voc", 0.001, 0.24, [0.16]),
        ("rfcn_r101_voc", 0.001, 0.24, [0.16]),
    ],
)
def test_recipes_have_their_papers_schedules(recipe, rate, images, falls):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("train", overrides=[f"experiment={recipe}", "run_dir=run"])
    assert config.optim.optimizer.lr == rate
    assert (config.optim.optimizer.momentum, config.optim.optimizer.weight_decay) == (
        0.9,
        5e-4 if recipe.startswith("rfcn") else 1e-4,
    )
    epoch = 0.016551 if recipe.startswith("rfcn") else 0.118287
    # Whole epochs, and milestones of two digits
    assert config.trainer.max_epochs * epoch == pytest.approx(images, rel=0.05)
    assert list(config.optim.schedule.milestones) == pytest.approx([fall / images for fall in falls], abs=0.01)
    header = (CONFIGS / "experiment" / f"{recipe}.yaml").read_text().split("defaults:")[0]
    assert "not run here" in " ".join(header.replace("#", " ").split()).lower()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pooler=roi_algn"], "pooler=roi_algn does not exist; did you mean 'roi_align'"),
        (["poolr=roi_pool"], "no key or group 'poolr'; did you mean 'pooler'"),
        (["trainer.max_epoch=3"], "trainer has no key 'max_epoch'; did you mean 'max_epochs'"),
        (["optim=adamw", "optim.schedule.milestons=[0.5]"], "optim.schedule has no key 'milestons'"),
        (["pooler=roi_pool,pr_roi_pool"], "pooler=roi_pool,pr_roi_pool names several values: add -m for a run of each"),
        (["seed.x=1"], "seed is a value and has no 'x'"),
        (["seed"], "cannot read the argument 'seed': expected key=value"),
        (["data=vocc"], "did you mean 'voc'"),
        (["experiment=zzzz"], "experiment=zzzz does not exist; choose from"),
    ],
)
def test_typos_are_named(arguments, message):
    with pytest.raises(ConfigError) as error:
        ALL.compose(arguments)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["optim=adamw", "optim.schedule.final_fraction=0.1"],  # a key that only the chosen member has
        ["+model.box_fg_iou_thresh=0.6", "~callbacks", "experiment=demo"],
        ["hydra.run.dir=somewhere", "trainer.devices=2"],
        ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    ],
)
def test_valid_command_lines_pass(arguments):
    ALL.compose(arguments)


def test_hydras_own_options_are_left_to_hydra():
    line = parse_command_line(["a=1", "--cfg", "job", "b=2", "--config-dir", "/"], CONFIGS, "train")
    assert (line.overrides, line.options) == (["a=1", "b=2"], ["--cfg", "job", "--config-dir", "/"])
    assert line.shows_config
    assert not line.sweeps


def test_a_pooler_without_an_output_size_says_so():
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("train", overrides=["model=faster_rcnn_c4", "pooler=spp", "run_dir=run"])
    with pytest.raises(ConfigError, match="pooler: SpatialPyramidPooler has no argument 'output_size'; choose from"):
        check_config(config)


def test_config_check_catches_what_experiments_and_plus_slip_in():
    config = OmegaConf.create({"seed": 0, "tainer": {}})
    with pytest.raises(ConfigError, match="the config has an unknown key 'tainer'; did you mean 'trainer'"):
        check_keys(config, ALL)
    config = OmegaConf.create({"evaluation": {"splt": "val"}})
    with pytest.raises(ConfigError, match="evaluation has an unknown key 'splt'; did you mean 'split'"):
        check_keys(config, ALL)
    config = OmegaConf.create({"data": {"root": "???"}})
    with pytest.raises(ConfigError, match=r"no value given for data.root: pass data.root=\.\.\."):
        check_config(config)
    operator = {"_target_": "detpool.ops.roi_align", "sampling_ration": 2}
    config = OmegaConf.create({"pooler": {"_target_": "detpool.poolers.RoIPooler", "operator": operator}})
    with pytest.raises(ConfigError, match="no argument 'sampling_ration'; did you mean 'sampling_ratio'"):
        check_config(config)
    config = OmegaConf.create({"pooler": {"_target_": "detpool.ops.roi_algn"}})
    with pytest.raises(ConfigError, match="roi_algn cannot be imported"):
        check_config(config)


def test_overrides_of_a_finished_run_must_exist_in_it():
    config = OmegaConf.create({"data": {"root": "a"}})
    apply_overrides(config, ["data.root=b"])
    assert config.data.root == "b"
    for argument, message in {
        "data.rot=b": "data has no key 'rot'; did you mean 'root'",
        "data=coco": r"data holds the settings root of the run: change one of them with data\.<name>=",
        "~data.root": "only plain key=value changes the config of a finished run",
        "data.root=b,c": "only plain key=value changes the config of a finished run",
    }.items():
        with pytest.raises(ConfigError, match=message):
            apply_overrides(config, [argument])


@pytest.mark.parametrize("program", ["train.py", "eval.py"])
def test_a_typo_ends_the_program_before_torch_is_imported(program, tmp_path):
    """Importing torch is what takes seconds; a message without it comes at once."""
    script = (
        f"import sys, runpy; sys.argv = ['{program}', 'poolr=1'];"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        f"try:\n    runpy.run_path({str(ROOT / program)!r}, run_name='__main__')\n"
        "except SystemExit as end:\n    print('status', end.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.strip() == "status 2 False", done.stdout + done.stderr
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_readme_has_no_dead_links_or_placeholders():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        text = page.read_text()
        for link in re.findall(r"\]\(([^)#]+)", text):
            assert "://" in link or (page.parent / link).exists(), f"{page.name}: {link}"
        assert not re.search(r"TODO|FIXME|XXX|_TABLE\b", text), page.name
