"""The config that a run left beside its results."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

_RENAMED = {"detpool.pooling.": "detpool.layers."}
"""Modules that configs of earlier revisions name otherwise."""


def read_run_config(path: Path) -> DictConfig:
    """A run's `config.yaml`, in the names of today, so that runs of earlier revisions still evaluate and report."""
    text = path.read_text(encoding="utf-8")
    for old, new in _RENAMED.items():
        text = text.replace(old, new)
    return OmegaConf.create(text)  # type: ignore[return-value]
