"""Command lines with mistakes: each ends in a right result, or in one message that names the mistake, before any work.

What train.py does with a command line is called here in this process, up to the step that would read data and train.
"""

from __future__ import annotations

import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra._internal.hydra import Hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from detpool.cli import train
from detpool.config import apply_overrides, check, naming_files, parse_command_line
from detpool.errors import ConfigError, message_of
from detpool.study.plan import plan_sweep
from detpool.training import runs

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"

VALID = [
    "experiment=pooling_shapes proposals=rpn mask_pooler=roi_pool model.rpn.nms_thresh=0.6 trainer.deterministic=warn",
    "experiment=demo",
    "experiment=demo pooler=roi_pool seed=3",
    "experiment=demo pooler=pool pooler.operator.sampling=integral pooler.operator.reduction=sum",
    "experiment=demo downsample=blur stem_pool=max context=spp head_pool=gem",
    "experiment=demo optim=adamw optim.schedule.final_fraction=0.1 trainer.precision=bf16-mixed",
    "experiment=shapes_rfcn pooler.output_size=3 evaluation.voc=true",
    "experiment=shapes_mask_rcnn pooler@mask_pooler=roi_pool evaluation.max_dets=[1,10,50]",
    "data.train_images=8 data.size=[64,96] trainer.max_epochs=1 run_dir=somewhere",
    "callbacks=[default,ema,early_stopping] callbacks.ema.decay=0.9 logger=[csv,tensorboard] seed=1",
    "backbone.widths=[8,8,8,8] model.fpn_channels=8 callbacks.best=null logger=csv",
]
VALUES = [
    *("abc", "-1", "0", "1e30", "99999999999999999999", "null", "true", "[]", "[1,2]", "{a:1}", "''", "", "1.5", "nan"),
    *("naïve", "日本", "a=b", "'a,b'", "a,b", "${seed}", "${nothing}", "${run_dir}", "???", "../..", "/", "x" * 5000),
    *("[[[1]]]", "'", '"', "\\", "~", "$(ls)", "a b", "{_target_:os.system}", "inf", "0x10", "%s", "-"),
]
KEYS = [
    *("trainer.max_epochs", "trainer.devices", "trainer.precision", "trainer.gradient_clip_val", "trainer.accelerator"),
    *("trainer.limit_train_batches", "trainer.check_val_every_n_epoch", "trainer.accumulate_grad_batches", "trainer"),
    *("optim.optimizer.lr", "optim.optimizer.momentum", "optim.schedule.milestones", "optim.schedule.warmup_steps"),
    *("optim", "optim.optimizer", "optim.schedule", "data.batch_size", "data.size", "data.num_workers", "data.masks"),
    *(
        "data",
        "data.train_transform.hflip",
        "model",
        "model.rpn.anchor_sizes",
        "model.fpn_channels",
        "model.proposals",
        "model.rpn",
    ),
    *("model.rpn.nms_thresh", "model.roi_heads.batch_size_per_image", "model.rpn.pre_nms_top_n_train", "pooler"),
    *("pooler.output_size", "pooler.canonical_scale", "pooler.operator", "pooler.operator.sampling_ratio", "backbone"),
    *("backbone.widths", "backbone.min_stride", "head_pool", "head_pool.channels", "evaluation.max_dets", "seed"),
    *("evaluation.iou_types", "evaluation.monitor", "evaluation.split", "evaluation.pictures", "evaluation", "task"),
    *("callbacks", "callbacks.best.monitor", "callbacks.best.mode", "logger", "logger.csv.name", "run_dir", "progress"),
    *(
        "channels_last",
        "class_names",
        "ckpt_path",
        "imports",
        "stem_pool",
        "context",
        "experiment",
        "study",
        "reduction",
    ),
    *("model._target_", "pooler._partial_", "data._target_", "backbone._args_", "hydra.run.dir", "hydra.searchpath"),
]


