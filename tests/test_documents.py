"""Every command and every block of code of README.md, CONTRIBUTING.md and docs/ is right, or is listed with the reason.

Where a test runs a page as it stands, that test is named. Of other commands what they begin with is done here: command
lines of train.py and eval.py are composed and checked, options of tools looked up, targets of make found.
"""

import re
import shlex
from ast import literal_eval
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig

from detpool.config import apply_overrides, check, parse_command_line, replace_data, replace_parts
from detpool.errors import ConfigError
from detpool.study.plan import plan_sweep

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]

RUN = {
    ("docs/operators.md", "python"): "tests/ops/test_documentation.py",
    ("docs/extending.md", "python"): "tests/ops/test_documentation.py",
    ("docs/extending.md", "yaml"): "tests/training/test_extending_page.py",
    ("docs/own_study.md", "sh"): "tests/training/test_own_study.py",
    ("docs/own_study.md", "yaml"): "tests/training/test_own_study.py",
}
"""Pages whose blocks of a kind a test takes from the page and runs."""
LISTED = {
    "detpool.load": "needs a trained run; tests/training/test_predictor.py makes one",
    "pip install": "changes the environment; tests/test_package.py installs into one of its own",
    "source .venv/bin/activate": "`make demo` makes it",
    "export PYTHONPATH=.": "for a package of one's own; the fixture own_package does it",
    "srun": "needs SLURM and GPUs",
    "python -c 'from detpool.data.coco": "needs COCO",
    "python -m pytest": "runs tests",
    "TRITON_INTERPRET=1 python -m pytest": "runs tests",
}
"""What neither a test runs nor this file can check, by what it contains or begins with, and why."""
PLACEHOLDER = re.compile(r"^\.\.\.$|(?<!ckpt_path)(?<!data\.root)=\.\.\.$|NAME|REVISION")
"""Words that stand for a choice of the reader's; what is around them is checked."""
OTHERS = {"text"}
"""Kinds of blocks that are no code."""


def blocks(page: str) -> list[tuple[str, str]]:
    """Kind, without the file's name if there is one, and content of the fenced blocks of a page."""
    found = re.findall(r"^```(\w*)[^\n]*\n(.*?)^```", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)
    assert (ROOT / page).read_text().count("\n```") == 2 * len(found), page
    return found


def commands(page: str) -> Iterator[list[str]]:
    """The words of each command: of blocks, and of programs named in the text with arguments."""
    lines = [line for kind, text in blocks(page) if kind == "sh" for line in text.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`(python (?:tools/)?\w+\.py [^`\n]+)`", (ROOT / page).read_text())
    for line in lines:
        for command in re.split(r" && ", re.sub(r"<\w+>", "1", line)):
            words = [word for word in shlex.split(command, comments=True) if not PLACEHOLDER.search(word)]
            if words:
                yield words


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page(page: str, own_package: Path) -> None:
    if (page, "sh") in RUN:
        return
    for words in commands(page):
        line = " ".join(words)
        if words[:2] == ["python", "train.py"]:
            compose([word.replace("my_configs", str(own_package / "my_configs")) for word in words[2:]])
        elif words[:2] == ["python", "eval.py"]:
            evaluate(words[2:])
        elif words[0] == "python" and words[1].startswith("tools/"):
            source = "".join((ROOT / name).read_text() for name in (words[1], "tools/command_line.py"))
            source += (ROOT / "detpool/cli/report.py").read_text() if words[1] == "tools/report.py" else ""
            for option in words[2:]:
                assert not option.startswith("--") or option.partition("=")[0] in source, f"{line}: no {option}"
        elif words[0] == "make":
            targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
            assert set(words[1:]) <= set(targets), line
        else:
            assert any(line.startswith(start.replace("'", "")) for start in LISTED), f"{page}: {line} is not checked"


def compose(arguments: list[str]) -> None:
    line = parse_command_line(arguments, CONFIGS, "train")
    try:
        if line.sweeps:
            assert plan_sweep(line.configs, line.overrides).folder
        else:
            check(line.configs.compose(line.overrides), line.configs, line.overrides)
    except ConfigError as error:
        if "is not installed" not in str(error):  # an extra, which is asked for when all else is right
            raise AssertionError(f"{arguments}: {error}") from error
    finally:
        HydraConfig.instance().cfg = None


def evaluate(arguments: list[str]) -> None:
    """What eval.py does with its arguments, of a run of the demo."""
    if not any(argument.startswith("ckpt_path=") for argument in arguments):
        return compose(arguments)
    config = parse_command_line([], CONFIGS, "train").configs.compose(["experiment=demo"])
    left = [argument for argument in arguments if not argument.startswith("ckpt_path=")]
    for replace in (replace_data, replace_parts):
        left = replace(config, left, CONFIGS)
    apply_overrides(config, left)
    check(config)


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page(page: str, tmp_path: Path) -> None:
    names: dict = {}
    for kind, text in blocks(page):
        if kind in {"sh"} | OTHERS:
            continue  # the test above
        if (page, kind) in RUN:
            assert page.rpartition("/")[2] in (ROOT / RUN[page, kind]).read_text()
        elif kind == "yaml":
            (tmp_path / "study").mkdir()
            (tmp_path / "study/mine.yaml").write_text(text)
            compose(["--config-dir", str(tmp_path), "-m", "study=mine"])
        elif any(start in text for start in LISTED):
            compile(text, page, "exec")
        else:
            assert kind == "python", f"{page}: a block of {kind!r} that nothing checks"
            exec(text, names)


def test_the_readme_gives_gradients_to_boxes() -> None:
    names: dict = {}
    exec(next(text for kind, text in blocks("README.md") if kind == "python"), names)
    assert names["boxes"].grad[0, 1:].abs().min() > 0
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


def test_every_public_name_is_in_the_reference() -> None:
    pages = "\n".join(path.read_text() for path in (ROOT / "docs/reference").glob("*.md"))
    absent = []
    for path in (ROOT / "detpool").rglob("__init__.py"):
        package = ".".join(path.parent.relative_to(ROOT).parts)
        for names in re.findall(r"^__all__ = (\[.*?\])", path.read_text(), flags=re.DOTALL | re.MULTILINE):
            for name in literal_eval(names):
                entry = rf"^::: {package}\.{name}(\.{name})?$|^::: {package}\.{name}\.|`{name}`|`{package}\.{name}`"
                if not re.search(entry, pages, flags=re.MULTILINE):
                    absent.append(f"{package}.{name}")
    assert absent == []


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    assert [page for page in PAGES if page != "README.md" and page.removeprefix("docs/") not in navigation] == []


def test_every_group_of_configs_is_on_its_page() -> None:
    page = (ROOT / "docs/configuration.md").read_text()
    groups = {path.name for path in CONFIGS.iterdir() if path.is_dir()} - {"hydra"}
    assert {group for group in groups if f"`{group}=`" not in page} == set()
