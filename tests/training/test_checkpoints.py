"""Which checkpoint is the best, which a run goes on from, and how they are written: with a network of one weight."""

from __future__ import annotations

import math
import subprocess

import pytest
import torch
from hydra import compose, initialize_config_dir
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from detpool.errors import ConfigError, WeightsError
from detpool.files import WriteError
from detpool.training.callbacks import RunCheckpoint, SaveOnInterrupt
from detpool.training.checkpoints import (
    check_callbacks,
    choose_weights,
    find_best,
    find_last,
    is_kept_as_best,
    read_checkpoint,
    resume_argument,
    use_whole_checkpoints,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*Checkpoint directory"),
]


class Scripted(LightningModule):
    """Its weight is the number of the epoch, and its metric what the script says."""

    def __init__(self, scores):
        super().__init__()
        self.weight, self.scores = torch.nn.Parameter(torch.zeros(1)), scores

    def on_train_epoch_start(self):
        self.weight.data.fill_(self.current_epoch)

    def training_step(self, batch, batch_idx):
        return 0 * self.weight.sum()

    def validation_step(self, batch, batch_idx):
        self.log("val/AP", self.scores[self.current_epoch])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)


def fit(folder, scores, resume=None, callback=RunCheckpoint, last="last", **best):
    options = {"filename": "best", "monitor": "val/AP", "mode": "max", "enable_version_counter": False} | best
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=len(scores),
        callbacks=[
            callback(str(folder / "checkpoints"), **options),
            RunCheckpoint(
                str(folder / "checkpoints"), last, save_on_train_epoch_end=True, enable_version_counter=False
            ),
            SaveOnInterrupt(str(folder / "checkpoints" / "last.ckpt")),
        ],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=1 if scores[0] is not None else 0,
    )
    use_whole_checkpoints(trainer)
    loader = DataLoader([0.0])
    trainer.fit(Scripted(scores), loader, loader, ckpt_path=resume, weights_only=True)
    return trainer


def epoch_of(checkpoint):
    return int(torch.load(checkpoint, weights_only=True)["state_dict"]["weight"])


@pytest.mark.parametrize(
    "filename", ["best", "ep{epoch}", "{epoch}-{val/AP:.3f}", "a b=c,{step}", None], ids=lambda name: str(name)
)
def test_the_best_epoch_whatever_its_file_is_called(tmp_path, filename):
    chosen = choose_weights(fit(tmp_path, [0.1, 0.9, 0.4], filename=filename), "val/AP")
    assert epoch_of(chosen.path) == 1
    assert (chosen.metric, chosen.reason) == ("val/AP", "")
    assert chosen.score == pytest.approx(0.9)
    assert find_best(tmp_path) == chosen.path
    assert epoch_of(find_last(tmp_path)) == 2
    assert is_kept_as_best(chosen.path)
    assert not is_kept_as_best(find_last(tmp_path))


@pytest.mark.parametrize("callback", [RunCheckpoint, ModelCheckpoint])
@pytest.mark.parametrize("top", [1, 2, -1])
def test_an_epoch_without_a_number_is_never_the_best(tmp_path, callback, top):
    options = {"callback": callback, "save_top_k": top, "filename": "{epoch}"}
    chosen = choose_weights(fit(tmp_path / "never", [math.nan] * 3, **options), "val/AP")
    assert chosen.path is None
    assert chosen.reason == "val/AP was never a number, so no epoch could be chosen"
    chosen = choose_weights(fit(tmp_path / "once", [math.nan, 0.0, math.nan], **options), "val/AP")
    assert epoch_of(chosen.path) == 1


def test_no_epoch_is_chosen_and_it_is_said_why(tmp_path):
    unseen = fit(tmp_path / "a", [None, None])
    assert choose_weights(unseen, "val/AP").reason == "No validation was run while training"
    unkept = fit(tmp_path / "b", [0.5], save_top_k=0)
    assert choose_weights(unkept, "val/AP").reason == "No checkpoint of the best epoch was kept"
    alone = fit(tmp_path / "c", [0.5], monitor=None, filename="x")
    assert choose_weights(alone, "val/AP").reason == "No callback keeps the best checkpoint"


@pytest.mark.parametrize("filename", ["best", "{epoch}-{val/AP:.2f}"])
def test_a_resumed_run_takes_along_what_has_to_be_beaten(tmp_path, filename):
    options = {"filename": filename, "save_top_k": 1 if filename == "best" else 2}
    fit(tmp_path / "a", [0.7, 0.9, 0.1], **options)
    (tmp_path / "a").rename(tmp_path / "moved")
    last = find_last(tmp_path / "moved")
    worse = choose_weights(fit(tmp_path / "b", [0.7, 0.9, 0.1, 0.8], resume=last, **options), "val/AP")
    assert (epoch_of(worse.path), worse.score) == (1, pytest.approx(0.9))
    assert worse.path.is_relative_to(tmp_path / "b")
    better = choose_weights(fit(tmp_path / "c", [0.7, 0.9, 0.1, 0.95], resume=last, **options), "val/AP")
    assert epoch_of(better.path) == 3
    if filename != "best":  # the two best of all epochs, with the worse of them the next to go
        assert {epoch_of(path) for path in (tmp_path / "b").rglob("epoch*/*.ckpt")} == {1, 3}
        assert {epoch_of(path) for path in (tmp_path / "c").rglob("epoch*/*.ckpt")} == {1, 3}


