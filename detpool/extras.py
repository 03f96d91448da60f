"""Modules that an installation without extras lacks. `detpool.ops`, `poolers` and `layers` do not need them."""

from __future__ import annotations

from importlib.util import find_spec

from detpool.errors import MissingExtraError

TRAIN = (
    *("faster_coco_eval", "hydra", "jinja2", "lightning", "matplotlib", "msgspec", "pandas", "PIL", "pycocotools"),
    *("rich", "scipy"),
)
"""The modules that the extra `train` installs."""


def require(*modules: str) -> None:
    """Checks that modules of the extra `train` are installed, without importing them.

    Args:
        modules: names of the modules. Default: all modules of the extra.

    Raises:
        MissingExtraError: If some are missing. The message names them and the command that installs them.
    """
    if absent := [name for name in modules or TRAIN if find_spec(name) is None]:
        raise MissingExtraError(f"{', '.join(absent)} not installed: pip install 'detpool[train]'")
