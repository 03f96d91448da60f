"""Whole runs, small: every part, resume bit for bit, evaluation from the run directory alone."""

import errno
import functools
import json
import math
import multiprocessing
import os
import re
import signal

import pytest
import torch
import torchvision
from lightning import Callback
from omegaconf import OmegaConf

from detpool.data.datamodule import DetectionDataModule
from detpool.errors import ConfigError, DataError, WeightsError
from detpool.evaluation.matches import MATCHES, read_matches
from detpool.evaluation.resampling import resampled_ap
from detpool.evaluation.results import RESULTS, read_results
from detpool.report.collect import collect
from detpool.report.groups import make_sections
from detpool.run_config import load_config
from detpool.study.layout import read_status
from detpool.training import runs
from detpool.training.callbacks import SaveOnInterrupt
from detpool.training.checkpoints import has_training_state, is_kept_as_best, read_checkpoint
from detpool.training.resuming import check_free
from detpool.training.sweep import train_in_sweep


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


def assert_same_weights(one, other):
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different, f"{len(different)} of {len(one)} differ: {different[:3]}"


def test_a_run_trains_every_part_and_evaluates(tiny_config, tmp_path, capsys):
    config = tiny_config("trainer.max_epochs=1", "trainer.limit_train_batches=2")
    metrics = runs.train(config)
    assert 0 <= metrics["AP"] <= 1
    before = runs.build_module(config).state_dict()
    after = weights(tmp_path / "run" / "checkpoints" / "last.ckpt")
    # Gradients went through the pooler to the backbone, and reached both heads.
    for name in ("backbone.body.stem.0.0.weight", "roi_heads.box_head.fc6.weight", "rpn.head.conv.0.0.weight"):
        assert torch.isfinite(after[f"model.{name}"]).all()
        assert not torch.equal(after[f"model.{name}"], before[f"model.{name}"]), name
    printed = capsys.readouterr().out
    assert str(tmp_path / "run") in printed
    assert "AP50" in printed


def test_run_directory_holds_all_that_evaluation_needs(tiny_config, tmp_path):
    metrics = runs.train(tiny_config("trainer.max_epochs=1"))
    folder = (tmp_path / "run").rename(tmp_path / "moved")
    record = json.loads((folder / "metrics.json").read_text())
    assert record["metrics"]["AP"] == metrics["AP"]
    assert {"git", "versions", "hardware", "seconds", "command"} <= record.keys()
    assert 0 < record["step_seconds"] < record["seconds"]
    assert record["errors"]["objects"] == len(runs.build_data(tiny_config()).val_dataset.ground_truth()["annotations"])
    data = runs.build_data(tiny_config(), ["fit"])
    assert record["images"] == {"train": len(data.train_dataset), "val": len(data.val_dataset)}
    assert isinstance(read_results(folder / RESULTS), list)
    every_image_once = resampled_ap(read_matches(folder / MATCHES), resamples=1)
    assert {name: values[0] for name, values in every_image_once.items()}.items() <= metrics.items()
    assert len(list((folder / "pictures").glob("*.png"))) == 3  # two images and the contact sheet

    checkpoint = folder / "checkpoints" / "best.ckpt"
    config = load_config(checkpoint)
    config.run_dir = str(tmp_path / "again")
    again = runs.restore_and_evaluate(config, checkpoint, start=0)
    assert again.keys() == metrics.keys()

    # Reports read both, and know them for one run.
    found = collect([tmp_path])
    assert found.problems == []
    assert [run.curves["val/AP"].count() for run in found.runs if not run.curves.empty] == [1]
    (section,) = make_sections(found.runs)
    assert [run.folder for run in section.all_runs] == [folder]

    for name, value in metrics.items():
        assert again[name] == value or (math.isnan(again[name]) and math.isnan(value)), name


