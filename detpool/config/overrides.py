"""`key=value` arguments: reading them, and setting them in a config."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from detpool.errors import ConfigError, did_you_mean

SET_OTHER_KEYS = ("experiment", "hydra", "launcher", "reduction", "study", "sweeper", "variant")
"""Groups whose members set keys of other names."""


def check_key(config: DictConfig, key: str, groups: Sequence[str] = ()) -> None:
    """Checks that a config has a dotted key.

    Raises:
        ConfigError: naming the nearest valid one, of the groups too.
    """
    node: Any = OmegaConf.to_container(config, resolve=False)
    walked: list[str] = []
    first = key.split(".")[0]
    if first in groups and first not in SET_OTHER_KEYS and config.get(first) is None:
        raise ConfigError(f"{key} is a setting of {first}, and none is chosen that has any: add {first}=...")
    for part in key.split("."):
        if not isinstance(node, dict):
            raise ConfigError(f"{key}: {'.'.join(walked)} is a value and has no {part!r}")
        if part not in node:
            choices = {str(name) for name in node} - {"hydra"}
            if walked:
                raise ConfigError(f"{'.'.join(walked)} has no key {part!r}{did_you_mean(part, choices)}")
            deeper = [found for found in _keys(node) if found.rpartition(".")[2] == part]
            near = f"; did you mean {deeper[0]!r}?" if deeper else did_you_mean(part, choices | set(groups))
            raise ConfigError(f"there is no key or group {part!r}{near}")
        walked.append(part)
        node = node[part]


def apply_overrides(config: DictConfig, arguments: Sequence[str]) -> None:
    """Sets `key=value` arguments in a config that has been composed before, such as that of a finished run.

    Raises:
        ConfigError: for an argument that is not `key=value`, or a key that the config does not have.
    """
    for argument, override in zip(arguments, map(parse_override, arguments), strict=True):
        key = override.key_or_group
        if override.type is not OverrideType.CHANGE or override.is_sweep_override() or override.package:
            raise ConfigError(f"cannot apply {argument!r}: only plain key=value changes the config of a finished run")
        check_key(config, key)
        value, before = override.value(), OmegaConf.select(config, key)
        if isinstance(before, DictConfig) and not isinstance(value, dict):
            raise ConfigError(
                f"{key} holds the settings {', '.join(map(str, before))} of the run: change one of them with "
                f"{key}.<name>=..., got {argument!r}"
            )
        try:
            OmegaConf.update(config, key, value)
        except OmegaConfBaseException as error:
            raise ConfigError(f"cannot apply {argument!r}: {str(error).splitlines()[0]}") from error


@cache
def parse_override(argument: str) -> Override:
    """One `key=value`; raises ConfigError if it is none."""
    try:
        override = OverridesParser.create().parse_override(argument)
    except HydraException as error:
        key, _, value = argument.partition("=")
        quoted = f"{key}='" + value.replace("'", "\\'") + "'"
        if not value or not _parses(quoted):
            raise ConfigError(f"cannot read the argument {argument!r:.200}: expected key=value. {error}") from error
        hint = f'a value with such characters needs quotes: "{quoted:.200}"'
        raise ConfigError(f"cannot read the argument {argument!r:.200}: {hint}") from error
    if not override.key_or_group:
        raise ConfigError(f"cannot read the argument {argument!r}: expected key=value")
    return override


def _parses(argument: str) -> bool:
    try:
        return bool(OverridesParser.create().parse_override(argument))
    except HydraException:
        return False


def is_hydras(override: Override) -> bool:
    """Whether a `key=value` is of Hydra's own config: launchers, sweepers, folders."""
    return override.key_or_group.replace("/", ".").split(".")[0] == "hydra"


def choices_of(override: Override) -> list[str | None]:
    """The choices of a `group=choice`, or of a sweep over a group; None for null."""
    if override.is_sweep_override():
        texts = [text.strip("'\"") for text in override.sweep_string_iterator()]
        return [None if text == "null" else text for text in texts]
    value = override.value()
    if isinstance(value, list):
        return [str(item) for item in value]
    return [None if value is None else str(value)]


def _keys(node: dict[Any, Any], prefix: str = "") -> list[str]:
    """All dotted keys of a config but Hydra's, the outer ones first."""
    own = {f"{prefix}{key}": value for key, value in node.items() if prefix or key != "hydra"}
    inner = [_keys(value, f"{key}.") for key, value in own.items() if isinstance(value, dict)]
    return [*own, *(key for keys in inner for key in keys)]
