"""Packages of a user's own, in processes as a user starts them: what they register is known by name everywhere."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = """\
from detpool import ops
from detpool.ops.sampling import integral_taps

ops.register_sampling("exact", ops.Sampling(taps=integral_taps))
ops.register_reduction("doubled", lambda samples: 2 * samples.mean())
"""
NAMED = ["pooler=pool", "pooler.operator.sampling=exact", "pooler.operator.reduction=doubled"]
SHORT = ["trainer.max_epochs=1", "trainer.limit_train_batches=1", "evaluation.pictures=0", "keep_checkpoints=best"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with packages, on the path of what `start` starts."""
    folder = tmp_path_factory.mktemp("code")
    package = folder / "my_package" / "deep"
    package.mkdir(parents=True)
    for file in (package.parent / "__init__.py", package / "__init__.py"):
        file.touch()
    (package / "poolers.py").write_text(CODE)
    (package / "broken.py").write_text("import math\n\nmath.sqrt(-1)\n")
    return folder


@pytest.fixture
def start(folder, tmp_path):
    def start(*arguments, variable=""):
        path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", str(ROOT))])
        environment = os.environ | {"PYTHONPATH": path, "DETPOOL_IMPORTS": variable}
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)

    return start


def test_what_a_submodule_registers_is_known_by_name(start, tmp_path, tiny_arguments):
    """In the worker processes of a sweep, in `eval.py` and in `detpool.load`, which do not take the run's word."""
    named = [*tiny_arguments, *SHORT, *NAMED, "launcher=joblib", "seed=0,1"]
    done = start(ROOT / "train.py", "-m", *named, "imports=[my_package.deep.poolers]")
    assert done.returncode == 0, done.stdout + done.stderr
    run, _ = sorted(tmp_path.glob("logs/train/multiruns/*/*"))[-2:]
    trained = json.loads((run / "metrics.json").read_text())["metrics"]

    given = [ROOT / "eval.py", f"ckpt_path={run}", f"run_dir={tmp_path / 'evaluated'}"]
    refused = start(*given)
    assert refused.returncode == 2
    assert "sampling must be one of 'cells', 'points', 'counted_points', 'integral', got 'exact'" in refused.stderr
    done = start(*given, "imports=[my_package.deep.poolers]")
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "evaluated" / "metrics.json").read_text())["metrics"] == trained

    load = f"import detpool; print(detpool.load({str(run)!r}, OVERRIDES).model.roi_heads.box_roi_pool)"
    done = start("-c", load.replace("OVERRIDES", "'imports=[my_package.deep.poolers]'"))
    assert "sampling='exact'" in done.stdout, done.stderr
    done = start("-c", load.replace(", OVERRIDES", ""), variable="my_package.deep.poolers")
    assert "sampling='exact'" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_pakage.poolers", "imports=[my_pakage.poolers]: there is no module 'my_pakage'; Python finds modules"),
        (
            "my_package.poolers",
            "imports=[my_package.poolers]: there is no module 'my_package.poolers'; Python finds modules",
        ),
        (
            "my_package.deep.broken",
            "imports=[my_package.deep.broken]: importing my_package.deep.broken raises ValueError: ",
        ),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_line(start, tiny_arguments, name, message):
    done = start(ROOT / "train.py", *tiny_arguments, f"imports=[{name}]")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {message}")
    assert ("broken.py, line 3)" in line) == ("broken" in name)