def test_of_a_finished_run_the_best_weights_are_kept(tiny_config, tmp_path):
    """They evaluate as before, nothing is left to resume from, and an attempt says what would have been."""
    one_epoch = ["trainer.max_epochs=1", "keep_checkpoints=best"]
    metrics = runs.train(tiny_config(*one_epoch))
    runs.train(tiny_config("trainer.max_epochs=1", name="all"))
    (kept,) = (tmp_path / "run").rglob("*.ckpt")
    whole = tmp_path / "all" / "checkpoints" / kept.name
    assert_same_weights(weights(kept), weights(whole))
    assert kept.stat().st_size < 0.6 * whole.stat().st_size  # momentum was as large as the weights
    assert runs.find_checkpoint(tmp_path / "run") == kept
    assert is_kept_as_best(kept)  # reports warn of it where the set it was chosen on is evaluated
    again = runs.restore_and_evaluate(load_config(kept), kept, start=0)
    assert again["AP"] == metrics["AP"]

    for path, error in {tmp_path / "run": ConfigError, kept: WeightsError}.items():
        with pytest.raises(error, match="can be trained on if it was made with keep_checkpoints=all"):
            runs.train(tiny_config(f"ckpt_path={path}", name="more"))
    runs.train(tiny_config(f"ckpt_path={tmp_path / 'all'}", name="more"))

    # Where no epoch could be chosen, the last weights are those that were evaluated.
    runs.train(tiny_config(*one_epoch, "callbacks.best=null", name="last"))
    (kept,) = (tmp_path / "last").rglob("*.ckpt")
    assert not has_training_state(read_checkpoint(kept))


class StopAfter(Callback):
    """Sends this process a signal at one point of the run, as a user or a scheduler would."""

    def __init__(self, hook: str, epoch: int, batch: int, number: int) -> None:
        def stop(trainer, module, *args):
            # Validation hooks end with the number of the loader.
            if trainer.current_epoch == epoch and args[1] == batch:
                os.kill(os.getpid(), number)

        setattr(self, hook, stop)


PLAIN, WITH_WORKERS, ACCUMULATED = [], ["data.num_workers=2"], ["trainer.accumulate_grad_batches=2"]
AVERAGED = ["callbacks=[default,ema]", "callbacks.ema.decay=0.5"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, compose_tiny):
    """`uninterrupted(options)`: the last weights of a run that nothing stopped."""

    @functools.cache
    def train(*options):
        run_dir = tmp_path_factory.mktemp("whole")
        runs.train(compose_tiny(run_dir, *options))
        return weights(run_dir / "checkpoints" / "last.ckpt")

    return train


@pytest.mark.parametrize(
    ("options", "number", "hook", "epoch", "batch"),
    [
        (PLAIN, signal.SIGINT, "on_train_batch_start", 0, 1),
        (PLAIN, signal.SIGINT, "on_train_batch_start", 1, 3),  # the last of all
        (PLAIN, signal.SIGINT, "on_train_batch_start", 0, 3),  # the last of an epoch, whose validation is cut short
        (PLAIN, signal.SIGINT, "on_validation_batch_start", 0, 1),
        (WITH_WORKERS, signal.SIGTERM, "on_train_batch_start", 1, 1),
        (WITH_WORKERS, signal.SIGTERM, "on_validation_batch_start", 0, 1),
        (ACCUMULATED, signal.SIGINT, "on_train_batch_start", 0, 0),  # saved when its gradients are used
        (ACCUMULATED, signal.SIGINT, "on_train_batch_start", 0, 3),
        (AVERAGED, signal.SIGINT, "on_train_batch_start", 0, 1),
        (AVERAGED, signal.SIGINT, "on_validation_batch_start", 0, 1),  # amid a validation of the averages
    ],
)
def test_interrupted_and_resumed_equals_uninterrupted(
    tiny_config, tmp_path, monkeypatch, uninterrupted, options, number, hook, epoch, batch
):
    build = runs.instantiate_all
    stop = StopAfter(hook, epoch, batch, number)
    monkeypatch.setattr(
        runs, "instantiate_all", lambda group: [*build(group), stop] if "last" in group else build(group)
    )
    with pytest.raises(SystemExit) as end:
        runs.train(tiny_config(*options, name="part"))
    assert end.value.code == 128 + number
    assert multiprocessing.active_children() == []  # the end of the program would wait for them
    monkeypatch.undo()

    last = tmp_path / "part" / "checkpoints" / "last.ckpt"
    runs.train(tiny_config(*options, f"ckpt_path={last}", name="rest"))
    assert_same_weights(weights(tmp_path / "rest" / "checkpoints" / "last.ckpt"), uninterrupted(*options))


