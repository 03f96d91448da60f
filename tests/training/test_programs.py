"""`train.py` and `eval.py` as a user starts them: processes, signals, DDP, sweeps."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from detpool.evaluation.results import RESULTS, read_results

ROOT = Path(__file__).parents[2]


def start(program, tmp_path, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, str(ROOT / program), *arguments],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


def finish(process, timeout=900):
    output, _ = process.communicate(timeout=timeout)
    return output


def only(folder, pattern):
    (found,) = folder.glob(pattern)
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_arguments):
    """What `train.py` printed, and the run directory."""
    folder = tmp_path_factory.mktemp("trained")
    process = start("train.py", folder, *tiny_arguments, "trainer.max_epochs=1", "keep_checkpoints=best")
    output = finish(process)
    assert process.returncode == 0, output
    return output, only(folder, "logs/train/runs/*")


def test_train_then_evaluate(tmp_path, trained):
    output, run = trained
    assert f"run directory: {run}" in output
    assert "epoch 1/1  train/loss" in output
    assert "Warning" not in output, output
    record = json.loads((run / "metrics.json").read_text())

    process = start("eval.py", tmp_path, f"ckpt_path={run}", "evaluation.pictures=0")
    output = finish(process)
    assert process.returncode == 0, output
    assert f"checkpoint: {run}/checkpoints/best.ckpt" in output
    evaluated = json.loads(only(tmp_path, "logs/eval/runs/*/metrics.json").read_text())
    assert evaluated["metrics"] == record["metrics"]
    assert not only(tmp_path, "logs/eval/runs/*").joinpath("pictures").exists()

    process = start("eval.py", tmp_path, f"ckpt_path={run}/checkpoints/bst.ckpt")
    output = finish(process)
    assert process.returncode == 2
    assert "bst.ckpt does not exist" in output
    assert "best.ckpt" in output
    assert "Traceback" not in output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_leaves_a_loadable_checkpoint(tmp_path, tiny_arguments, number):
    """Sent to the whole process group, workers included, as a terminal, `timeout` and schedulers do."""
    arguments = ["trainer.max_epochs=1000", "data.num_workers=1"]
    process = start("train.py", tmp_path, *tiny_arguments, *arguments, start_new_session=True)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("epoch 2/"):
            break
    os.killpg(process.pid, number)
    lines.append(finish(process))
    output = "".join(lines)
    assert process.returncode == 128 + number, output
    assert "Traceback" not in output
    checkpoint = only(tmp_path, "logs/train/runs/*/checkpoints/last.ckpt")
    assert f"ckpt_path={checkpoint}" in output
    assert torch.load(checkpoint, weights_only=True)["global_step"] >= 8


def test_two_processes_see_every_image_once_and_agree_with_one(tmp_path, trained):
    """The weights of a one-process run, evaluated by two gloo processes: an odd number of images, no padding."""
    _, run = trained
    one = json.loads((run / "metrics.json").read_text())["metrics"]
    arguments = ["trainer.strategy=ddp", "trainer.devices=2", "trainer.accelerator=cpu", f"run_dir={tmp_path / 'two'}"]
    process = start("eval.py", tmp_path, f"ckpt_path={run}/checkpoints/best.ckpt", *arguments)
    output = finish(process)
    assert process.returncode == 0, output
    assert json.loads((tmp_path / "two" / "metrics.json").read_text())["metrics"] == one
    assert read_results(tmp_path / "two" / RESULTS) == read_results(run / RESULTS)


def test_two_processes_train(tmp_path, tiny_arguments):
    arguments = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.max_epochs=1"]
    process = start("train.py", tmp_path, *tiny_arguments, *arguments)
    output = finish(process)
    assert process.returncode == 0, output
    run = only(tmp_path, "logs/train/runs/*")
    assert output.count("run directory") == 1
    assert "Warning" not in output, output
    assert "sync_dist" not in output, output
    # Eight images in batches of two for each of two processes.
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2
    assert json.loads((run / "metrics.json").read_text())["metrics"].keys() >= {"AP", "AP50"}


def test_sweep_over_poolers(tmp_path, tiny_arguments):
    choices = ["pooler=roi_pool,pr_roi_pool", "trainer.max_epochs=1", "trainer.limit_train_batches=1"]
    process = start("train.py", tmp_path, "-m", *tiny_arguments, *choices)
    output = finish(process)
    assert process.returncode == 0, output
    one, two = (OmegaConf.load(path) for path in sorted(tmp_path.glob("logs/train/multiruns/*/*/config.yaml")))
    assert (one.pooler.operator._target_, two.pooler.operator._target_) == (
        "detpool.ops.roi_pool",
        "detpool.ops.pr_roi_pool",
    )
    # The operator, and where the run is, are all that differs.
    two.pooler.operator, two.run_dir = one.pooler.operator, one.run_dir
    for name in ("best", "last"):
        two.callbacks[name].dirpath = one.callbacks[name].dirpath
    two.callbacks.interrupt.path, two.logger.csv.save_dir = one.callbacks.interrupt.path, one.logger.csv.save_dir
    assert one == two
    assert len(list(tmp_path.glob("logs/train/multiruns/*/*/metrics.json"))) == 2


def test_broken_data_is_a_message(tmp_path, tiny_arguments):
    process = start("train.py", tmp_path, "data=coco", f"data.root={tmp_path / 'nowhere'}")
    output = finish(process)
    assert process.returncode == 2
    assert "nowhere" in output
    assert "Traceback" not in output
