"""Checking a command line: every config composes, every typo is caught and named."""

import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from detpool.config import Configs, apply_overrides, check, parse_command_line
from detpool.errors import ConfigError
from detpool.study.plan import plan_sweep

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
ALL = Configs(CONFIGS, "train")
# What a user must give for a choice that has no default for it.
NEEDED = {
    "data=coco": ["data.root=somewhere"],
    "data=voc": ["data.train_xml=somewhere", "data.split=0.8"],
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
    if choice == "experiment=bccd":
        assert OmegaConf.missing_keys(config) == set()
    check(config, ALL, overrides)


@pytest.mark.parametrize(
    "pooler",
    [
        "all_levels",
        "deform_roi_pool",
        "groie",
        "panet",
        "pool",
        "pr_roi_pool",
        "roi_align",
        "roi_pool",
        "roi_warp",
        "spp",
    ],
)
@pytest.mark.parametrize("experiment", ["demo", "nuclei"])
def test_experiments_that_set_the_canonical_size_take_any_shared_pooler(experiment, pooler):
    check(ALL.compose([f"experiment={experiment}", f"pooler={pooler}"]))


@pytest.mark.parametrize("experiment", sorted(CONFIGS.glob("experiment/*.yaml")), ids=lambda path: path.stem)
def test_experiments_begin_with_their_command(experiment):
    lines = experiment.read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert f"python train.py experiment={experiment.stem}" in lines[1]


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        # Mask R-CNN, section 3.1: RoIs an image in training and evaluation
        ("mask_rcnn_r50_c4", {"roi_heads.batch_size_per_image": 64, "rpn.post_nms_top_n_test": 300}),
        # R-FCN, section 2: RoIs, hard examples, and the IoU of suppression
        ("rfcn_r50_voc", {"rpn.post_nms_top_n_train": 300, "roi_heads.batch_size_per_image": 128}),
        ("rfcn_r101_voc", {"rpn.post_nms_top_n_test": 300, "roi_heads.nms_thresh": 0.3}),
        # Light-Head R-CNN, section 4.1
        ("light_head_rcnn_r101", {"rpn.post_nms_top_n_test": 1000, "roi_heads.batch_size_per_image": 256}),
    ],
)
def test_recipes_have_their_papers_numbers_of_rois(recipe, settings):
    config = ALL.compose([f"experiment={recipe}", "data.root=x"])
    assert {name: OmegaConf.select(config.model, name) for name in settings} == settings
    # All proposals are of one map, so the numbers before suppression cannot be those of a pyramid's levels.
    assert (config.model.rpn.pre_nms_top_n_train, config.model.rpn.pre_nms_top_n_test) == (12000, 6000)


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
    config = ALL.compose([f"experiment={recipe}", "data.root=x"])
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
        (["trainer.max_epoch=3"], "trainer: Trainer has no argument 'max_epoch'; did you mean 'max_epochs'"),
        (["optim=adamw", "optim.schedule.milestons=[0.5]"], "optim.schedule: cosine has no argument 'milestons'"),
        (
            ["model.roi_heads.scor_thresh=0.1"],
            "TwoStageHeads has no argument 'scor_thresh'; did you mean 'score_thresh'?",
        ),
        (["pooler=roi_pool,pr_roi_pool"], "pooler=roi_pool,pr_roi_pool names several values: add -m for a run of each"),
        (["seed.x=1"], "seed must be a whole number in 0 .. 4294967295, got {'x': 1}"),
        (["seed"], "cannot read the argument 'seed': expected key=value"),
        (["data=vocc"], "did you mean 'voc'"),
        (["experiment=zzzz"], "experiment=zzzz does not exist; choose from"),
        (["model.proposals=given"], "got 'given'; to choose it: proposals=given"),
        (["callbacks=[default,emaa]"], "callbacks=emaa does not exist; did you mean 'ema'"),
        (["logger=[csv,wandbb]"], "logger=wandbb does not exist; did you mean 'wandb'"),
        (["callbacks=[ema,ema]"], "callbacks=[ema,ema] names ema twice"),
        (["callbacks=[]"], "callbacks=[]: a group's choice is taken out with '~callbacks'"),
        (["callbacks=ema,pictures"], "a list is callbacks=[ema,pictures]"),
        (["pooler=[roi_pool,spp]"], "pooler=[roi_pool,spp] is a list, and there is one pooler: choose one, or with -m"),
        (["callbacks=[ema]", "callbacks.ema.decy=0.9"], "AverageWeights has no argument 'decy'; did you mean 'decay'"),
        (["trainer.profiler=smple"], "trainer.profiler must be simple or advanced or pytorch or an object"),
    ],
)
def test_typos_are_named(arguments, message):
    assert message in checked(*arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["optim=adamw", "optim.schedule.final_fraction=0.1"],  # a key that only the chosen member has
        ["+model.roi_heads.fg_iou_thresh=0.6", "~callbacks", "experiment=demo"],
        ["hydra.run.dir=somewhere", "trainer.devices=2"],
        ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    ],
)
def test_valid_command_lines_pass(arguments):
    ALL.compose(arguments)