def test_a_best_checkpoint_that_was_left_behind_is_missed_aloud(tmp_path, capsys):
    fit(tmp_path / "a", [0.9, 0.1])
    alone = (tmp_path / "a" / "checkpoints" / "last.ckpt").rename(tmp_path / "last.ckpt")
    chosen = choose_weights(fit(tmp_path / "b", [0.9, 0.1, 0.2], resume=alone), "val/AP")
    assert epoch_of(chosen.path) == 2
    assert "warning: the best checkpoint so far, " in capsys.readouterr().out


def test_a_run_goes_on_from_the_latest_whole_epoch(tmp_path, capsys):
    trainer = fit(tmp_path, [0.1, 0.2, 0.9], last="epoch{epoch}", filename="chosen")
    latest = tmp_path / "checkpoints" / "epochepoch=2.ckpt"
    assert find_last(tmp_path) == latest
    interrupt = trainer.callbacks[-1]  # what it saves holds what the others did in the step
    assert isinstance(interrupt, SaveOnInterrupt)
    interrupt.validation_cut = True
    trainer.save_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    assert find_last(tmp_path) == latest
    interrupt.validation_cut = False
    trainer.save_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    assert find_last(tmp_path).name == "last.ckpt"
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(b"half")
    assert find_last(tmp_path) == latest
    assert "last.ckpt cannot be read" in capsys.readouterr().out
    latest.unlink()
    assert find_last(tmp_path) is None
    (tmp_path / "checkpoints" / "last.ckpt").unlink()
    assert find_best(tmp_path).name == "chosen.ckpt"
    (tmp_path / "checkpoints" / "chosen.ckpt").unlink()
    with pytest.raises(ConfigError, match="holds no checkpoint"):
        find_best(tmp_path)


def test_weights_alone_are_no_state_to_resume(tmp_path):
    fit(tmp_path, [0.5], save_weights_only=True)
    with pytest.raises(WeightsError, match=r"best\.ckpt holds no state of a run to resume: it has weights only"):
        read_checkpoint(tmp_path / "checkpoints" / "best.ckpt")


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, room_for):
    trainer = fit(tmp_path, [0.5, 0.6])
    best = tmp_path / "checkpoints" / "best.ckpt"
    before, files = best.read_bytes(), sorted(best.parent.iterdir())
    trainer.lightning_module.register_buffer("ballast", torch.zeros(100_000))
    with pytest.raises(WriteError, match=f"^cannot write {best}: "), room_for(100_000):
        trainer.save_checkpoint(best)
    assert best.read_bytes() == before
    assert epoch_of(best) == 1
    assert sorted(best.parent.iterdir()) == files
    trainer.save_checkpoint(best)
    assert len(best.read_bytes()) > 400_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"monitor": "val/AP_50"}, r"monitor=val/AP_50 is not a metric of this evaluation; did you mean 'val/AP50'\?"),
        ({"save_top_k": 3}, r"filename=best is the name of each of the best 3 .* such as best-\{epoch\}"),
        ({"save_top_k": -1, "filename": "{val/AP:.1f}"}, r"save_top_k\), which would replace one another"),
        ({"filename": "last"}, r"two keep their checkpoints as last\.ckpt in .*/checkpoints"),
        ({"save_top_k": 3, "filename": "{step}"}, None),
        ({"save_top_k": 3, "enable_version_counter": True}, None),
        ({"save_top_k": 0, "filename": "last"}, None),
        ({"monitor": "val/loss_mask", "mode": "min"}, None),
        ({"monitor": "train/loss", "mode": "min"}, None),
        ({"monitor": "val/loss"}, "monitor=val/loss with mode=max takes the worst for the best: mode=min"),
        ({"monitor": "train/loss"}, "monitor=train/loss with mode=max takes the worst"),
        ({"mode": "min"}, "monitor=val/AP with mode=min takes the worst for the best: mode=max"),
    ],
)
def test_checkpoints_that_would_replace_each_other_are_refused(tmp_path, options, message):
    options = {"filename": "best", "monitor": "val/AP", "mode": "max", "enable_version_counter": False} | options
    callbacks = [
        RunCheckpoint(str(tmp_path / "checkpoints"), **options),
        RunCheckpoint(str(tmp_path / "checkpoints"), "last", enable_version_counter=False),
    ]
    if message is None:
        check_callbacks(callbacks, ["AP", "AP50"])
    else:
        with pytest.raises(ConfigError, match=message):
            check_callbacks(callbacks, ["AP", "AP50"])


@pytest.mark.parametrize(
    "path",
    [
        "/logs/run/last.ckpt",
        "/logs/pooler=roi_pool,seed=0-1f/last.ckpt",
        "/my runs/a  b/last.ckpt",
        '/it\'s/"so"/last.ckpt',
        "/back\\slash\\'/\\\"x/end\\",
        "/${HOME}/$HOME/${oc.env:HOME}/`ls`/last.ckpt",
        "/\\${x}/{a: 1}/[b]/(c)/#d/%e/!f/&g/*h?/~i;j|k<l>",
        "/é/日本/last.ckpt",
    ],
)
def test_the_argument_to_resume_with_reaches_the_config(tmp_path, path):
    argument = resume_argument(path)
    shell = subprocess.run(["sh", "-c", f"printf %s {argument}"], capture_output=True, text=True, check=True)
    (tmp_path / "train.yaml").write_text("ckpt_path: null\n")
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        assert compose("train", overrides=[shell.stdout]).ckpt_path == path
    if path == "/logs/run/last.ckpt":
        assert argument == f"ckpt_path={path}"
