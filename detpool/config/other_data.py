"""Replaces the data of a finished run by other data of the config group `data`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from detpool.config.configs import Configs
from detpool.config.signatures import argument_of_target

_OF_THE_RUN = ("eval_transform", "batch_size", "eval_batch_size", "num_workers", "masks")


def replace_data(config: DictConfig, arguments: Sequence[str], folder: Path) -> list[str]:
    """Replace the data of a run by the data that an argument such as `data=coco` chooses, if there is one.

    The run's settings of `eval_transform`, batch sizes, workers and masks are kept, unless arguments override them.

    Args:
        config: config of the run; changed in place.
        arguments: `key=value` arguments.
        folder: folder of the config files.

    Returns:
        The remaining arguments: those that do not concern `data` if data were chosen, otherwise all.

    Raises:
        ConfigError: If there is no such choice, or a `data.*` argument cannot be set.
    """
    if not any(argument.startswith("data=") for argument in arguments):
        return list(arguments)
    of_data = [argument for argument in arguments if argument.startswith(("data=", "data."))]
    data = Configs(folder, "train").compose(of_data).data
    OmegaConf.set_struct(data, False)
    given = {argument.partition("=")[0].removeprefix("data.").partition(".")[0] for argument in of_data}
    for key in _OF_THE_RUN:
        if key not in given and argument_of_target(data._target_, key) is not None:
            data[key] = config.data.get(key, data.get(key) if key != "eval_transform" else None)
    config.data = data
    return [argument for argument in arguments if argument not in of_data]
