"""Runs of a sweep in this process: skipped, resumed, begun anew, failed."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from lightning import Callback

from detpool.errors import ConfigError
from detpool.report.collect import collect
from detpool.run_record import write_metrics
from detpool.study.layout import check_same, read_status, write_status
from detpool.study.stopping import Worker
from detpool.training import runs, sweep
from detpool.training.sweep import train_in_sweep

LAST = "<last>"
DIVERGES = ["optim.optimizer.lr=1e18", "optim.schedule.warmup_steps=0", "trainer.gradient_clip_val=null"]


def go(config, in_worker=False):
    return train_in_sweep(config, ["train.py", "seed=0"], "2 of 4", in_worker)


def pretend(monkeypatch, ap=0.5):
    """Runs without training; returns the checkpoints that they would have gone on from."""
    seen = []

    def train(config, command):
        seen.append(config.ckpt_path)
        write_metrics(Path(config.run_dir) / "metrics.json", {"AP": 0.25}, seconds=1, validation={"AP": ap})

    monkeypatch.setattr(sweep, "train", train)
    return seen


def stop_at(monkeypatch, hook, epoch, batch):
    """Ctrl-C at the end of a batch of the training (hook on_train_batch_end) or of the validation."""

    class Interrupt(Callback):
        pass

    def interrupt(self, trainer, module, *args):
        if (trainer.current_epoch, args[2]) == (epoch, batch):
            os.kill(os.getpid(), signal.SIGINT)

    setattr(Interrupt, hook, interrupt)
    build = runs.instantiate_all
    # Before the callback that stops the run, so that the step at hand is the last.
    monkeypatch.setattr(
        runs, "instantiate_all", lambda group: [Interrupt(), *build(group)] if "last" in group else build(group)
    )


def test_finished_run_is_skipped(tiny_config, tmp_path, monkeypatch, capsys):
    result = go(tiny_config("trainer.max_epochs=1"))
    record = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert result == record["metrics"]["AP"]
    assert record["command"] == "train.py seed=0"
    monkeypatch.setattr(sweep, "train", lambda *_: pytest.fail("training has begun"))
    assert go(tiny_config("trainer.max_epochs=1")) == result
    assert f"{tmp_path / 'run'}: finished, skipped" in capsys.readouterr().out


def test_a_run_that_stops_early_is_finished(tiny_config, tmp_path, monkeypatch, capsys):
    never_better = ["callbacks=early_stopping", "callbacks.early_stopping.min_delta=1"]
    patience = "callbacks.early_stopping.patience=1"
    config = tiny_config(*never_better, patience, "trainer.max_epochs=9", "evaluation.pictures=0")
    result = go(config.copy())
    output = capsys.readouterr().out
    assert "stopped early, after epoch 2: Monitored metric val/AP did not improve in the last 1 records." in output
    assert output.count("epoch 2/9") == 1
    assert "epoch 3/9" not in output
    found = collect([tmp_path])
    assert found.problems == []
    assert [run.metrics["AP"] for run in found.runs] == [result]
    monkeypatch.setattr(sweep, "train", lambda *_: pytest.fail("training has begun"))
    assert go(config.copy()) == result


def test_how_to_resume_is_said_as_it_is(tiny_config, tmp_path, monkeypatch, capsys):
    stop_at(monkeypatch, "on_train_batch_end", epoch=0, batch=1)
    for command, end in {
        ("train.py", "-m", "study=x", "seed=0"): "; the same command resumes\n",
        ("train.py", "seed=0", "pooler=roi_pool"): f"\n  python train.py seed=0 pooler=roi_pool {LAST}\n",
    }.items():
        with pytest.raises(SystemExit):
            train_in_sweep(tiny_config("evaluation.pictures=0", name="a b"), command, "1 of 1", in_worker=False)
        last = tmp_path / "a b" / "checkpoints" / "last.ckpt"
        assert f"Saved {last}" in (output := capsys.readouterr().out)
        assert end.replace(LAST, f"'ckpt_path=\"{last}\"'") in output
        shutil.rmtree(tmp_path / "a b")
    monkeypatch.undo()
    stop_at(monkeypatch, "on_train_batch_end", epoch=0, batch=3)
    with pytest.raises(SystemExit):
        train_in_sweep(tiny_config(), ["train.py", "-m", "study=x"], "1 of 1", in_worker=False)
    assert "; the same command begins this run anew, since its validation was cut short" in capsys.readouterr().out


def test_a_sweep_takes_no_checkpoint(tiny_config, tmp_path):
    with pytest.raises(ConfigError, match=r"ckpt_path=a\.ckpt: runs of a sweep find their own checkpoints"):
        go(tiny_config("ckpt_path=a.ckpt"))
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_made_is_no_reason_to_stop(tiny_config, tmp_path, monkeypatch, capsys):
    pretend(monkeypatch)
    (tmp_path / "run").touch()
    assert go(tiny_config()) is None
    assert f"{tmp_path / 'run'}: error: " in capsys.readouterr().err
    (tmp_path / "run").unlink()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "status.json").write_text('{"status": "int')
    assert go(tiny_config()) == 0.5
    assert "status.json is not valid JSON" in capsys.readouterr().out


def test_interrupted_run_is_resumed_to_what_it_would_have_been(tiny_config, tmp_path, monkeypatch):
    go(tiny_config(name="whole"))
    monkeypatch.chdir(tmp_path)
    part = tiny_config()
    part.run_dir = "part"  # relative, as a study's
    with monkeypatch.context() as patch:
        stop_at(patch, "on_train_batch_end", epoch=1, batch=1)
        with pytest.raises(SystemExit) as end:
            go(part.copy())
    assert end.value.code == 130
    assert read_status(tmp_path / "part").state == "interrupted"
    go(part.copy())
    assert read_status(tmp_path / "part") is None
    part, whole = (collect([tmp_path / name]) for name in ("part", "whole"))
    assert part.problems == whole.problems == []
    assert part.runs[0].metrics == whole.runs[0].metrics
    assert part.runs[0].curves["val/AP"].equals(whole.runs[0].curves["val/AP"])
    for name in ("best", "last"):
        a, b = (
            torch.load(tmp_path / run / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]
            for run in ("part", "whole")
        )
        assert all(torch.equal(a[key], b[key]) for key in b)


TWICE = ["+trainer.val_check_interval=2"]  # in each epoch, which has four steps


@pytest.mark.parametrize(
    ("hook", "batch", "options"),
    [("on_train_batch_end", 3, []), ("on_validation_batch_end", 0, []), ("on_train_batch_end", 1, TWICE)],
)
def test_run_whose_validation_was_cut_begins_anew(tiny_config, tmp_path, monkeypatch, hook, batch, options):
    stop_at(monkeypatch, hook, epoch=0, batch=batch)
    with pytest.raises(SystemExit):
        go(tiny_config(*options))
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()
    monkeypatch.undo()
    seen = pretend(monkeypatch)
    assert go(tiny_config(*options)) == 0.5
    assert seen == [None]
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("options", [["trainer.limit_val_batches=0"], ["trainer.check_val_every_n_epoch=2"]])
def test_run_that_is_stopped_where_no_validation_is_due_goes_on(tiny_config, tmp_path, monkeypatch, options):
    stop_at(monkeypatch, "on_train_batch_end", epoch=0, batch=3)
    with pytest.raises(SystemExit):
        go(tiny_config(*options))
    monkeypatch.undo()
    seen = pretend(monkeypatch)
    assert go(tiny_config(*options)) == 0.5
    assert seen == [str(tmp_path / "run" / "checkpoints" / "last.ckpt")]


def test_a_run_of_another_config_does_not_pass_for_this_one(tiny_config, tmp_path, monkeypatch, capsys):
    one = ["trainer.max_epochs=1", "evaluation.pictures=0"]
    result = go(tiny_config(*one))
    monkeypatch.setattr(sweep, "train", lambda *_: pytest.fail("training has begun"))
    assert go(tiny_config(*one, "progress=false", "data.num_workers=1")) == result
    capsys.readouterr()
    for other in ("seed=1", "trainer.max_epochs=2"):
        assert go(tiny_config(*one, other)) is None
        assert f"{tmp_path / 'run'} holds a run of another config" in capsys.readouterr().err
    # Nor is a sweep begun whose numbered runs would be there.
    (tmp_path / "run").rename(tmp_path / "1")
    check_same(tmp_path / "1", tiny_config(*one, name="elsewhere"), 0)
    check_same(tmp_path / "2", tiny_config(*one), 1)
    with pytest.raises(ConfigError, match="1 holds a run of another config"):
        check_same(tmp_path / "1", tiny_config(*one, name="elsewhere"), 1)


def test_failed_runs_leave_their_error_and_begin_anew(tiny_config, tmp_path, monkeypatch, capsys):
    assert go(tiny_config(*DIVERGES)) is None
    status = read_status(tmp_path / "run")
    assert status.state == "diverged"
    assert status.error.startswith("the loss is ")
    assert "error: the loss is " in capsys.readouterr().err

    def fail(config, command):
        assert not (tmp_path / "run" / "config.yaml").exists()
        raise OSError("disk full")

    monkeypatch.setattr(sweep, "train", fail)
    assert go(tiny_config(*DIVERGES)) is None
    assert read_status(tmp_path / "run").state == "failed"
    assert "disk full" in read_status(tmp_path / "run").error
    assert "Traceback" in capsys.readouterr().err
    assert "Traceback" in json.loads((tmp_path / "run" / "status.json").read_text())["traceback"]
    pretend(monkeypatch)
    assert go(tiny_config(*DIVERGES)) == 0.5
    assert read_status(tmp_path / "run") is None


def test_damaged_files_are_no_reason_to_stop(tiny_config, tmp_path, monkeypatch, capsys):
    run_dir = tmp_path / "run"
    (run_dir / "checkpoints").mkdir(parents=True)
    (run_dir / "metrics.json").write_text('{"metrics": ')
    (run_dir / "checkpoints" / "last.ckpt").write_bytes(b"half a file")
    seen = pretend(monkeypatch)
    assert go(tiny_config()) == 0.5
    assert seen == [None]
    output = capsys.readouterr().out
    assert "metrics.json is not valid JSON" in output
    assert "last.ckpt cannot be read" in output
    assert {path.name for path in run_dir.iterdir()} == {".lock", "metrics.json"}


def test_run_of_another_process_is_left_alone(tiny_config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "train", lambda *_: pytest.fail("training has begun"))
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert go(tiny_config()) is None
    assert "another process is working on it, skipped" in capsys.readouterr().out


def test_file_systems_without_locks_do_not_keep_runs_from_beginning(tiny_config, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSYS, "flock")

    monkeypatch.setattr(sweep.fcntl, "flock", refuse)
    seen = pretend(monkeypatch)
    assert go(tiny_config()) == 0.5
    assert seen == [None]


def test_interrupted_worker_ends_its_run_and_begins_no_other(tiny_config, tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(Worker, "stopped", False)
    monkeypatch.setattr(sweep, "train", lambda *_: os.kill(os.getpid(), signal.SIGTERM))

    def write_while_signalled(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)  # the program hands on what the terminal has sent already
        write_status(*arguments)

    monkeypatch.setattr(sweep, "write_status", write_while_signalled)
    try:
        assert go(tiny_config(name="a"), in_worker=True) is None
        assert read_status(tmp_path / "a").state == "interrupted"
        assert go(tiny_config(name="b"), in_worker=True) is None
        assert not Path(tmp_path / "b").exists()
        os.kill(os.getpid(), signal.SIGTERM)  # between two runs: the process lives on
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])
