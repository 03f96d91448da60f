import os
import re
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Sample data and reference vectors that live beside a checkout, where there are any."""
    path = Path(os.environ.get("DETPOOL_SHARED", Path(__file__).parents[2] / "shared"))
    if not path.is_dir():
        pytest.skip(f"no sample data: {path} does not exist (DETPOOL_SHARED names another folder)")
    return path


@pytest.fixture
def room_for() -> Callable[[int], AbstractContextManager[None]]:
    """`with room_for(size)`: no file may grow beyond so many bytes: the system's own refusal, amid a write."""

    @contextmanager
    def limit(size: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit


@pytest.fixture
def own_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the files in docs/extending.md, found by Python; what they register is undone afterwards."""
    page = (Path(__file__).parents[1] / "docs/extending.md").read_text()
    folder = tmp_path / "extending"
    for name, text in re.findall(r"```(?:python|yaml) (\S+)\n(.*?)```", page, flags=re.DOTALL):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (folder / "my_package" / "__init__.py").touch()
    monkeypatch.syspath_prepend(folder)
    registers = (import_module("detpool.ops.sampling").SAMPLING, import_module("detpool.ops.pool").REDUCTIONS)
    before = [dict(register) for register in registers]
    yield folder
    for register, content in zip(registers, before, strict=True):
        register.clear()
        register.update(content)
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_package"]:
        del sys.modules[name]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A run in which every test is skipped has tested nothing, and must not look like one that passed."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")  # none in the processes of xdist
    if reporter is None or session.config.option.collectonly:
        return
    if exitstatus == pytest.ExitCode.OK and not reporter.stats.get("passed"):
        session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED
