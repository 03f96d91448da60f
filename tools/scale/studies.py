"""Studies and runs for the benchmark: a study in which all runs are finished, and the files of one run."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from detpool.config import config_folder, parse_command_line
from detpool.run_record import write_metrics
from detpool.study.layout import read_plan, write_plan
from detpool.study.plan import plan_sweep

from .synthetic import write_split

ROOT = Path(__file__).resolve().parents[2]


def plan_study(folder: Path, seeds: int) -> None:
    """Composes, checks and records a study of two poolers and `seeds` seeds, like its first start."""
    line = parse_command_line(_arguments(folder, seeds), config_folder(), "train")
    sweep = plan_sweep(line.configs, line.overrides)
    assert sweep.names is not None
    write_plan(sweep.folder, sweep.names, sweep.command_lines, sweep.inputs)


def finish_runs(folder: Path) -> None:
    """Writes metrics for each planned run."""
    record = folder / "metrics.json"
    write_metrics(record, {"AP": 0.5}, seconds=1.0)
    for name in read_plan(folder):
        (folder / name).mkdir()
        (folder / name / record.name).write_bytes(record.read_bytes())


def start_again(folder: Path, seeds: int) -> float:
    """Starts the finished study again; returns CPU seconds, including the start of Python."""
    return _run_train(_arguments(folder, seeds))


def train_briefly(root: Path, run_dir: Path) -> None:
    """Trains Mask R-CNN with ResNet-50 and 80 classes for one step on one image; it writes the files of any run."""
    for split in ("train2017", "val2017"):
        write_split(root, split, images=8, objects=40)
    small = [f"data.{kind}_transform.min_size=64" for kind in ("train", "eval")]
    limits = [f"trainer.limit_{stage}_batches=1" for stage in ("train", "val", "test")]
    parts = ["experiment=faster_rcnn_r50_fpn_1x", "model=mask_rcnn", "backbone.weights=null", "trainer.max_epochs=1"]
    data = [f"data.root={root}", "data.batch_size=1", "data.num_workers=0"]
    _run_train([*parts, *data, *small, *limits, f"hydra.run.dir={run_dir}"])


def _arguments(folder: Path, seeds: int) -> list[str]:
    return ["-m", "study=smallest", f"seed=range(0,{seeds})", f"hydra.sweep.dir={folder}"]


def _run_train(arguments: Sequence[str]) -> float:
    """Runs train.py, and returns its CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, str(ROOT / "train.py"), *arguments], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
