"""Tests of the Triton kernels, which run on a GPU, or on the CPU in a process of their own:

TRITON_INTERPRET=1 python -m pytest tests/ops/triton
"""

import os
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("TRITON_INTERPRET") != "1":
        skip = pytest.mark.skip(reason="runs in a process with TRITON_INTERPRET=1; `make test` starts one")
        for item in items:
            if item.path.parent == Path(__file__).parent and item.path.name != "test_gpu.py":
                item.add_marker(skip)
