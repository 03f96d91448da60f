"""Two-stage object detectors in which RoI pooling, and every other pooling, is one config line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from detpool.extras import require

if TYPE_CHECKING:
    from detpool.predictor import load

__all__ = ["__version__", "load"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Imported on demand: detpool.ops and detpool.poolers work without the packages of a run, and load much faster.
    if name == "load":
        require()
        from detpool.predictor import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