class JobEnds(Exception):
    """What submitit's handler of SIGUSR2 raises, by whatever name."""


def test_announced_end_of_a_job_saves_before_the_handler_ends_it(tiny_config, tmp_path, monkeypatch):
    runs.train(tiny_config(name="whole"))
    last = tmp_path / "part" / "checkpoints" / "last.ckpt"

    def end_job(number, frame):
        raise JobEnds(f"step {torch.load(last, weights_only=True)['global_step']}")

    class Announce(Callback):
        def on_train_batch_start(self, trainer, module, *args):
            if trainer.global_step == 5:
                os.kill(os.getpid(), signal.SIGUSR2)

    build = runs.instantiate_all
    monkeypatch.setattr(
        runs, "instantiate_all", lambda group: [*build(group), Announce()] if "last" in group else build(group)
    )
    before = signal.signal(signal.SIGUSR2, end_job)
    try:
        with pytest.raises(JobEnds, match="step 6"):
            runs.train(tiny_config(name="part"))
        assert signal.getsignal(signal.SIGUSR2) is end_job
    finally:
        signal.signal(signal.SIGUSR2, before)
    monkeypatch.undo()
    runs.train(tiny_config(f"ckpt_path={last}", name="rest"))
    assert_same_weights(
        weights(tmp_path / "rest" / "checkpoints" / "last.ckpt"),
        weights(tmp_path / "whole" / "checkpoints" / "last.ckpt"),
    )


def test_stopped_after_an_epoch_and_resumed_equals_uninterrupted(tiny_config, tmp_path, monkeypatch):
    runs.train(tiny_config(name="whole"))

    class Crash(Callback):
        def on_train_epoch_start(self, trainer, module):
            if trainer.current_epoch == 1:
                raise OSError("power cut")

    build = runs.instantiate_all
    monkeypatch.setattr(
        runs, "instantiate_all", lambda group: [*build(group), Crash()] if "last" in group else build(group)
    )
    with pytest.raises(OSError, match="power cut"):
        runs.train(tiny_config(name="part"))
    monkeypatch.undo()
    last = tmp_path / "part" / "checkpoints" / "last.ckpt"
    runs.train(tiny_config(f"ckpt_path={last}", name="rest"))
    assert_same_weights(
        weights(tmp_path / "rest" / "checkpoints" / "last.ckpt"),
        weights(tmp_path / "whole" / "checkpoints" / "last.ckpt"),
    )


def test_signal_handlers_are_restored(tiny_config):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    runs.train(tiny_config("trainer.max_epochs=1", "trainer.limit_train_batches=1"))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert SaveOnInterrupt("x")._previous == {}


def test_feature_maps_reach_the_pooler_in_channels_last(tiny_config):
    for channels_last in (True, False):
        config = tiny_config(f"channels_last={channels_last}")
        config.class_names = ["a", "b"]
        module = runs.build_module(config)
        seen: list[torch.Tensor] = []
        module.model.roi_heads.box_roi_pool.register_forward_pre_hook(
            lambda _, args, seen=seen: seen.extend(args[0].values())
        )
        module.eval()
        module.model([torch.rand(3, 64, 96)])
        assert all(value.is_contiguous(memory_format=torch.channels_last) for value in seen) == channels_last


def test_limits_and_sanity_checks_evaluate_a_part(tiny_config):
    for options in (["trainer.limit_val_batches=1"], ["trainer.num_sanity_val_steps=1"]):
        metrics = runs.train(tiny_config("trainer.max_epochs=1", *options))
        assert 0 <= metrics["AP"] <= 1


def test_settings_of_evaluation_and_data_are_checked_before_training(tiny_config, monkeypatch):
    monkeypatch.setattr(runs.Trainer, "fit", lambda *args, **kwargs: pytest.fail("training has begun"))
    for option, message in {
        "evaluation.split=tst": "evaluation.split must be val or test, got 'tst'",
        "evaluation.backend=pycoco": "evaluation: .*pycoco",
        "evaluation.max_dets=[100,10]": "evaluation: .*max_dets",
        "data.size=16": "data: .*size",
        "data.classes=[sqare]": "data: .*sqare",
    }.items():
        with pytest.raises(ConfigError, match=message):
            runs.train(tiny_config(option))