def mutated(rng: random.Random) -> tuple[list[str], str]:
    """A valid command line with one mistake in it, or something odd that is none; and the argument that is it."""
    line = rng.choice(VALID).split(" ")
    key, value = rng.choice(KEYS), rng.choice(VALUES)
    place, kind = rng.randrange(len(line)), rng.randrange(8)
    if kind < 3:
        odd = f"{key}={value}"
    elif kind == 3:  # a typo in what was right
        odd = line.pop(place)
        at = rng.randrange(len(odd))
        odd = odd[:at] + rng.choice("abcxyz_.=,@/~+é ") + odd[at + 1 :]
    elif kind == 4:
        odd = line.pop(place).partition("=")[0] + "=" + value
    elif kind == 5:
        odd = rng.choice([f"~{key}", f"+{key}={value}", f"++{key}={value}", f"+{key}.new={value}"])
    elif kind == 6:
        odd = rng.choice([f"{key}x={value}", f"{key}.x={value}", f"{key}@x={value}", f"x/{key}={value}", key, "="])
    else:
        odd = rng.choice(["--foo", "-m", "--cfg", "--config-dir=nowhere", "--config-name=nothing", "--", "-x=1"])
    line.insert(rng.randrange(len(line) + 1), odd)
    return line, odd


def build(config: DictConfig) -> None:
    """All that a run builds, without reading data."""
    config.class_names = ["a", "b"]
    with naming_files(config):
        callbacks, loggers = runs.instantiate_all(config.get("callbacks")), runs.instantiate_all(config.get("logger"))
        runs.build_trainer(config, callbacks, loggers)
        instantiate(config.data)
        runs.build_module(config, pretrained=False).build_optimizer()


def outcome(arguments: list[str]) -> str | None:
    """The message that a command line ends with, None if it is right; any other error passes."""
    try:
        line = parse_command_line(arguments, CONFIGS, "train")
        if line.command == "cfg":
            train.show_config(line, Hydra("train", line.configs))
        elif line.command in ("run", "multirun") and line.sweeps:
            plan_sweep(line.configs, line.overrides)
        elif line.command == "run":
            train.check_run(line)
            job = line.configs.load_configuration("train", line.overrides, RunMode.RUN)
            HydraConfig.instance().set_config(job)
            config = line.configs.compose(line.overrides)
            build(config)
        return None
    except Exception as error:
        message = message_of(error)
        if message is None:
            raise
        return message
    finally:
        HydraConfig.instance().cfg = None


def words(argument: str) -> set[str]:
    """What a message can be expected to name of an argument: its key, a part of that, or its value."""
    key, _, value = argument.lstrip("~+-").partition("=")
    parts = {key, *re.split(r"[.@/=]", key), *re.split(r"[.,]", value.strip("'[]"))}
    return {part for part in parts if len(part) > 2} | {argument[:20]}


@pytest.mark.parametrize("part", range(5))
def test_mistakes_end_in_a_right_result_or_one_message(part: int) -> None:
    rng = random.Random(part)
    for _ in range(20):
        line, odd = mutated(rng)
        start = time.process_time()
        message = outcome(line)
        assert time.process_time() - start < 10, line
        if message is not None:
            assert "Traceback" not in message, line
            assert any(word in message for word in words(odd)), (line, odd, message)


def test_mistakes_in_changes_of_a_finished_run_are_one_message() -> None:
    """What eval.py does with its arguments, and the config that it finds."""
    of_run = parse_command_line(["experiment=demo"], CONFIGS, "train").configs.compose(["experiment=demo"])
    rng = random.Random(0)
    for _ in range(200):
        _, odd = mutated(rng)
        config, message = of_run.copy(), odd
        try:
            apply_overrides(config, [odd])
            check(config)
        except ConfigError as error:
            message = str(error)
        assert any(word in message for word in words(odd)), (odd, message)


@pytest.mark.parametrize("line", VALID)
def test_what_the_mistakes_were_made_of_is_right(line: str) -> None:
    assert outcome(line.split(" ")) is None


