"""`make docs`: the site is built without a network and without a warning, and no page of it needs another host."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

from detpool import layers, ops

ROOT = Path(__file__).parents[1]
LOADS = re.compile(r"<(?:script|img|link rel=\"stylesheet\")[^>]*?(?:src|href)=\"?(https?:[^\" >]+)")


@pytest.mark.slow
def test_the_site(tmp_path: Path) -> None:
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT, text=True, capture_output=True, env=os.environ | nowhere | {"NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr
    pages = {path.relative_to(tmp_path).as_posix(): path.read_text() for path in tmp_path.rglob("*.html")}
    assert {name: found for name, text in pages.items() if (found := LOADS.findall(text))} == {}
    assert pages["pooling.html"].count("<img") == 2, "the notebook's pictures"
    for name in ops.__all__:
        assert re.search(rf'id="detpool\.ops\.{name}(\.\w+)?"', pages["reference/ops.html"]), name
    pytorchs = {name for name in layers.__all__ if getattr(nn, name, None) is getattr(layers, name)}
    of_other_dimensions = {name for name in layers.__all__ if name.endswith(("1d", "3d"))}  # said in a sentence
    for name in set(layers.__all__) - pytorchs - of_other_dimensions:
        assert f'id="detpool.layers.{name}"' in pages["reference/layers.html"], name