def test_callbacks_and_loggers_can_be_left_out(tiny_config):
    assert 0 <= runs.train(tiny_config("~callbacks", "~logger", "trainer.max_epochs=1"))["AP"] <= 1


def test_restored_network_is_the_trained_one(tiny_config, tmp_path):
    """Norms that are frozen because there were weights stay so, though nothing is loaded from the weights' file."""
    network = torchvision.models.resnet18(weights=None)
    torch.save(network.state_dict(), tmp_path / "resnet18.pth")
    config = tiny_config("backbone=resnet18", f"backbone.weights={tmp_path / 'resnet18.pth'}", without=["backbone"])
    config.class_names = ["a"]
    loaded = runs.build_module(config)
    (tmp_path / "resnet18.pth").unlink()
    restored = runs.build_module(config, pretrained=False)
    assert [type(m) for m in restored.modules()] == [type(m) for m in loaded.modules()]
    assert [p.requires_grad for p in restored.parameters()] == [p.requires_grad for p in loaded.parameters()]


def test_mixed_precision_trains(tiny_config):
    metrics = runs.train(tiny_config("trainer.precision=bf16-mixed", "trainer.max_epochs=1"))
    assert 0 <= metrics["AP"] <= 1


def test_statistics_are_not_shared_on_a_cpu(tiny_config):
    two = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    with pytest.raises(ConfigError, match="trainer.sync_batchnorm=true: PyTorch shares statistics between GPUs alone"):
        runs.train(tiny_config(*two, "trainer.sync_batchnorm=true"))


def test_bars_and_lines_show_the_metric_that_chooses_the_epoch(tiny_config, monkeypatch, capsys):
    shown = []

    class Bar(Callback):
        """What a progress bar is given."""

        def on_train_epoch_end(self, trainer, pl_module):
            shown.append([name for name in trainer.progress_bar_metrics if name.startswith("val/")])

    build = runs.instantiate_all
    monkeypatch.setattr(
        runs, "instantiate_all", lambda group: [*build(group), Bar()] if "last" in group else build(group)
    )
    runs.train(tiny_config("evaluation.monitor=AP75", "trainer.max_epochs=1"))
    assert shown == [["val/AP75"]]
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch 1/1")]
    assert "  val/AP " in line
    assert "  val/AP75 " in line


def test_loss_that_is_not_finite_is_named(tiny_config):
    with pytest.raises(FloatingPointError, match=r"the loss is (nan|inf) at epoch \d+, step \d+ \(loss_classifier"):
        runs.train(
            tiny_config("optim.optimizer.lr=1e18", "optim.schedule.warmup_steps=0", "trainer.gradient_clip_val=null")
        )


def test_errors_of_checkpoints(tiny_config, tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        runs.train(tiny_config(f"ckpt_path={tmp_path / 'nothing.ckpt'}"))
    runs.train(tiny_config("trainer.max_epochs=1", "trainer.limit_train_batches=1"))
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    with pytest.raises(ConfigError, match=r"nothing.ckpt does not exist .* there are .*best.ckpt, .*last.ckpt"):
        runs.find_checkpoint(last.with_name("nothing.ckpt"))
    with pytest.raises(WeightsError, match="the run it comes from has another pooler"):
        runs.train(tiny_config(f"ckpt_path={last}", "pooler=roi_pool", name="other"))
    config = load_config(last)
    config.class_names = ["cat", "dog"]
    with pytest.raises(ConfigError, match=r"the data has the classes .* trained for \['cat', 'dog'\]"):
        runs.restore_and_evaluate(config, last, 0)
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="cannot be read as a state dict"):
        runs.restore_and_evaluate(load_config(last), last, 0)
    (tmp_path / "run" / "config.yaml").unlink()
    with pytest.raises(ConfigError, match=r"no config.yaml beside"):
        load_config(last)


