"""What an installation has, with the extra `train` and without."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

import detpool
from detpool.config import Configs, config_folder
from detpool.extras import TRAIN

if sys.version_info >= (3, 11):
    import tomllib
else:  # which pytest brings
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HINT = "not installed: pip install 'detpool[train]'"
PARTS = ["ops", "poolers", "layers", "detection"]
"""Those whose docstrings name papers."""
NEEDING = [
    "cli.train",
    "cli.report",
    "config",
    "data",
    "detection",
    "evaluation",
    "probing",
    "report",
    "study",
    "training",
]


def start(*command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=3000, **options)


def run_python(code: str) -> str:
    done = start(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("ops", ["lightning", "hydra", "pycocotools", "triton", "numba", "pandas", "matplotlib", "scipy"]),
        ("poolers", ["lightning", "hydra", "pycocotools", "numba", "pandas", "matplotlib", "scipy"]),  # torchvision's
        ("layers", ["lightning", "hydra", "pycocotools", "numba", "pandas", "matplotlib", "scipy"]),  # import Triton
    ],
)
def test_what_an_import_does_not_load(module: str, absent: list[str]) -> None:
    loaded = run_python(f"import sys; from detpool import {module}; print(*sys.modules)").split()
    assert not set(absent) & set(loaded)
    own = {name for name in loaded if name.startswith("detpool.") and name.count(".") == 1}
    assert own == {"detpool.errors", "detpool.extras", "detpool.ops", f"detpool.{module}"}


def test_the_modules_of_the_extra_are_those_that_it_installs() -> None:
    declared = {re.split("[><=]", name)[0] for name in PROJECT["optional-dependencies"]["train"]}
    providers = metadata.packages_distributions()
    found = {provider.lower() for module in TRAIN for provider in providers[module]}
    assert {name.replace("_", "-") for name in found} == declared


@pytest.mark.parametrize("name", NEEDING)
def test_what_needs_the_extra_says_so(name: str) -> None:
    code = f"import sys; sys.modules.update(dict.fromkeys({TRAIN})); import detpool.{name}"
    done = start(sys.executable, "-c", code)
    last = done.stderr.splitlines()[-1]
    assert HINT in last
    if name.startswith("cli"):  # a program's user sees no traceback
        assert (done.returncode, done.stderr.count("\n"), last.partition(":")[0]) == (2, 1, "error")


def test_loading_a_run_needs_the_extra() -> None:
    code = "import sys; sys.modules['lightning'] = None; import detpool; detpool.load"
    assert f"MissingExtraError: lightning {HINT}" in start(sys.executable, "-c", code).stderr


def test_the_workflow_tries_what_the_package_claims() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())["jobs"]
    versions = [name.rpartition(" ")[2] for name in PROJECT["classifiers"] if "Python :: 3." in name]
    assert jobs["newest"]["strategy"]["matrix"]["python"] == versions
    assert PROJECT["requires-python"] == f">={versions[0]}"
    assert jobs["newest"]["steps"][-1]["run"] == "bash .ci/run"
    python, lowest = (jobs["lowest"]["steps"][i] for i in (1, 2))
    assert (python["with"]["python-version"], lowest["run"]) == (versions[0], "make test-lowest")


def test_every_paper_that_a_part_names_is_cited() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == detpool.__version__
    cited = {entry["value"] for paper in citation["references"] for entry in paper.get("identifiers", [])}
    sources = [path.read_text() for part in PARTS for path in (ROOT / "detpool" / part).rglob("*.py")]
    assert {name for text in sources for name in re.findall(r"arXiv:\d+\.\d+", text)} <= cited


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_what_a_page_names_exists(page: str) -> None:
    text = (ROOT / page).read_text()
    code = re.findall(r"`([^`\n]+)`", text)
    links = [ROOT / link for link in re.findall(r"\]\((?!https)([^)#]+)", text)]
    starts = {path.name for path in ROOT.iterdir()}
    words = [word.partition(": ")[0] for word in code]
    paths = [ROOT / word for word in words if re.fullmatch(r"[\w./-]+", word) and word.partition("/")[0] in starts]
    missing = [str(path) for path in links + paths if "NAME" not in str(path) and not path.exists()]
    assert not missing


def test_configs_are_found_in_a_wheel_and_in_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert config_folder() == ROOT / "configs"
    installed = tmp_path / "detpool" / "configs"
    shutil.copytree(ROOT / "configs", installed)
    monkeypatch.setattr("detpool.config.configs.__file__", str(tmp_path / "detpool" / "config" / "configs.py"))
    assert config_folder() == installed
    assert Configs(config_folder(), "train").origin("seed", []) == "configs/train.yaml"


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[Path]:
    """An environment with nothing but pip, removed afterwards: it takes gigabytes."""
    folder = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    yield folder / "bin"
    shutil.rmtree(folder)


@pytest.mark.slow
def test_wheel_and_sdist_in_a_clean_environment(environment: Path, tmp_path: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def run(*words: str | Path, status: int = 0) -> str:
        done = start(*map(str, words), cwd=tmp_path, env=clean)
        assert done.returncode == status, f"{words}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done.stdout + done.stderr

    run(sys.executable, "-m", "build", "--outdir", "dist", ROOT)  # the wheel from the sdist
    (wheel,), (sdist,) = (tmp_path / "dist").glob("*.whl"), (tmp_path / "dist").glob("*.tar.gz")
    assert detpool.__version__ in wheel.name
    assert detpool.__version__ in sdist.name

    run(environment / "pip", "install", wheel)
    code = "import sys, detpool; from detpool import ops, poolers, layers; print(detpool.__version__, *sys.modules)"
    version, *modules = run(environment / "python", "-c", code).split()
    assert version == detpool.__version__
    assert not {"hydra", "lightning", "pycocotools"} & set(modules)
    box = "torch.tensor([[0, 1, 1, 5, 5.0]])"
    code = f"import torch; from detpool import ops; print(ops.roi_align(torch.ones(1, 2, 9, 9), {box}, 1).sum().item())"
    assert run(environment / "python", "-c", code).strip() == "2.0"
    assert HINT in run(environment / "detpool-train", "experiment=demo", status=2)

    run(environment / "pip", "install", f"{wheel}[train]")
    output = run(environment / "detpool-train", "experiment=demo", "trainer.max_epochs=1")
    (record,) = tmp_path.glob("logs/demo/runs/*/metrics.json")
    assert f"run directory: {record.parent}" in output
    content = json.loads(record.read_text())
    assert content["git"] == {"revision": None, "dirty": None}
    assert content["versions"]["detpool"] == detpool.__version__
    run(environment / "detpool-eval", f"ckpt_path={record.parent}", "run_dir=evaluated")
    assert json.loads((tmp_path / "evaluated" / "metrics.json").read_text())["metrics"] == content["metrics"]

    run(environment / "detpool-report", "logs/demo")
    assert f"detpool {detpool.__version__}" in (tmp_path / "logs/report/report.md").read_text()

    run(environment / "pip", "install", "--no-deps", "--force-reinstall", sdist)
    shown = run(environment / "detpool-train", "experiment=demo", "--cfg", "job")
    assert "task: demo" in shown
    listed = run(environment / "detpool-train", "-m", "study=smallest", "--cfg", "job")
    assert listed.startswith("# The config of the first of 4 runs:")
