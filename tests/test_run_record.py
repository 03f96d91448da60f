"""metrics.json."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import torchvision

from detpool.run_record import git_state, provenance, read_metrics, write_metrics


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=T", "-c", "user.email=t@example.com")
    done = subprocess.run(["git", *identity, "-C", str(folder), *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    (folder / "package").mkdir(parents=True)
    (folder / "package" / "code.py").write_text("1\n")
    (folder / ".gitignore").write_text("logs/\n")
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "first")
    return folder


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.json"
    metrics = {"AP": 0.1 + 0.2, 'AP/a "class" é': torch.tensor(0.5), "APs": math.nan, "loss": math.inf, "epochs": 3}
    write_metrics(path, metrics, seconds=12.34567, command=["train.py", "data.root=a b"])

    def no_constants(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    raw = json.loads(path.read_text(encoding="utf-8"), parse_constant=no_constants)
    assert raw["metrics"]["APs"] is None
    assert raw["metrics"]["loss"] is None

    record = read_metrics(path)
    assert list(record["metrics"]) == list(metrics)
    assert record["metrics"]["AP"] == 0.1 + 0.2
    assert record["metrics"]['AP/a "class" é'] == 0.5
    assert math.isnan(record["metrics"]["APs"])
    assert math.isnan(record["metrics"]["loss"])
    assert record["seconds"] == 12.346
    assert record["command"] == "train.py 'data.root=a b'"
    assert record["versions"]["python"] == platform.python_version()
    assert record["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert record["versions"]["torchvision"].partition("+")[0] == torchvision.__version__.partition("+")[0]
    assert set(record["versions"]) == {"python", "detpool", "torch", "torchvision", "lightning"}
    assert record["hardware"]["cores"] >= 1
    assert record["hardware"]["cpu"]
    assert len(record["hardware"]["gpus"]) == torch.cuda.device_count()
    assert set(record["git"]) == {"revision", "dirty"}


def test_git_state_of_a_checkout(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    revision = git(checkout, "rev-parse", "HEAD")
    (checkout / "logs").mkdir()
    (checkout / "logs" / "run").write_text("ignored\n")
    with monkeypatch.context() as hook:  # git sets these for the programs that its hooks start
        hook.setenv("GIT_DIR", str(checkout.parent / "elsewhere"))
        hook.setenv("GIT_WORK_TREE", str(checkout.parent))
        assert git_state(checkout) == {"revision": revision, "dirty": False}
    (checkout / "package" / "pooler.py").write_text("new\n")
    assert git_state(checkout) == {"revision": revision, "dirty": True}
    (checkout / "package" / "pooler.py").unlink()
    (checkout / "package" / "code.py").write_text("2\n")
    assert git_state(checkout) == {"revision": revision, "dirty": True}


def test_git_state_writes_nothing_into_the_checkout(checkout: Path, room_for: Any) -> None:
    for path in checkout.rglob("*"):  # with other times, git would write the index anew
        if path.is_file() and ".git" not in path.parts:
            os.utime(path, (1, 1))
    index = (checkout / ".git" / "index").read_bytes()
    with room_for(9):  # where git is killed in the midst of it, and its lock stays
        state = git_state(checkout)
    assert state["dirty"] is False
    assert (checkout / ".git" / "index").read_bytes() == index
    assert not (checkout / ".git" / "index.lock").exists()


def test_git_state_is_unknown(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = {"revision": None, "dirty": None}
    assert git_state(checkout / "package") == unknown  # installed below somebody else's repository
    plain = tmp_path / "plain"
    plain.mkdir()
    assert git_state(plain) == unknown
    git(plain, "init", "--quiet")
    assert git_state(plain) == unknown  # no commit yet
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(checkout) == unknown  # no git


def test_broken_files(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    for content, message in [
        (b'{"metrics": {"AP": 0.', "is not valid JSON"),
        (b"\xff\xfe\x00\x80", "is not valid JSON"),
        (b"[]", "has no object 'metrics'"),
        (b'{"metrics": [1]}', "has no object 'metrics'"),
        (b'{"metrics": {"AP": "high"}}', "metric 'AP' must be a number or null, got 'high'"),
        (b'{"metrics": {"AP": true}}', "metric 'AP' must be a number or null, got True"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message) as caught:
            read_metrics(path)
        assert str(path) in str(caught.value)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        read_metrics(path)


def test_other_packages_may_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["a b.py", "--x"])
    found = provenance(packages=["numpy", "no-such-package"])
    assert found["command"] == "'a b.py' --x"
    assert found["versions"]["numpy"] == numpy.__version__
    assert found["versions"]["no-such-package"] is None
