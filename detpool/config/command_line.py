"""Parsing of the command line of train.py: `key=value` arguments and Hydra's own options."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser
from omegaconf import OmegaConf

from detpool.config.configs import Configs
from detpool.config.overrides import parse_override
from detpool.errors import ConfigError

_COMMANDS = ("run", "multirun", "cfg", "help", "hydra_help", "shell_completion", "info", "experimental_rerun")


@dataclass(frozen=True)
class CommandLine:
    """A parsed command line.

    Attributes:
        configs: the config files that it can name.
        overrides: its `key=value` arguments.
        options: its other arguments, parsed by Hydra's parser.
        command: Hydra's command: run, multirun, cfg (show a config), help, ...
        sweeps: whether several runs are requested.
    """

    configs: Configs
    overrides: list[str]
    options: Namespace
    command: str
    sweeps: bool


def parse_command_line(arguments: Sequence[str], folder: Path, name: str) -> CommandLine:
    """Parses a command line; options may stand anywhere among the `key=value` arguments.

    Args:
        arguments: the command line without the program.
        folder: folder of the config files, unless an option names another.
        name: name of the primary config, unless an option names another.

    Raises:
        ConfigError: If an option does not exist or cannot be combined with another, or a folder does not exist.
    """
    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]
    options, rest = parser.parse_known_intermixed_args(list(arguments))
    if unknown := [argument for argument in rest if argument.startswith("-")]:
        _refuse(f"there is no option {unknown[0]}")
    commands = [key for key in _COMMANDS if getattr(options, key)]
    if len(commands) > 1 and set(commands) not in ({"cfg", "run"}, {"cfg", "multirun"}):
        names = " and ".join(f"--{key.replace('_', '-')}" for key in commands)
        raise ConfigError(f"{names} do not go together")
    for key in ("package", "resolve"):
        if getattr(options, key) and not options.cfg:
            raise ConfigError(f"--{key} says which config --cfg shows, and --cfg is not given")
    overrides: list[str] = [*options.overrides, *rest]
    given = {override.key_or_group: override.value() for override in map(parse_override, overrides)}
    folder, name = folder.parent / (options.config_path or folder), options.config_name or name
    if "hydra.searchpath" not in given and (folder / f"{name}.yaml").is_file():
        given["hydra.searchpath"] = OmegaConf.select(OmegaConf.load(folder / f"{name}.yaml"), "hydra.searchpath") or []
    searchpath: Any = given.get("hydra.searchpath") or []
    if isinstance(searchpath, str) or not all(isinstance(place, str) for place in searchpath):
        raise ConfigError(f"hydra.searchpath must be a list of folders, [{searchpath}], got {searchpath!r}")
    return CommandLine(
        configs=Configs(folder, name, options.config_dir, searchpath),
        overrides=overrides,
        options=options,
        command="cfg" if options.cfg else (commands or ["run"])[0],
        sweeps=options.multirun or str(given.get("hydra.mode")).upper() == "MULTIRUN",
    )


def _refuse(message: str) -> NoReturn:
    raise ConfigError(f"{message}; see --hydra-help")
