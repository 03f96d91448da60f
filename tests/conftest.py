import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Sample data and reference vectors that live beside a checkout, where there are any."""
    path = Path(os.environ.get("DETPOOL_SHARED", Path(__file__).parents[2] / "shared"))
    if not path.is_dir():
        pytest.skip(f"no sample data: {path} does not exist (DETPOOL_SHARED names another folder)")
    return path