def test_the_file_that_sets_a_refused_value_is_named(tmp_path: Path) -> None:
    experiment = tmp_path / "experiment" / "mine.yaml"
    experiment.parent.mkdir()
    experiment.write_text(
        "# @package _global_\ndefaults:\n  - demo\n  - override /pooler: pool\n  - _self_\n"
        "pooler: {operator: {sampling_ratio: 2}}\noptim: {optimizer: {momentum: -1}}\n"
    )
    line = ["--config-dir", str(tmp_path), "experiment=mine"]
    message = outcome([*line, "pooler.operator.sampling=cells"])
    assert message is not None
    assert "sampling_ratio 2 has no meaning for sampling 'cells'" in message
    assert f"pooler.operator.sampling_ratio=2 is set in {experiment}" in message
    message = outcome(line)
    assert message == (
        f"optim.optimizer: Invalid momentum value: -1 (optim.optimizer.momentum=-1 is set in {experiment})"
    )
    # What a library says in words of its own is said of what was given.
    message = outcome([*VALID[-1].split(" "), "model.fpn_channels=-1"])
    assert message is not None
    assert message.endswith("(given: model.fpn_channels=8 model.fpn_channels=-1)")


@pytest.mark.parametrize("option", ["trainer=gpu", "trainer.accelerator=cuda", "trainer.accelerator=mps"])
def test_a_device_that_is_not_there_is_one_message(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    message = outcome(["experiment=demo", option])
    accelerator = option.rpartition("=")[2]
    assert message is not None
    assert message.startswith(f"trainer.accelerator={accelerator}: PyTorch finds no such device here; ")
    assert ("is set in configs/trainer/gpu.yaml" in message) == (option == "trainer=gpu")


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900)


@pytest.mark.parametrize(
    "line",
    [["experiment=demo", "poolr=roi_pool"], ["experiment=demo", "-m", "trainer.max_epochs=1,abc"]],
)
def test_the_program_ends_as_its_parts_do(line: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(tmp_path, *line)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {outcome(line)}\n"
    assert not list(tmp_path.iterdir()), "nothing is left of what did not begin"


@pytest.mark.parametrize(
    ("line", "runs"),
    [
        (["-m", "study=smallest"], 4),
        (["study=roi_align"], 21),
        (["pooler=roi_pool,roi_align", "--multirun", "seed=1,2"], 4),
        (["hydra.mode=MULTIRUN", "trainer.max_epochs=range(1,4)"], 3),
    ],
)
def test_a_config_is_shown_and_nothing_started(
    line: list[str], runs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert outcome([*line, "--cfg", "job"]) is None
    shown = capsys.readouterr().out
    assert shown.startswith(f"# The config of the first of {runs} runs:\n")
    assert OmegaConf.create(shown).data._target_ == "detpool.data.shapes.shapes_datamodule"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("started", "named"), [("train.py", "python train.py"), ("/usr/bin/detpool-train", "detpool-train")]
)
def test_a_study_needs_a_sweep(started: str, named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [started, "study=smallest"])
    assert outcome(["study=smallest"]) == f"a study is a sweep: {named} -m study=..."


def test_a_config_fits_a_persons_head(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(["experiment=demo", "--cfg", "job"]) is None
    assert len(capsys.readouterr().out.splitlines()) <= 120


def test_of_a_config_a_part_is_shown_in_any_order_of_options(tmp_path: Path) -> None:
    done = run(tmp_path, "pooler=roi_pool", "--cfg", "job", "-p", "pooler.operator", "seed=3", "--resolve")
    assert (done.returncode, done.stderr) == (0, "")
    assert OmegaConf.create(done.stdout) == {"_target_": "detpool.ops.roi_pool", "_partial_": True}
    assert not list(tmp_path.iterdir())
    message = outcome(["-m", "sweeper=optuna", "seed=1,2", "--cfg", "job"])
    assert message is not None
    assert "a sweeper chooses the runs as it goes" in message