@pytest.mark.parametrize("group", ["callbacks", "logger"])
def test_of_callbacks_and_loggers_several_can_be_chosen(group):
    """Each brings what every run needs, so that the first of them need not be named."""
    names = [path.stem for path in CONFIGS.glob(f"{group}/*.yaml")]
    together = ALL.compose([f"{group}=[{','.join(names)}]"])[group]
    alone = [ALL.compose([f"{group}={name}"])[group] for name in names]
    assert set(together) == {key for members in alone for key in members}
    for members in alone:
        assert all(together[key] == member for key, member in members.items())
        assert {"callbacks": {"best", "last", "interrupt"}, "logger": {"csv"}}[group] <= members.keys()
    sweep = plan_sweep(ALL, [f"{group}={names[0]},[{names[0]},{names[1]}]"])
    assert len(sweep.jobs) == 2
    assert typo_in(lambda: plan_sweep(ALL, [f"{group}={names[0]},[{names[0]},nothing]"])) == f"{group}=nothing"


def typo_in(function):
    with pytest.raises(ConfigError) as error:
        function()
    return str(error.value).partition(" ")[0]


def test_hydras_own_options_are_left_to_hydra():
    line = parse_command_line(["a=1", "--cfg", "job", "b=2", "--config-dir", "/"], CONFIGS, "train")
    assert (line.overrides, line.options.cfg, line.options.config_dir) == (["a=1", "b=2"], "job", "/")
    assert line.command == "cfg"
    assert not line.sweeps


