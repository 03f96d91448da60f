"""Packages that only some choices of a training need; an extra of the same name installs each."""

from __future__ import annotations

from importlib import metadata

from omegaconf import DictConfig

from detpool.errors import ConfigError

_OF_LOGGERS = {
    "WandbLogger": ("wandb",),
    "MLFlowLogger": ("mlflow",),
    "TensorBoardLogger": ("tensorboard", "tensorboardX"),
}
"""Maps the class name of a logger to packages, one of which it needs. The first is also the name of the extra."""


def check_extras(config: DictConfig) -> None:
    """Checks that the packages of a config's loggers are installed, without importing them.

    Raises:
        ConfigError: If one is missing. The message names the logger and the command that installs its package.
    """
    for name, logger in (config.get("logger") or {}).items():
        target = str(logger.get("_target_")) if logger else ""
        for ending, packages in _OF_LOGGERS.items():
            if target.endswith(ending) and not any(map(_is_installed, packages)):
                raise ConfigError(
                    f"logger.{name}: {packages[0]} is not installed: pip install 'detpool[{packages[0]}]'"
                )


def _is_installed(package: str) -> bool:
    # Not by module name: Weights & Biases leaves folders called wandb, which Python would take for packages.
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True
