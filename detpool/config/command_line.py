"""A command line of train.py: `key=value`, and Hydra's own options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import OmegaConf

from detpool.config.configs import Configs
from detpool.config.overrides import parse_override
from detpool.errors import ConfigError

_COMMANDS = ("run", "multirun", "help", "hydra_help", "shell_completion", "info", "experimental_rerun")


@dataclass(frozen=True)
class CommandLine:
    """What a command line asks for.

    Attributes:
        configs: the config files that it sees.
        overrides: its `key=value` arguments.
        options: its other arguments but `--multirun`, options first.
        shows_config: whether Hydra is to show a config; nothing is run then.
        asks: whether something else is to be shown, such as help; nothing is run then either.
        sweeps: whether several runs are asked for.
        study: whether a study is named.
    """

    configs: Configs
    overrides: list[str]
    options: list[str]
    shows_config: bool
    asks: bool
    sweeps: bool
    study: bool


def parse_command_line(arguments: Sequence[str], folder: Path, name: str) -> CommandLine:
    """Reads a command line; options may stand anywhere among `key=value`.

    Args:
        arguments: the command line without the program.
        folder: of the configs, if no option names another.
        name: of the primary config, likewise.

    Raises:
        ConfigError: for an option that does not exist or does not go with another, or a folder that does not exist.
    """
    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]
    known, rest = parser.parse_known_intermixed_args(list(arguments))
    if unknown := [argument for argument in rest if argument.startswith("-")]:
        _refuse(f"there is no option {unknown[0]}")
    options = vars(known)
    commands = [f"--{key.replace('_', '-')}" for key in _COMMANDS if options[key]]
    if options["cfg"]:
        commands = ["--cfg", *(command for command in commands if command not in ("--run", "--multirun"))]
    if len(commands) > 1:
        raise ConfigError(f"{' and '.join(commands)} do not go together")
    for key in ("package", "resolve"):
        if options[key] and not options["cfg"]:
            raise ConfigError(f"--{key} says which config --cfg shows, and --cfg is not given")
    overrides: list[str] = [*options.pop("overrides"), *rest]
    parsed = [parse_override(override) for override in overrides]
    modes = [str(override.value()).upper() for override in parsed if override.key_or_group == "hydra.mode"]
    configs = Configs(folder.parent / (options["config_path"] or folder), options["config_name"] or name)
    return CommandLine(
        configs=configs.with_searchpath(_searchpath(configs, options["config_dir"], parsed)),
        overrides=overrides,
        options=[part for key, value in options.items() if key != "multirun" for part in _option(key, value)],
        shows_config=options["cfg"] is not None,
        asks=bool(commands) and commands[0] not in ("--cfg", "--run", "--multirun"),
        sweeps=options["multirun"] or modes[-1:] == ["MULTIRUN"],
        study=any(o.key_or_group == "study" and o.type is not OverrideType.DEL and o.value() for o in parsed),
    )


def _searchpath(configs: Configs, config_dir: str | None, overrides: Sequence[Override]) -> list[str]:
    """The folders that Hydra looks at after the configs' own."""
    given: list[Any] = [override.value() for override in overrides if override.key_or_group == "hydra.searchpath"]
    if not given and (primary := configs.read(configs.name)):
        given = [OmegaConf.select(primary[1], "hydra.searchpath") or []]
    further = given[0] if given else []
    if not isinstance(further, Sequence) or isinstance(further, str):
        raise ConfigError(f"hydra.searchpath must be a list of folders, [{further}], got {further!r}")
    return [*([config_dir] if config_dir else []), *further]


def _option(key: str, value: object) -> list[str]:
    if value is None or value is False:
        return []
    return [f"--{key.replace('_', '-')}", *([] if value is True else [str(value)])]


def _refuse(message: str) -> NoReturn:
    raise ConfigError(f"{message}; see --hydra-help")