def test_what_experiments_and_plus_slip_in_is_found(tmp_path):
    for text, message in {
        "tainer: {}": "there is no key or group 'tainer'; did you mean 'trainer'? (",
        "evaluation: {splt: val}": "evaluation has no key 'splt'; did you mean 'split'? (",
        "data: {root: '???'}": "no value given for data.root: pass data.root=...",
        "pooler: {operator: {sampling_ration: 2}}": "no argument 'sampling_ration'; did you mean 'sampling_ratio'? (",
        "pooler: {_target_: detpool.ops.roi_algn}": "has no 'roi_algn'; did you mean 'roi_align'?",
        "pooler: {output_siz: 2}": "did you mean 'output_size'? (",
    }.items():
        (tmp_path / "experiment").mkdir(exist_ok=True)
        (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{text}\n")
        configs = Configs(CONFIGS, "train", str(tmp_path))
        with pytest.raises(ConfigError) as error:
            check(configs.compose(["experiment=mine"]), configs, ["experiment=mine"])
        assert message in str(error.value)
        assert "mine.yaml" in str(error.value) or "(" not in message


def test_overrides_of_a_finished_run_must_exist_in_it():
    config = OmegaConf.create({"data": {"root": "a"}})
    apply_overrides(config, ["data.root=b"])
    assert config.data.root == "b"
    for argument, message in {
        "data=coco": r"data holds the settings root of the run: change one of them with data\.<name>=",
        "~data.root": "only plain key=value changes the config of a finished run",
        "data.root=b,c": "only plain key=value changes the config of a finished run",
        "data/x=c": "only plain key=value changes the config of a finished run",
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


def checked(*overrides):
    """The message that a command line ends with before any work, "" if it has none."""
    try:
        check(ALL.compose(overrides), ALL, overrides)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.max_epochs=abc", "trainer.max_epochs must be a whole number at least -1 or null, got 'abc'"),
        ("evaluation.max_dets=10", "evaluation.max_dets must be a list (a whole number at least 1 each), got 10"),
        ("optim.optimizer.lr=fast", "optim.optimizer.lr must be a number, got 'fast'"),
        (
            "trainer.precision=bf16-true",
            "trainer.precision must be 32-true or 16-mixed or bf16-mixed or 32 or 16 or bf16",
        ),
        # and of the same kinds
        ("trainer.precision=64-true", "trainer.precision must be 32-true or 16-mixed"),
        (
            "trainer.accumulate_grad_batches=0",
            "trainer.accumulate_grad_batches must be a whole number at least 1, got 0",
        ),
        (
            "trainer.check_val_every_n_epoch=0.5",
            "trainer.check_val_every_n_epoch must be a whole number at least 1 or null",
        ),
        ("trainer.gradient_clip_val=true", "trainer.gradient_clip_val must be a number at least 0 or null, got true"),
        ("trainer.limit_train_batches=few", "trainer.limit_train_batches must be a whole number or a number or null"),
        ("+trainer.logger=false", "trainer.logger has no effect here; what sets it is logger=..."),
        (
            "trainer.enable_progress_bar=false",
            "trainer.enable_progress_bar has no effect here; what sets it is progress",
        ),
        ("trainer.devices=1.5", "trainer.devices must be a whole number in -1 .. 4096 or text or a list"),
        ("optim.optimizer.momentum=null", "optim.optimizer.momentum must be a number, got null"),
        ("optim.optimizer.lr=nan", "optim.optimizer.lr must be a number, got nan"),
        ("optim.schedule.milestones=0.5", "optim.schedule.milestones must be a list (a number each), got 0.5"),
        ("optim.optimizer.nesterov=1", "optim.optimizer.nesterov must be true or false, got 1"),
        ("+optim.optimizer.nesterov=1", "optim.optimizer.nesterov must be true or false, got 1"),
        ("data.batch_size=2.0", "data.batch_size must be a whole number, got 2.0"),  # a `**loader` argument
        ("data.num_workers=many", "data.num_workers must be a whole number, got 'many'"),
        ("+data.batchsize=2", "data: shapes_datamodule has no argument 'batchsize'; did you mean 'batch_size'?"),
        ("model.rpn.nms_thresh=high", "model.rpn.nms_thresh must be a number, got 'high'"),
        ("model.roi_heads.hard_examples=1", "model.roi_heads.hard_examples must be true or false, got 1"),
        ("+model.rpn.nms_tresh=0.7", "has no argument 'nms_tresh'; did you mean 'nms_thresh'?"),
        (
            "model.rpn.anchor_sizes=[32]",
            "model.rpn.anchor_sizes must be a list (a list (a whole number each) each), got [32]",
        ),
        ("backbone.widths=64", "backbone.widths must be a list (a whole number each), got 64"),
        ("pooler.operator.aligned=yes_please", "pooler.operator.aligned must be true or false, got 'yes_please'"),
        ("+callbacks.best.save_top_k=all", "callbacks.best.save_top_k must be a whole number, got 'all'"),
        ("callbacks.best=3", "callbacks.best must be an object"),
        ("logger.csv.name=5", "logger.csv.name must be text or null, got 5"),
        ("evaluation.split=train", "evaluation.split must be val or test, got 'train'"),
        (
            "evaluation.iou_types=bbox",
            "evaluation.iou_types must be a list (bbox or segm or boundary each), got 'bbox'",
        ),
        ("evaluation.voc_iou_threshold=50", "evaluation.voc_iou_threshold must be a number in 0 .. 1, got 50"),
        (
            "evaluation.backend=coco",
            "evaluation.backend must be pycocotools or faster_coco_eval or hotcoco, got 'coco'",
        ),
        ("seed=-1", "seed must be a whole number in 0 .. 4294967295, got -1"),
        ("channels_last=no_", "channels_last must be true or false, got 'no_'"),
        ("imports=my_package", "imports must be a list (text each), got 'my_package'"),
        ("imports=[json,my_pakage.poolers]", "imports=[my_pakage.poolers]: there is no module 'my_pakage'"),
        ("backbone._partial_=1", "backbone must be an object (a mapping with _target_) and not _partial_"),
        ("pooler._partial_=1", "pooler._partial_ must be true or false, got 1"),
        ("++model._partial_=true", "model must be an object (a mapping with _target_) and not _partial_"),
        ("~evaluation.split", "the config has no evaluation.split, which a run needs"),
        ("~optim.schedule", "the config has no optim.schedule, which a run needs"),
        ("data.size=${nothing}", "data.size=${nothing} cannot be resolved: Interpolation key 'nothing' not found"),
        ("pooler.operator=${pooler}", "pooler.operator=${pooler} cannot be resolved"),
    ],
)
def test_wrong_types_are_named_with_what_is_accepted(override, message):
    assert message in checked("experiment=demo", override)