def test_a_checkpoint_goes_on_with_its_own_settings_of_the_optimizer(tiny_config, tmp_path, capsys):
    """They take the place of the config's: others are refused by name, and what has an effect is said."""
    runs.train(tiny_config("callbacks=ema", "trainer.max_epochs=1", "evaluation.pictures=0", name="before"))
    last = tmp_path / "before" / "checkpoints" / "last.ckpt"
    resume = ["callbacks=ema", "evaluation.pictures=0", f"ckpt_path={last}"]
    for options, message in {
        ("optim.optimizer.lr=0.5", "optim.optimizer.momentum=0"): "lr=0.02, optim.optimizer.momentum=0.9; to begin",
        ("optim.optimizer={_target_: torch.optim.AdamW}",): "continues with optim.optimizer._target_=torch.optim.SGD;",
        ("optim.backbone_rate=0.1",): "continues with optim.backbone_rate=1.0;",
        ("optim.frozen=[backbone.body.stem]",): "continues with optim.frozen=[];",
        ("callbacks=default",): "continues with averages of the weights (callbacks=ema);",
    }.items():
        with pytest.raises(WeightsError, match=re.escape(message)):
            runs.train(tiny_config(*resume, *options))
    with pytest.raises(
        WeightsError, match=r"continues with optim\.schedule\._target_=detpool\.training\.schedules\.mult"
    ):
        runs.train(tiny_config(*resume, "optim.schedule=null", without=["optim"]))
    # A run of before some settings came.
    file = tmp_path / "before" / "config.yaml"
    config = OmegaConf.load(file)
    del config.model["weights"], config.model.roi_heads["nms"], config.optim["frozen"]
    file.write_text(OmegaConf.to_yaml(config))
    capsys.readouterr()
    further = ["optim.schedule.milestones=[0.5]", "trainer.accumulate_grad_batches=2", "data.num_workers=1"]
    runs.train(tiny_config(*resume, *further))
    names = "optim.schedule.milestones, trainer.accumulate_grad_batches"
    assert f"note: {names} changed since {last}: the result is not" in capsys.readouterr().out


def test_a_run_that_goes_on_in_its_folder_keeps_its_curves(tiny_config, tmp_path, monkeypatch):
    run_dir = tmp_path / "run"
    runs.train(tiny_config("trainer.max_epochs=1", "evaluation.pictures=0"))
    resume = tiny_config("evaluation.pictures=0", f"ckpt_path={run_dir}")
    check_free(run_dir, resume.ckpt_path)
    for other in (None, str(tmp_path / "a.ckpt")):
        with pytest.raises(ConfigError, match=f"{run_dir} holds another run: choose another folder, .* ckpt_path="):
            check_free(run_dir, other)
    with monkeypatch.context() as patch:
        patch.setattr(runs.Trainer, "fit", raise_crash)
        with pytest.raises(RuntimeError, match="crash"):
            runs.train(resume.copy())
    assert not (run_dir / "metrics.json").exists()  # they would be of other weights
    runs.train(resume.copy())
    (run,) = collect([run_dir]).runs
    assert list(run.curves["val/AP"].dropna().index) == [1, 2]


def raise_crash(*_, **__):
    raise RuntimeError("crash")


@pytest.mark.parametrize(("split", "limit"), [("test", "limit_test_batches"), ("val", "limit_val_batches")])
def test_an_evaluation_of_a_part_is_said_and_of_nothing_refused(tiny_config, tmp_path, split, limit):
    given = ["trainer.max_epochs=1", "evaluation.pictures=0", f"evaluation.split={split}"]
    with pytest.raises(ConfigError, match=rf"trainer\.{limit} is 0, and evaluation\.split={split} is to be evaluated"):
        runs.train(tiny_config(*given, f"+trainer.{limit}=0"))
    notes = {}
    for batches in (1, 1000):
        runs.train(tiny_config(*given, f"+trainer.{limit}={batches}", name=str(batches)))
        notes[batches] = [note for note in record(tmp_path / str(batches))["notes"] if "Evaluated on" in note]
    assert notes == {1: [f"Evaluated on 1 of 3 batches of the {split} split (trainer.{limit})."], 1000: []}


def test_saved_config_is_whole_and_resolved(tiny_config, tmp_path):
    config = tiny_config()
    config.class_names = ["a"]
    runs.save_config(config, tmp_path / "run")
    text = (tmp_path / "run" / "config.yaml").read_text()
    assert "${" not in text
    assert OmegaConf.create(text).data.seed == config.seed


