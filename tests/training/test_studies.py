"""Sweeps as a user starts them: `python train.py -m study=...`, launchers and Optuna."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from omegaconf import OmegaConf

from detpool.report.collect import collect

ROOT = Path(__file__).parents[2]


def start(tmp_path, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


def finish(process):
    output, _ = process.communicate(timeout=1500)
    return output


PYRAMID = "model.rpn.anchor_sizes=[[8],[16],[32],[48]]"  # the studies' experiment has four levels
SHORT = ["trainer.max_epochs=1", "trainer.check_val_every_n_epoch=1", "evaluation.pictures=0"]
UNSTABLE = ["optim.schedule.warmup_steps=0", "trainer.gradient_clip_val=null"]


def test_study_with_failing_runs_is_continued_and_reported(tmp_path, tiny_arguments):
    arguments = [
        "-m",
        "study=smallest",
        *tiny_arguments,
        PYRAMID,
        *SHORT,
        *UNSTABLE,
        "pooler=roi_pool",
        "seed=0",
        "optim.optimizer.lr=1e18,0.01",
    ]
    process = start(tmp_path, *arguments)
    output = finish(process)
    study = tmp_path / "logs" / "smallest"
    assert process.returncode == 1, output
    assert "logs/smallest: 1 of 2 runs finished, 1 failed, 0 not finished" in output
    assert output.count(": diverged: the loss is ") == 1
    assert "Traceback" not in output
    names = json.loads((study / "sweep.json").read_text())["runs"]
    assert {path.name for path in study.iterdir() if path.is_dir()} == set(names)
    (finished,) = [study / name for name in names if (study / name / "metrics.json").is_file()]
    (failed,) = set(names) - {finished.name}
    assert OmegaConf.load(finished / "config.yaml").optim.optimizer.lr == 0.01
    # The command of the run, not of the sweep: it finds its own folder.
    command = json.loads((finished / "metrics.json").read_text())["command"].split()
    assert command[:2] == ["train.py", "-m"]
    assert {"study=smallest", "pooler=roi_pool", "seed=0", "optim.optimizer.lr=0.01"} <= set(command)

    process = start(tmp_path, *arguments)
    output = finish(process)
    assert process.returncode == 1, output
    assert "logs/smallest: 1 of 2 runs were finished before, and are skipped" in output
    assert output.count("run directory: ") == 1
    assert f"run {1 + names.index(failed)} of 2: logs/smallest/{failed}\n" in output
    assert "a report: python tools/report.py logs/smallest\n" in output

    found = collect([study])
    assert [run.folder for run in found.runs] == [finished]
    (problem,) = found.problems
    assert problem.message.startswith("diverged: the loss is ")


def test_workers_that_a_signal_ends_while_they_start_are_no_error_of_their_own():
    program = (
        "import os, signal\n"
        "from detpool.study.stopping import wait_for_workers\n"
        "with wait_for_workers():\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    raise RuntimeError('a worker is gone')\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 128 + signal.SIGINT
    assert ended.stderr == "\nstopping the runs (Ctrl-C again: at once)\n"


def test_parallel_runs_are_all_saved_at_ctrl_c(tmp_path, tiny_arguments):
    """Joblib's processes, of a study with variants; a terminal sends Ctrl-C to the whole process group."""
    arguments = ["-m", "study=roi_align", "launcher=joblib", *tiny_arguments, PYRAMID, "trainer.max_epochs=1000"]
    arguments += ["variant=points_1,warped", "seed=0,1"]

    def interrupted(times, first):
        process = start(tmp_path, *arguments, start_new_session=True)
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if all(any(f"[{run} of 4] {first}" in line for line in lines) for run in (1, 2)):
                break
        for _ in range(times):
            os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.2)
        output = "".join(lines) + finish(process)
        assert process.returncode == 128 + signal.SIGINT, output
        assert "Traceback" not in output
        return output

    output = interrupted(1, "epoch 1/")
    assert {line[:8] for line in output.splitlines() if "epoch 1/" in line} == {"[1 of 4]", "[2 of 4]"}
    assert "0 of 4 runs finished, 0 failed, 4 not finished" in output
    # Which of the two depends on whether the signal came in a validation.
    assert output.count("; the same command resumes") + output.count("; the same command begins this run anew") == 2
    assert "ckpt_path=" not in output
    assert f"what resumes it:\n  python {ROOT / 'train.py'} -m study=roi_align launcher=joblib" in output
    stopped = sorted(tmp_path.glob("logs/roi_align/*/status.json"))
    assert [path.parent.name.rpartition("-")[0] for path in stopped] == [
        "variant=points_1,seed=0",
        "variant=points_1,seed=1",
    ]
    for path in stopped:
        assert json.loads(path.read_text())["status"] == "interrupted"
        assert torch.load(path.parent / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] > 0
    # They are resumed; a second Ctrl-C does not wait for them.
    assert "stopped at once; the same command resumes" in interrupted(2, "epoch ")


def test_optuna_survives_a_run_that_diverges(tmp_path, tiny_arguments):
    chosen = ["optim.optimizer.lr=choice(0.01,1e18)", "sweeper=optuna", "hydra.sweeper.n_trials=3"]
    process = start(tmp_path, "-m", *tiny_arguments, *SHORT, *UNSTABLE, *chosen)
    output = finish(process)
    assert process.returncode == 1, output
    (sweep,) = tmp_path.glob("logs/train/multiruns/*")
    rates = [OmegaConf.load(sweep / str(n) / "config.yaml").optim.optimizer.lr for n in range(3)]
    assert set(rates) == {0.01, 1e18}
    assert OmegaConf.load(sweep / "optimization_results.yaml").best_params == {"optim.optimizer.lr": 0.01}
    assert output.count(": diverged: the loss is ") == rates.count(1e18)
    assert f"run 3 of 3: {sweep / '2'}\n" in output
    assert ": optim.optimizer.lr=0.01\na report: python tools/report.py logs/train/multiruns/" in output