@pytest.mark.parametrize(
    "override",
    [
        *("trainer.max_epochs=-1", "trainer.max_epochs=null", "trainer.precision=16", "trainer.precision='32'"),
        *("trainer.gradient_clip_val=null", "trainer.limit_train_batches=0.5", "trainer.limit_train_batches=3"),
        *("trainer.devices=[0]", "trainer.devices=auto", "+trainer.max_time='00:00:01:00'", "optim.optimizer.lr=1"),
        *("optim.schedule=null", "optim.optimizer.lr=1e-3", "data.size=[64,96]", "data.classes=[ring,star]"),
        *("callbacks.best=null", "~callbacks", "~logger", "evaluation.max_dets=[100]", "task=2024", "stem_pool=own"),
        *(
            "+optim.optimizer.nesterov=true",
            "data.seed=${seed}",
            "run_dir='${hydra:run.dir}/x'",
            "task='${hydra:job.name}'",
        ),
        *(
            "backbone.output_stride=16",
            "+trainer.deterministic=warn",
            "proposals=jittered",
            "imports=[json.decoder]",
        ),
    ],
)
def test_what_is_right_stays_so(override):
    assert checked("experiment=demo", override) == ""


def test_keys_that_a_file_sets_are_not_blamed_on_the_user():
    message = checked("experiment=demo", "backbone=resnet50")
    assert message == (
        "backbone: resnet has no argument 'min_stride', set in configs/experiment/common/shapes_pyramid.yaml for "
        "another backbone; these take it: backbone=small; or take the setting out with '~backbone.min_stride'"
    )
    # As it says; the pyramid has one more level then.
    assert checked("experiment=demo", "backbone=resnet50", "~backbone.min_stride") == ""
    message = checked("experiment=shapes_faster_rcnn_c4", "data=coco", "data.root=x", "backbone=resnet18")
    assert message == (
        "data.train_images must be text or null, got 1000 (configs/experiment/common/shapes.yaml); these take it: "
        "data=shapes"
    )
    # What the choices of where files lie do not say together is known before any is looked for.
    assert checked("data=coco").startswith("no training data: data.root is null, and so is data.train_json")
    assert "and so is data.train_xml, but data.train_images=x" in checked("data=voc", "data.train_images=x")
    # All at once, of several files
    message = checked("experiment=shapes_light_head_rcnn", "model=faster_rcnn_c4")
    assert (
        "no argument 'head_channels', 'mid_channels', 'kernel_size', set in configs/experiment/shapes_light" in message
    )
    # What the user gives is the user's
    assert "; did you mean 'min_stride'?" in checked("experiment=demo", "+backbone.min_strid=8")
    # A value of the wrong type, by its file
    origin = functools.partial(ALL.origin, overrides=["experiment=demo", "data.batch_size=3"])
    assert origin("trainer.max_epochs") == "configs/experiment/common/shapes.yaml"
    assert origin("data.num_workers") == "configs/experiment/common/shapes.yaml"
    assert origin("backbone.widths") == "configs/backbone/small.yaml"
    assert origin("data.batch_size") is None
    assert origin("seed") == "configs/train.yaml"


def test_a_config_without_an_end_is_refused():
    message = checked("experiment=demo", "+data.x=${model}", "+model.x=${data}")
    assert "refers to itself without an end" in message or "cannot be resolved" in message


