"""Command lines with mistakes: each ends in a right result, or in one message that names the mistake, before any work.

What train.py does with a command line is called here in this process, up to the step that would read data and train.
"""

from __future__ import annotations

import importlib.util
import random
import re
import time
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, open_dict

from detpool.config import naming_files, parse_command_line
from detpool.errors import message_of
from detpool.training import runs

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"

VALID = [
    "experiment=demo",
    "experiment=demo pooler=roi_pool seed=3",
    "experiment=demo pooler=pool pooler.operator.sampling=integral pooler.operator.reduction=sum",
    "experiment=demo downsample=blur stem_pool=max context=spp head_pool=gem",
    "experiment=demo optim=adamw optim.schedule.final_fraction=0.1 trainer.precision=bf16-mixed",
    "experiment=shapes_rfcn pooler.output_size=3 evaluation.voc=true",
    "experiment=shapes_mask_rcnn pooler@mask_pooler=roi_pool evaluation.max_dets=[1,10,50]",
    "data.train_images=8 data.size=[64,96] trainer.max_epochs=1 run_dir=somewhere",
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
    *("data", "data.train_transform.hflip", "model", "model.anchor_sizes", "model.fpn_channels", "model.proposals"),
    *("model.rpn_nms_thresh", "model.box_batch_size_per_image", "model.rpn_pre_nms_top_n_train", "pooler"),
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


specification = importlib.util.spec_from_file_location("train", ROOT / "train.py")
assert specification
assert specification.loader
train = importlib.util.module_from_spec(specification)
specification.loader.exec_module(train)


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
        if line.shows_config:
            train.shown(line)
            return None
        if train.plan(line) is None and not line.asks:
            config = line.configs.compose(line.overrides, hydra=True)
            HydraConfig.instance().set_config(config)
            with open_dict(config):
                del config["hydra"]
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


@pytest.mark.parametrize("part", range(10))
def test_mistakes_end_in_a_right_result_or_one_message(part: int) -> None:
    rng = random.Random(part)
    for _ in range(20):
        line, odd = mutated(rng)
        start = time.monotonic()
        message = outcome(line)
        assert time.monotonic() - start < 10, line
        if message is not None:
            assert "Traceback" not in message, line
            assert any(word in message for word in words(odd)), (line, odd, message)


@pytest.mark.parametrize("line", VALID)
def test_what_the_mistakes_were_made_of_is_right(line: str) -> None:
    assert outcome(line.split(" ")) is None