def test_resumed_run_keeps_the_best_checkpoint_so_far(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(runs.DetectionEvaluator, "compute", lambda self, partial=False: {"AP": 0.5})
    runs.train(tiny_config("trainer.max_epochs=1", name="before"))
    (tmp_path / "before").rename(tmp_path / "first")
    monkeypatch.setattr(runs.DetectionEvaluator, "compute", lambda self, partial=False: {"AP": 0.25})
    last = tmp_path / "first" / "checkpoints" / "last.ckpt"
    runs.train(tiny_config(f"ckpt_path={last}", name="second"))
    assert_same_weights(
        weights(tmp_path / "second" / "checkpoints" / "best.ckpt"),
        weights(tmp_path / "first" / "checkpoints" / "best.ckpt"),
    )


def test_signal_handlers_are_restored_after_an_error(tiny_config):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(FloatingPointError):
        runs.train(
            tiny_config("optim.optimizer.lr=1e18", "optim.schedule.warmup_steps=0", "trainer.gradient_clip_val=null")
        )
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["evaluation.monitor=AP_50"],
            "evaluation.monitor=AP_50 is not a metric of this evaluation; did you mean 'AP50'",
        ),
        (["evaluation.monitor=mask_AP"], "evaluation.monitor=mask_AP is not a metric"),
        (["evaluation.iou_types=[bbox,segm]", "data.masks=true"], "segm needs a model that predicts masks"),
        (["evaluation.iou_types=[bbox,segm]"], "evaluation: iou_type 'segm' needs masks"),
        (
            ["callbacks=early_stopping", "callbacks.early_stopping.monitor=val/AP_50"],
            "callbacks: monitor=val/AP_50 is not a metric of this evaluation; did you mean 'val/AP50'",
        ),
        (
            ["callbacks=early_stopping", "trainer.limit_val_batches=0"],
            "early stopping by val/AP needs validations, and trainer.limit_val_batches is 0",
        ),
    ],
)
def test_what_validation_would_refuse_is_refused_before_training(tiny_config, tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        runs.train(tiny_config(*overrides))
    assert not (tmp_path / "run").exists()


def test_mask_rcnn_is_evaluated_and_chosen_by_masks(tiny_config, tmp_path):
    config = tiny_config("model=mask_rcnn", "model.mask_channels=8", "trainer.max_epochs=1")
    metrics = runs.train(config)
    assert {"AP", "mask_AP", "mask_AP75"} <= metrics.keys()
    best = torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    chosen = [state for name, state in best["callbacks"].items() if "val/mask_AP" in name]
    assert len(chosen) == 1
    logged = (tmp_path / "run" / "csv" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"val/loss", "val/loss_mask", "val/mask_AP"} <= set(logged)


def script(monkeypatch, *values):
    """The metric AP of the evaluations of a run, one after another."""
    remaining = iter(values)
    monkeypatch.setattr(
        runs.DetectionEvaluator,
        "compute",
        lambda self, partial=False: {"AP": next(remaining) if self._predicted else 0.0},
    )


def record(folder):
    return json.loads((folder / "metrics.json").read_text())


def with_test_set(monkeypatch, build):
    """Gives the runs a test set of their own, which generated shapes have not."""
    build_data = runs.build_data

    def build_all(config, stages=("validate",)):
        data = build_data(config)
        data._build_test = build
        for stage in stages:
            data.setup(stage)
        return data

    monkeypatch.setattr(runs, "build_data", build_all)


def test_the_weights_that_are_evaluated_have_any_name(tiny_config, tmp_path, monkeypatch, capsys):
    script(monkeypatch, 0.9, 0.1, 0.9)
    name = ["callbacks.best.filename='{epoch}-{val/AP:.1f}'", "callbacks.last.filename=end"]
    runs.train(tiny_config(*name, name="a"))
    chosen = tmp_path / "a" / "checkpoints" / "epoch=0-val" / "AP=0.9.ckpt"
    assert record(tmp_path / "a")["checkpoint"] == str(chosen.relative_to(tmp_path / "a"))
    assert record(tmp_path / "a")["validation"] == {"AP": 0.9}
    assert not (tmp_path / "a" / "checkpoints" / "last.ckpt").exists()
    assert load_config(chosen).run_dir == str(tmp_path / "a")

    # Nothing is left to train: it is said, and the same weights are evaluated.
    capsys.readouterr()
    script(monkeypatch, 0.9)
    runs.train(tiny_config(*name, f"ckpt_path={tmp_path}/a/checkpoints/end.ckpt", name="b"))
    said = capsys.readouterr().out
    assert "note: there was nothing to train: the weights are at step 8 (trainer.max_epochs=2, " in said
    assert "note: The test split is the validation set, which chose the epoch too." in said
    again = tmp_path / "b" / record(tmp_path / "b")["checkpoint"]
    assert again != chosen
    assert_same_weights(weights(again), weights(chosen))
    assert record(tmp_path / "b")["notes"] == record(tmp_path / "a")["notes"]


def test_a_metric_that_is_never_a_number_chooses_no_epoch(tiny_config, tmp_path, monkeypatch, capsys):
    script(monkeypatch, math.nan, math.nan, math.nan)
    runs.train(tiny_config())
    sentence = "val/AP was never a number, so no epoch could be chosen: the metrics are those of the last weights."
    assert record(tmp_path / "run")["notes"] == [sentence]
    assert record(tmp_path / "run")["checkpoint"] == "checkpoints/last.ckpt"
    assert f"note: {sentence}" in capsys.readouterr().out
    assert not (tmp_path / "run" / "checkpoints" / "best.ckpt").exists()
    (run,) = collect([tmp_path]).runs
    assert run.record["notes"] == [sentence]


def test_sweepers_get_the_validation_metric_of_what_is_evaluated(tiny_config, tmp_path, monkeypatch):
    dataset = runs.build_data(tiny_config("data.data_seed=9")).val_dataset
    with_test_set(monkeypatch, lambda: dataset)
    script(monkeypatch, 0.25, 0.5, 0.125)
    assert train_in_sweep(tiny_config(name="a"), ["train.py"], "1 of 1", in_worker=False) == 0.5
    assert record(tmp_path / "a")["metrics"]["AP"] == 0.125
    assert record(tmp_path / "a")["notes"] == []
    assert train_in_sweep(tiny_config(name="a"), ["train.py"], "1 of 1", in_worker=False) == 0.5  # as it stands there
    # Chosen by something else, the metric of the chosen weights is measured.
    script(monkeypatch, 0.25, 0.5, 0.75, 0.125)
    options = ["callbacks.best.monitor=val/loss", "callbacks.best.mode=min"]
    assert train_in_sweep(tiny_config(*options, name="b"), ["train.py"], "1 of 1", in_worker=False) == 0.75
    assert record(tmp_path / "b")["metrics"]["AP"] == 0.125


@pytest.mark.parametrize(
    ("error", "expected"),
    [(DataError("test.json is broken"), DataError), (TypeError("unexpected"), ConfigError)],
)
def test_a_test_set_that_cannot_be_read_ends_a_run_before_its_first_step(
    tiny_config, tmp_path, monkeypatch, error, expected
):
    class Data(DetectionDataModule):
        def __init__(self, **options):
            super().__init__(**options)
            self._build_test = self.fail

        def fail(self):
            raise error

    monkeypatch.setattr("detpool.data.shapes.DetectionDataModule", Data)
    with pytest.raises(expected, match=str(error)):
        runs.train(tiny_config())
    assert not (tmp_path / "run").exists()


def test_a_full_disk_is_one_message_and_leaves_the_checkpoint_before(tiny_config, tmp_path, monkeypatch, capsys):
    replace, last = os.replace, tmp_path / "run" / "checkpoints" / "last.ckpt"

    def refuse(source, target):
        if str(target) == str(last) and last.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr("detpool.files.os.replace", refuse)
    assert train_in_sweep(tiny_config(), ["train.py"], "1 of 1", in_worker=False) is None
    message = f"cannot write {last}: {os.strerror(errno.ENOSPC)}"
    assert [line for line in capsys.readouterr().err.splitlines() if "cannot" in line or "Traceback" in line] == [
        f"{tmp_path / 'run'}: error: {message}"
    ]
    status = read_status(tmp_path / "run")
    assert (status.state, status.error) == ("interrupted", message)
    assert message in str(collect([tmp_path]).problems[0])
    assert torch.load(last, weights_only=True)["global_step"] == 4
    assert sorted(path.name for path in last.parent.iterdir()) == ["best.ckpt", "last.ckpt"]

    monkeypatch.undo()  # there is room again
    assert train_in_sweep(tiny_config(), ["train.py"], "1 of 1", in_worker=False) is not None
    assert "resumed from checkpoints/last.ckpt" in capsys.readouterr().out
    assert torch.load(last, weights_only=True)["global_step"] == 8


def test_a_training_without_end_needs_no_schedule(tiny_config, tmp_path):
    endless = ["trainer.max_epochs=-1", "+trainer.max_time=00:00:00:01"]
    with pytest.raises(ConfigError, match=r"trainer\.max_epochs=-1 without trainer\.max_steps has no end .*schedule"):
        runs.train(tiny_config(*endless))
    assert not (tmp_path / "run" / "checkpoints").exists()
    runs.train(tiny_config(*endless, "optim.schedule=null", without=["optim"]))
    runs.train(tiny_config("trainer.max_epochs=-1", "+trainer.max_steps=3", name="steps"))
    assert torch.load(tmp_path / "steps" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 3


def test_a_last_batch_of_one_image_trains(tiny_config, tmp_path, capsys):
    options = ["data.size=32", "data.object_size=[0.3,0.6]"]  # a map of one cell
    one_epoch = ["data.train_images=3", "trainer.max_epochs=1", "evaluation.pictures=0"]
    runs.train(tiny_config(*options, *one_epoch))
    assert "gets one value per channel of a batch of shape (1, " in capsys.readouterr().out
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2
    with pytest.raises(ConfigError, match=r"cannot normalize a batch of shape \(1, .*data\.batch_size must be"):
        runs.train(tiny_config(*options, "data.batch_size=1", name="alone"))


def test_what_lightning_refuses_is_a_message(tiny_config, tmp_path, monkeypatch):
    for option, message in {
        "trainer.limit_train_batches=0.01": "0.01",
        "+trainer.val_check_interval=100": "val_check_interval",
    }.items():
        with pytest.raises(ConfigError, match=f"^trainer: .*{message}"):
            runs.train(tiny_config(option, name=message))
    with monkeypatch.context() as patch:  # whereas a fault of our own keeps its traceback
        patch.setattr(runs.DetectionModule, "training_step", lambda *_: int("x"))
        with pytest.raises(ValueError, match="invalid literal") as error:
            runs.train(tiny_config(name="fault"))
        assert not isinstance(error.value, ConfigError)
    with pytest.raises(ConfigError, match=r"monitor=val/AP_50 is not a metric .* 'val/AP50'"):
        runs.train(tiny_config("callbacks.best.monitor=val/AP_50", name="misspelt"))
    assert not (tmp_path / "misspelt").exists()


def test_diagnostics_that_are_asked_for(tiny_config, tmp_path, capsys):
    asked = "evaluation.diagnostics=[tide,calibration,confusion]"
    masks = ["model=mask_rcnn", "data.masks=true", "evaluation.iou_types=[bbox,segm,boundary]"]
    runs.train(tiny_config("trainer.max_epochs=1", *masks, asked))
    record = json.loads((tmp_path / "run" / "metrics.json").read_text())
    names = {"ECE", "ECE/circle", "dAP50/missed", "mask_dAP50/false_positive", "boundary_AP75"}
    assert names <= record["metrics"].keys()
    assert record["mask_errors"].keys() == record["errors"].keys()
    assert record["mask_errors"]["objects"] == record["errors"]["objects"]
    assert (tmp_path / "run" / "confusion.png").is_file()
    header, *lines = (tmp_path / "run" / "confusion.csv").read_text().splitlines()
    assert header.startswith("object,circle,")
    counted = sum(int(number) for line in lines[:-1] for number in line.split(",")[1:])
    assert counted == record["errors"]["objects"]
    assert "mended error" in capsys.readouterr().out
