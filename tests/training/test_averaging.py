"""Averages of the weights: validated, chosen, kept and evaluated in place of the last step's."""

import copy

import pytest
import torch

from detpool.run_config import load_config
from detpool.training import runs
from detpool.training.module import DetectionModule

NAME = "model.roi_heads.box_head.fc6.weight"


@pytest.fixture
def validated(monkeypatch):
    """The weights that each validation was of, one layer of them."""
    found = []
    evaluate = DetectionModule._evaluate

    def noted(self, batch, batch_idx, stage):
        if batch_idx == 0:
            found.append(self.state_dict()[NAME].clone())
        evaluate(self, batch, batch_idx, stage)

    monkeypatch.setattr(DetectionModule, "_evaluate", noted)
    return found


def read(tmp_path, name, run="run"):
    return torch.load(tmp_path / run / "checkpoints" / f"{name}.ckpt", weights_only=True)


def test_the_averages_of_the_best_epoch_are_evaluated(tiny_config, tmp_path, validated):
    # The rate falls, so that the first epoch has the highest: the best is not the last.
    best_is_first = ["callbacks.best.monitor=train/lr", "evaluation.split=val"]
    averaged = tiny_config("callbacks=ema", "callbacks.ema.decay=0.5", *best_is_first)
    seen = []
    step = DetectionModule.on_train_batch_start

    def noted(self, batch, batch_idx):
        seen.append(self.state_dict()[NAME].clone())
        step(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DetectionModule, "on_train_batch_start", noted)
        runs.train(averaged)
    best, last = read(tmp_path, "best"), read(tmp_path, "last")
    # Of the weights after each of the four steps of the first epoch.
    average = seen[1]
    for after in seen[2:5]:
        average = 0.5 * average + 0.5 * after
    assert torch.allclose(best["state_dict"][NAME], average, atol=1e-7)
    assert torch.equal(best["current_model_state"][NAME], seen[4])
    assert not torch.equal(best["state_dict"][NAME], last["state_dict"][NAME])
    of_epochs = [best["state_dict"][NAME], last["state_dict"][NAME], best["state_dict"][NAME]]
    assert len(validated) == 3  # one an epoch, and the evaluation of the best
    for weights, expected in zip(validated, of_epochs, strict=True):
        assert torch.equal(weights, expected)


def test_averaging_changes_no_step(tiny_config, tmp_path):
    runs.train(tiny_config("callbacks=ema", name="averaged"))
    runs.train(tiny_config(name="plain"))
    averaged, plain = read(tmp_path, "last", "averaged"), read(tmp_path, "last", "plain")
    assert all(
        torch.equal(averaged["current_model_state"][name], plain["state_dict"][name]) for name in plain["state_dict"]
    )
    assert not torch.equal(averaged["state_dict"][NAME], plain["state_dict"][NAME])


def test_of_a_finished_run_the_averages_alone_are_kept(tiny_config, tmp_path):
    runs.train(tiny_config("callbacks=ema", "trainer.max_epochs=1", "keep_checkpoints=best"))
    (kept,) = (tmp_path / "run").rglob("*.ckpt")
    content = torch.load(kept, weights_only=True)
    assert not {"current_model_state", "averaging_state", "optimizer_states"} & content.keys()
    config = load_config(kept)
    config.class_names = list(config.class_names)
    assert torch.equal(runs.restore(config, kept).state_dict()[NAME], content["state_dict"][NAME])


def test_copies_of_the_module_leave_the_ground_truth_behind(tiny_config):
    """The data set may be large, and averaging copies the module."""
    config = tiny_config()
    data = runs.build_data(config)
    config.class_names = list(data.class_names)
    module = runs.build_module(config)
    module.prepare_evaluation(data.val_dataset)
    copied = copy.deepcopy(module)
    assert copied.evaluator is copied.evaluated is None
    assert module.evaluated is data.val_dataset


def test_weights_in_training_stand_for_averages_until_there_are_some(tiny_config, tmp_path, validated):
    """The first step after which there is an average is the first of the second epoch; or there is none."""
    late = ["callbacks=ema", "callbacks.ema.decay=0.5", "evaluation.split=val"]
    runs.train(tiny_config(name="plain"))
    plain = read(tmp_path, "last", "plain")["state_dict"]
    first = validated[0]
    del validated[:]
    runs.train(tiny_config(*late, "+callbacks.ema.update_starting_at_step=100", name="never"))
    last = read(tmp_path, "last", "never")
    assert all(torch.equal(last["state_dict"][name], plain[name]) for name in plain)
    assert torch.equal(validated[0], first)
    assert torch.equal(validated[1], plain[NAME])
    del validated[:]
    runs.train(tiny_config(*late, "+callbacks.ema.update_starting_at_step=4", name="late"))
    assert torch.equal(validated[0], first)
    assert not torch.equal(validated[1], plain[NAME])
    assert torch.equal(validated[1], read(tmp_path, "last", "late")["state_dict"][NAME])
    with pytest.raises(Exception, match="update_every_n_steps must be at least 1, got 0"):
        runs.train(tiny_config("callbacks=ema", "+callbacks.ema.update_every_n_steps=0"))
