"""Parsing of `key=value` arguments, and setting them in a config that was composed before."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from detpool.errors import ConfigError


@cache
def parse_override(argument: str) -> Override:
    """Parses one `key=value` argument.

    Raises:
        ConfigError: If it is not `key=value`; the message shows the quotes that it needs.
    """
    key, _, value = argument.partition("=")
    try:
        override = _parse(argument)
    except HydraException as error:
        quoted = f"{key}='" + value.replace("'", "\\'") + "'"
        try:
            _parse(quoted if value else "")
        except HydraException:
            raise ConfigError(f"cannot read the argument {argument!r:.200}: expected key=value. {error}") from error
        hint = f'a value with such characters needs quotes: "{quoted:.200}"'
        raise ConfigError(f"cannot read the argument {argument!r:.200}: {hint}") from error
    if not override.key_or_group:
        raise ConfigError(f"cannot read the argument {argument!r}: expected key=value")
    return override


def _parse(argument: str) -> Override:
    return OverridesParser.create().parse_override(argument)


def apply_overrides(config: DictConfig, arguments: Sequence[str]) -> None:
    """Sets `key=value` arguments in the config of a finished run. Call `check` afterwards to find unknown keys.

    Raises:
        ConfigError: If an argument is not a plain `key=value`, or sets a section to a plain value.
    """
    for argument in arguments:
        override = parse_override(argument)
        key, value = override.key_or_group, override.value()
        if override.type is OverrideType.DEL or override.is_sweep_override() or override.package or "/" in key:
            raise ConfigError(f"cannot apply {argument!r}: only plain key=value changes the config of a finished run")
        try:
            before = OmegaConf.select(config, key)
            if isinstance(before, DictConfig) and not isinstance(value, dict):
                raise ConfigError(
                    f"{key} holds the settings {', '.join(map(str, before))} of the run: change one of them with "
                    f"{key}.<name>=..., got {argument!r}"
                )
            OmegaConf.update(config, key, value, force_add=True)
        except (OmegaConfBaseException, AssertionError, TypeError) as error:
            raise ConfigError(f"cannot apply {argument!r}: {str(error).splitlines()[:1]}") from error
    expand_home(config)


def parse_path(value: str) -> Path:
    """Returns the path in a `key=path` argument that Hydra does not read.

    Quotes, which Hydra needs around a path with `=` or a comma, are removed as Hydra does it, and `~` is expanded,
    which shells do not do after `=`.
    """
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        with contextlib.suppress(ConfigError):  # not quoted in Hydra's way: the quotes are part of the name
            value = str(parse_override(f"path={value}").value())
    return Path(value).expanduser()


def expand_home(config: DictConfig) -> None:
    """Replaces `~/` at the beginning of each value by the user's home folder, as a shell does outside quotes."""
    for key, value in leaves(OmegaConf.to_container(config, resolve=False)):
        if isinstance(value, str) and value.startswith("~/"):
            OmegaConf.update(config, key, str(Path(value).expanduser()))


def nodes(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields `(key, value)` of a plain config and, recursively, of everything in its mappings and lists."""
    yield path, node
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from nodes(value, f"{path}[{key}]" if isinstance(node, list) else join(path, key))


def leaves(node: Any) -> Iterator[tuple[str, Any]]:
    """Yields `(key, value)` of every value of a plain config that is neither a mapping nor a list."""
    return ((path, value) for path, value in nodes(node) if not isinstance(value, dict | list))


def join(path: str, key: Any) -> str:
    """Returns the dotted key of the entry `key` in the mapping at `path`."""
    return f"{path}.{key}" if path else str(key)