def test_unknown_keys_are_found_at_any_depth():
    assert "there is no key or group 'lr'; did you mean 'optim.optimizer.lr'?" in checked("lr=fast")
    assert "did you mean 'trainer.max_epochs'?" in checked("max_epochs=3")
    # not a complaint about what the misspelt choice would have brought
    message = checked("experimnt=shapes_mask_rcnn", "pooler@mask_pooler=roi_pool")
    assert "no key or group 'experimnt'; did you mean 'experiment'?" in message


def test_values_with_odd_characters_are_told_to_be_quoted():
    assert "needs quotes: \"data.root='/data/naïve'\"" in checked("data=coco", "data.root=/data/naïve")
    assert checked("data=coco", "data.root='/data/naïve'") == ""
    assert "needs quotes: \"ckpt_path='a=b/last.ckpt'\"" in checked("ckpt_path=a=b/last.ckpt")
    assert checked("ckpt_path='a=b/last.ckpt'") == ""
    assert "expected key=value" in checked("=")


@pytest.fixture
def outside(tmp_path):
    """Configs in a folder that is no part of a checkout."""
    for name, text in {
        "experiment/mine": "# @package _global_\ndefaults:\n  - demo\n  - override /pooler: mine\n  - _self_\n"
        "task: mine\n",
        "pooler/mine": (CONFIGS / "pooler" / "roi_align.yaml").read_text(),
        "study/mine": "# @package _global_\ndefaults:\n  - override /experiment: mine\nvariants:\n  a: pooler=mine\n"
        "hydra: {sweeper: {params: {variant: a, seed: '0,1'}}}\n",
    }.items():
        path = tmp_path / "o'side é" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "o'side é"


@pytest.mark.parametrize("option", ["--config-dir", "hydra.searchpath"])
def test_configs_outside_the_checkout_are_seen(outside, option):
    text = str(outside).replace("'", "\\'")
    where = ["--config-dir", str(outside)] if option == "--config-dir" else [f"hydra.searchpath=['file://{text}']"]

    def checked(*overrides):
        line = parse_command_line([*where, *overrides], CONFIGS, "train")
        config = line.configs.compose(line.overrides)
        check(config, line.configs, line.overrides)
        return config

    assert checked("experiment=mine").task == "mine"
    for overrides, message in {
        ("experiment=min",): "did you mean 'mine'?",
        ("pooler=min",): "did you mean 'mine'?",
        ("experiment=mine", "reduction=lp"): "these take it: pooler=pool$",
        ("experiment=mine", "+model.x=1"): "has no argument 'x'",
    }.items():
        with pytest.raises(ConfigError, match=message):
            checked(*overrides)
    line = parse_command_line([*where, "-m", "study=mine"], CONFIGS, "train")
    sweep = plan_sweep(line.configs, line.overrides)
    assert sweep.folder == Path("logs/mine")
    assert len(sweep.names or ()) == 2
    (outside / "experiment" / "mine.yaml").write_text("# @package _global_\nbackbone: {min_strde: 3}\n")
    with pytest.raises(ConfigError, match=r"did you mean 'min_stride'\? \(.*mine\.yaml\)"):
        checked("experiment=mine")


def test_options_that_lead_nowhere_are_one_message(tmp_path):
    for arguments, message in {
        ("--config-dir", str(tmp_path / "no")): "no does not exist",
        ("hydra.searchpath=[nowhere]",): "the folder of configs nowhere does not exist",
        ("hydra.searchpath=nowhere",): "hydra.searchpath must be a list of folders",
        ("--foo", "seed=1"): "there is no option --foo",
        ("-m", "--info"): "--multirun and --info do not go together",
        ("--resolve",): "--resolve says which config --cfg shows",
        ("--cfg", "jobs"): "invalid choice: 'jobs'",
    }.items():
        with pytest.raises(ConfigError, match=re.escape(message)):
            parse_command_line(list(arguments), CONFIGS, "train")


def test_readme_has_no_dead_links_or_placeholders():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        text = page.read_text()
        for link in re.findall(r"\]\(([^)#]+)", text):
            assert "://" in link or (page.parent / link).exists(), f"{page.name}: {link}"
        assert not re.search(r"TODO|FIXME|XXX|_TABLE\b", text), page.name
