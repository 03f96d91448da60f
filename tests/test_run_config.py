"""Configs that runs of earlier revisions left, in the keys of today."""

import contextlib
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from detpool.config import Configs, apply_overrides, check, parse_override, parse_path
from detpool.errors import ConfigError
from detpool.run_config import load_config, read_run_config

ALL = Configs(Path(__file__).parents[1] / "configs", "train")
# What was in a config as 74ee8ad wrote it, by its model.
OLD = {
    "faster_rcnn": {
        "proposals": "rpn",
        "anchor_sizes": [[8], [16], [32], [48], [64]],
        "anchor_aspect_ratios": [0.5, 1.0],
        "rpn_nms_thresh": 0.6,
        "rpn_top_n_train": 5,
        "box_nms_thresh": 0.4,
        "bbox_reg_weights": [1, 1, 1, 1],
        "fpn_channels": 8,
    },
    "iou_net": {"proposals": "jittered", "rpn_min_iou": 0.4, "refine_steps": 2, "box_score_thresh": 0.1},
    "fast_rcnn": {"proposals": "given", "rpn_top_n_train": 7, "box_batch_size_per_image": 64},
}


@pytest.mark.parametrize("model", OLD)
def test_an_earlier_run_has_the_keys_of_today(model: str, tmp_path: Path) -> None:
    config = ALL.compose([f"model={model}"])
    OmegaConf.set_struct(config, False)
    config.model = {"_target_": config.model._target_, **OLD[model]}
    OmegaConf.save(config, tmp_path / "config.yaml")
    read = load_config(tmp_path)
    check(read)
    found = read.model
    if model == "faster_rcnn":
        assert (found.rpn.aspect_ratios, found.rpn.nms_thresh, found.fpn_channels) == ([0.5, 1.0], 0.6, 8)
        assert "top_n_train" not in found.rpn  # of a kind of proposals that was not chosen: it had no effect
        assert (found.roi_heads.nms_thresh, found.roi_heads.bbox_reg_weights) == (0.4, [1, 1, 1, 1])
        assert found.proposals is None
    elif model == "iou_net":
        assert found.proposals == {"_target_": "detpool.detection.JitteredProposals", "min_iou": 0.4}
        assert (found.roi_heads._target_, found.roi_heads.refine_steps) == ("detpool.detection.IoUHeads", 2)
    else:
        assert found.proposals == {"_target_": "detpool.detection.GivenProposals", "top_n_train": 7}
        assert found.roi_heads.batch_size_per_image == 64


def test_a_config_of_today_is_read_as_it_is(tmp_path: Path) -> None:
    config = ALL.compose(["model=rfcn"])
    OmegaConf.save(config, tmp_path / "config.yaml")
    assert read_run_config(tmp_path / "config.yaml") == config


def test_the_home_folder_is_put_in_for_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    config = ALL.compose(["data=coco", "data.root='~/coco'"])
    assert config.data.root == "/home/me/coco"
    apply_overrides(config, ["data.root='~/other'"])
    assert config.data.root == "/home/me/other"


@pytest.mark.parametrize(
    ("argument", "path"),
    [
        ("logs/a", "logs/a"),
        ("~/logs/pooler=pool,seed=0", "/home/me/logs/pooler=pool,seed=0"),
        ("'~/logs/pooler=pool,seed=0'", "/home/me/logs/pooler=pool,seed=0"),
        ('"logs/pooler=pool,seed=0"', "logs/pooler=pool,seed=0"),
        (r"'it\'s'", "it's"),
        ("'", "'"),
        ("'a'b'", "'a'b'"),
    ],
)
def test_paths_are_read_with_and_without_the_quotes_that_hydra_needs(
    monkeypatch: pytest.MonkeyPatch, argument: str, path: str
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert str(parse_path(argument)) == path
    with contextlib.suppress(ConfigError):  # where Hydra reads the argument, it reads the same
        assert str(Path(parse_override(f"path={argument}").value()).expanduser()) == path
