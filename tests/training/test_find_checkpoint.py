"""What `ckpt_path` means: a checkpoint, or that of a run directory."""

import pytest
import torch

from detpool.errors import ConfigError
from detpool.training.runs import find_checkpoint


@pytest.fixture
def run(tmp_path):
    """A run directory whose best checkpoint has a name of its own."""
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    best = str(folder / "ep7.ckpt")
    kept = {"monitor": "val/AP", "best_model_path": best, "best_k_models": {best: 0.5}}
    for step, name in enumerate(("ep7", "last")):
        content = {"callbacks": {"ModelCheckpoint": kept}, "global_step": step, "optimizer_states": []}
        torch.save(content, folder / f"{name}.ckpt")
    return folder.parent


def test_a_folder_means_its_best_or_its_last_checkpoint(run):
    best, last = (run / "checkpoints" / f"{name}.ckpt" for name in ("ep7", "last"))
    assert find_checkpoint(run) == find_checkpoint(run / "checkpoints") == find_checkpoint(best) == best
    assert find_checkpoint(run, "last") == last
    last.unlink()
    with pytest.raises(ConfigError, match="is a folder without a checkpoint to go on from"):
        find_checkpoint(run, "last")


def test_what_is_not_there_is_named(run, tmp_path):
    with pytest.raises(ConfigError, match=r"bst\.ckpt does not exist .*; there are .*ep7\.ckpt"):
        find_checkpoint(run / "checkpoints" / "bst.ckpt")
    for path in (tmp_path / "nowhere", tmp_path / ("x" * 5000), tmp_path / "a\0b", tmp_path / "run.ckpt" / "x"):
        with pytest.raises(ConfigError, match="does not exist"):
            find_checkpoint(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"empty holds no checkpoint"):
        find_checkpoint(tmp_path / "empty")


def test_checkpoints_of_runs_below_are_not_its_own(run, tmp_path):
    for folder in (tmp_path, run):
        (folder / "config.yaml").touch()
    torch.save({"callbacks": {}, "global_step": 0, "optimizer_states": []}, tmp_path / "mine.ckpt")
    assert find_checkpoint(tmp_path) == find_checkpoint(tmp_path, "last") == tmp_path / "mine.ckpt"
    (tmp_path / "mine.ckpt").unlink()
    with pytest.raises(ConfigError, match="holds no checkpoint"):
        find_checkpoint(tmp_path)
