"""A config small enough to train in a second or two."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from omegaconf import DictConfig

from detpool.config import Configs

CONFIGS = Configs(Path(__file__).parents[2] / "configs", "train")

TINY = [
    "data.train_images=8",
    "data.val_images=5",
    "data.size=64",
    "data.batch_size=2",
    "data.num_workers=0",
    "backbone.widths=[8,8,8,8]",
    "model.fpn_channels=8",
    "head_pool.channels=16",
    "model.rpn.anchor_sizes=[[8],[16],[32],[48],[64]]",
    "model.rpn.post_nms_top_n_train=20",
    "model.rpn.post_nms_top_n_test=10",
    "model.roi_heads.batch_size_per_image=16",
    "pooler.canonical_scale=32",
    "optim.schedule.warmup_steps=2",
    "trainer.max_epochs=2",
    "evaluation.pictures=2",
    "keep_checkpoints=all",
]


@pytest.fixture(scope="session")
def tiny_arguments() -> list[str]:
    """What to add to the command line of `train.py` for a run of seconds."""
    return TINY


@pytest.fixture(scope="session")
def compose_tiny() -> Callable[..., DictConfig]:
    """`compose_tiny(run_dir, "pooler=roi_pool")`: a composed config.

    `without` names groups whose tiny settings are left out, for a choice that does not have them.
    """

    def compose(run_dir: Path, *overrides: str, without: Sequence[str] = ()) -> DictConfig:
        tiny = [override for override in TINY if override.split(".")[0] not in without]
        return CONFIGS.compose([*tiny, f"run_dir='{run_dir}'", *overrides])

    return compose


@pytest.fixture
def tiny_config(tmp_path: Path, compose_tiny: Callable[..., DictConfig]) -> Callable[..., DictConfig]:
    """`tiny_config("pooler=roi_pool", name="a")`: as `compose_tiny`, whose run directory is `tmp_path / name`."""
    return lambda *overrides, name="run", **rest: compose_tiny(tmp_path / name, *overrides, **rest)
