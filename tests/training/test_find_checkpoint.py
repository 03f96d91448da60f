"""What `ckpt_path` means: a checkpoint, or that of a run directory."""

import pytest

from detpool.errors import ConfigError
from detpool.training.runs import find_checkpoint


@pytest.fixture
def run(tmp_path):
    """`run("best", "last")`: a run directory with these checkpoints."""

    def make(*names):
        folder = tmp_path / "run" / "checkpoints"
        folder.mkdir(parents=True)
        for name in names:
            (folder / f"{name}.ckpt").touch()
        return folder.parent

    return make


@pytest.mark.parametrize(
    ("names", "best"),
    [
        (("best", "last"), "best"),
        (("best", "epoch=1", "last"), "best"),
        (("last",), "last"),  # of a run that validated nothing
        (("ep7", "last"), "ep7"),  # callbacks.best.filename="ep{epoch}"
        (("ep7",), "ep7"),
    ],
)
def test_of_a_run_directory_the_best_checkpoint_is_taken(run, names, best):
    folder = run(*names)
    expected = folder / "checkpoints" / f"{best}.ckpt"
    assert find_checkpoint(folder) == find_checkpoint(folder / "checkpoints") == find_checkpoint(expected) == expected


def test_a_run_goes_on_from_the_last(run):
    folder = run("best", "last")
    assert find_checkpoint(folder, "last").name == "last.ckpt"
    (folder / "checkpoints" / "last.ckpt").unlink()
    with pytest.raises(ConfigError, match=r"is a folder without last\.ckpt .*; there are .*best\.ckpt"):
        find_checkpoint(folder, "last")


def test_what_cannot_be_told_is_asked_for(run, tmp_path):
    folder = run("ep7", "ep8", "last")
    with pytest.raises(ConfigError, match=r"is a folder without best\.ckpt .*; there are .*ep7\.ckpt, .*ep8\.ckpt"):
        find_checkpoint(folder)
    with pytest.raises(ConfigError, match=r"bst\.ckpt does not exist .*; there are .*ep7\.ckpt"):
        find_checkpoint(folder / "checkpoints" / "bst.ckpt")
    for path in (tmp_path / "nowhere", tmp_path / ("x" * 5000), tmp_path / "a\0b", tmp_path / "run.ckpt" / "x"):
        with pytest.raises(ConfigError, match="does not exist"):
            find_checkpoint(path)
    with pytest.raises(ConfigError, match=r"is a folder without best\.ckpt"):
        find_checkpoint(tmp_path)
