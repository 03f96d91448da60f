"""Checking a command line and a config before any work, so that a typo fails in a second and names its cure.

Nothing here imports torch: that alone takes seconds.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from detpool.errors import ConfigError, did_you_mean

SLOTS = {
    "stem_pool": "backbone",
    "downsample": "backbone",
    "context": "model",
    "head_pool": "model",
    "mask_pooler": "model",
    "iou_pooler": "model",
}
"""Top-level keys of parts that some backbones or models have, which are given to them by these names."""
_SET_OTHER_KEYS = ("experiment", "hydra", "launcher", "reduction", "study", "sweeper", "variant")
"""Groups whose members set keys of other names."""

# Plugins of Hydra, and our extras that install them.
_EXTRAS = {
    "joblib": "joblib",
    "optuna": "optuna",
    "ray": "ray",
    "submitit_local": "submitit",
    "submitit_slurm": "submitit",
}

# Hydra's own options on the command line take one argument each; the rest are flags.
_OPTIONS_WITH_VALUE = (
    "--config-name",
    "-cn",
    "--config-path",
    "-cp",
    "--config-dir",
    "-cd",
    "--cfg",
    "-c",
    "--package",
    "-p",
)


def overrides_of(argv: Sequence[str]) -> list[str]:
    """The `key=value` arguments of a Hydra command line, without its options."""
    overrides: list[str] = []
    skip = False
    for argument in argv:
        if not skip and not argument.startswith("-"):
            overrides.append(argument)
        skip = argument in _OPTIONS_WITH_VALUE
    return overrides


def check_overrides(config_dir: Path, config_name: str, arguments: Sequence[str]) -> None:
    """Checks each `key=value` of a command line against the configs in `config_dir`.

    Sweeps (`pooler=roi_pool,roi_align`) are checked choice by choice.

    Raises:
        ConfigError: for an argument that is not `key=value`, an unknown group or key, or a choice that a group does not
            have; the message names the nearest valid one.
    """
    # Hydra checks what concerns itself (launchers, sweepers) when it starts.
    overrides = [parse_override(argument) for argument in arguments]
    overrides = [o for o in overrides if o.key_or_group.replace("/", ".").split(".")[0] != "hydra"]
    is_group = [(config_dir / override.key_or_group.split("@")[0]).is_dir() for override in overrides]
    chosen: list[str] = []
    for override, group in zip(overrides, is_group, strict=True):
        if group and override.type is not OverrideType.DEL:
            choices = _choices(override)
            _check_choices(config_dir, override.key_or_group.split("@")[0], choices)
            if choices and choices[0] is not None:
                chosen.append(f"{override.get_key_element()}={choices[0]}")
    try:
        with initialize_config_dir(str(config_dir.resolve()), version_base="1.3"):
            config = compose(config_name, overrides=chosen, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        # Hydra's advice, to append the group, would have it ignored.
        absent = re.search(r"Could not override '(?:\w+@)?(\w+)'", str(error))
        if absent and absent[1] in SLOTS:
            raise ConfigError(_no_slot(absent[1], SLOTS[absent[1]], config_dir, config_name)) from error
        raise compose_error(error) from error
    groups = [folder.name for folder in config_dir.iterdir() if folder.is_dir()]
    for override, group in zip(overrides, is_group, strict=True):
        if not group and not override.is_add() and not override.is_force_add():
            _check_key(config, override.key_or_group, groups)


def apply_overrides(config: DictConfig, arguments: Sequence[str]) -> None:
    """Sets `key=value` arguments in a config that has been composed before, such as that of a finished run.

    Raises:
        ConfigError: for an argument that is not `key=value`, or a key that the config does not have.
    """
    for argument, override in zip(arguments, map(parse_override, arguments), strict=True):
        key = override.key_or_group
        if override.type is not OverrideType.CHANGE or override.is_sweep_override():
            raise ConfigError(f"cannot apply {argument!r}: only plain key=value changes the config of a finished run")
        _check_key(config, key, [])
        value, before = override.value(), OmegaConf.select(config, key)
        if isinstance(before, DictConfig) and not isinstance(value, dict):
            raise ConfigError(
                f"{key} holds the settings {', '.join(map(str, before))} of the run: change one of them with "
                f"{key}.<name>=..., got {argument!r}"
            )
        OmegaConf.update(config, key, value)


def check_keys(config: DictConfig, config_dir: Path, config_name: str) -> None:
    """Checks the keys that no signature speaks for: at the top level, in the primary config's own sections, and slots.

    An experiment file can bring in any key; one that nothing reads would pass silently.

    Raises:
        ConfigError: naming the key and the nearest valid one, or for a slot the choices that have it.
    """
    primary = OmegaConf.to_container(OmegaConf.load(config_dir / f"{config_name}.yaml"), resolve=False)
    assert isinstance(primary, dict)
    groups = {folder.name for folder in config_dir.iterdir() if folder.is_dir()}
    allowed = {"": {str(key) for key in primary} - {"defaults"} | (groups - set(_SET_OTHER_KEYS)) | set(SLOTS)}
    allowed |= {str(name): set(section) for name, section in primary.items() if isinstance(section, dict)}
    for section, keys in allowed.items():
        for key in config if section == "" else config.get(section, {}):
            if key not in keys:
                where = f"{section} has" if section else "the config has"
                raise ConfigError(f"{where} an unknown key {key!r}{did_you_mean(str(key), keys)}")
    for slot, owner in SLOTS.items():
        if config.get(slot) is not None and not _takes(config, owner, slot):
            raise ConfigError(_no_slot(slot, owner, config_dir, config_name))
    reduction = OmegaConf.select(config, "pooler.operator.reduction")
    if reduction and not _takes(config, "pooler.operator", "reduction", reduction):
        raise ConfigError(_no_slot("reduction", "pooler.operator", config_dir, config_name, reduction))


def check_config(config: DictConfig) -> None:
    """Checks the mandatory values of a composed config, and the arguments of every `_target_`.

    Raises:
        ConfigError: naming the key and, where there is one, the nearest valid one.
    """
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ConfigError(f"no value given for {', '.join(missing)}: pass {' '.join(key + '=...' for key in missing)}")
    for path, node in _targets(OmegaConf.to_container(config, resolve=False), ""):
        _check_arguments(path, node)


def compose_error(error: Exception) -> ConfigError:
    """What Hydra raised when it put configs together; of a missing launcher or sweeper, the extra that has it."""
    missing = re.search(r"Could not find 'hydra/(launcher|sweeper)/(\w+)'", str(error))
    if not missing:
        return ConfigError(f"the configs do not compose: {error}")
    kind, name = missing.groups()
    if name not in _EXTRAS:
        return ConfigError(f"hydra/{kind}={name} does not exist{did_you_mean(name, _EXTRAS)}")
    return ConfigError(f"the {kind} {name} is not installed: pip install 'detpool[{_EXTRAS[name]}]'")


def parse_override(argument: str) -> Override:
    """One `key=value`; raises ConfigError if it is none."""
    try:
        return OverridesParser.create().parse_override(argument)
    except HydraException as error:
        raise ConfigError(f"cannot read the argument {argument!r}: expected key=value. {error}") from error


def _takes(config: DictConfig, owner: str, argument: str, value: Any = None) -> bool:
    """Whether the `_target_` at `owner` has an argument of that name, and not a string where `value` is a node."""
    target = OmegaConf.select(config, f"{owner}._target_")
    if target is None:
        return False
    parameter = inspect.signature(_imported(owner, str(target))).parameters.get(argument)
    return parameter is not None and not (isinstance(value, DictConfig) and parameter.annotation in (str, "str"))


def _no_slot(slot: str, owner: str, config_dir: Path, config_name: str, value: Any = None) -> str:
    """Says that what was chosen for `owner` has no such slot, and which choices have it, or take it if none has."""
    group = owner.split(".")[0]
    having, taking = [], []
    # Within `hydra.main` the folder is known already.
    known = GlobalHydra.instance().is_initialized()
    with nullcontext() if known else initialize_config_dir(str(config_dir.resolve()), version_base="1.3"):
        for choice in sorted(path.stem for path in (config_dir / group).glob("*.yaml")):
            config = compose(config_name, [f"{group}={choice}"])
            having += [choice] if config.get(slot) is not None else []
            taking += [choice] if _takes(config, owner, slot, value) else []
    what = "takes no such" if isinstance(value, DictConfig) else "has no"
    return f"the {group} that was chosen {what} {slot}; these do: {group}={', '.join(having or taking)}"


def _choices(override: Override) -> list[str | None]:
    if override.is_sweep_override():
        return [None if text == "null" else text for text in override.sweep_string_iterator()]
    value = override.value()
    if isinstance(value, list):
        return [str(item) for item in value]
    return [None if value is None else str(value)]


def _check_choices(config_dir: Path, group: str, choices: list[str | None]) -> None:
    available = [path.stem for path in (config_dir / group).glob("*.yaml")]
    for choice in choices:
        if choice is not None and choice.strip("'\"") not in available:
            raise ConfigError(f"{group}={choice} does not exist{did_you_mean(choice, available)}")


def _check_key(config: DictConfig, key: str, groups: list[str]) -> None:
    node: Any = OmegaConf.to_container(config, resolve=False)
    walked: list[str] = []
    first = key.split(".")[0]
    if first in groups and first not in _SET_OTHER_KEYS and config.get(first) is None:
        raise ConfigError(f"{key} is a setting of {first}, and none is chosen that has any: add {first}=...")
    for part in key.split("."):
        if not isinstance(node, dict):
            raise ConfigError(f"{key}: {'.'.join(walked)} is a value and has no {part!r}")
        if part not in node:
            choices = {str(name) for name in node} - {"hydra"}
            where = f"{'.'.join(walked)} has no key {part!r}" if walked else f"there is no key or group {part!r}"
            raise ConfigError(f"{where}{did_you_mean(part, choices if walked else choices | set(groups))}")
        walked.append(part)
        node = node[part]


def _targets(node: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for key, value in node.items():
            yield from _targets(value, f"{path}.{key}" if path else str(key))


def _check_arguments(path: str, node: dict[str, Any]) -> None:
    target = str(node["_target_"])
    function, name = _imported(path, target), target.rpartition(".")[2]
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for key in node:
        if not str(key).startswith("_") and key not in parameters:
            raise ConfigError(f"{path}: {name} has no argument {key!r}{did_you_mean(str(key), parameters)}")


def _imported(path: str, target: str) -> Any:
    module_name, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{path}._target_={target} cannot be imported: {error}") from error
