"""Packages that choices of a training need and detpool does not: an extra of that name installs each."""

from __future__ import annotations

from importlib import metadata

from omegaconf import DictConfig

from detpool.errors import ConfigError

_OF_LOGGERS = {
    "WandbLogger": ("wandb",),
    "MLFlowLogger": ("mlflow",),
    "TensorBoardLogger": ("tensorboard", "tensorboardX"),
}
"""What the names of loggers end with, and the packages one of which is needed, the extra's first."""


def check_extras(config: DictConfig) -> None:
    """Checks that the packages of a config's loggers are installed, without importing them.

    Raises:
        ConfigError: naming the logger, and what installs its package.
    """
    for name, logger in (config.get("logger") or {}).items():
        target = str(logger.get("_target_")) if logger else ""
        for ending, packages in _OF_LOGGERS.items():
            if target.endswith(ending) and not any(map(_is_installed, packages)):
                raise ConfigError(
                    f"logger.{name}: {packages[0]} is not installed: pip install 'detpool[{packages[0]}]'"
                )


def _is_installed(package: str) -> bool:
    # Not by the name of the module: Weights & Biases leaves folders called wandb, which Python takes for packages.
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True
