"""Checking a composed config before any work: its keys, and that each value is one that its reader takes."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from inspect import Parameter
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from detpool.config.configs import Configs, Origin
from detpool.config.schema import OPTIONAL, REQUIRED, SLOTS
from detpool.config.slots import no_slot, takes
from detpool.config.targets import packages_of_user, resolve, targets
from detpool.config.values import MISSING, accepted, fits
from detpool.errors import ConfigError, did_you_mean, message_of
from detpool.signatures import parameters_of


def check_keys(config: DictConfig, configs: Configs) -> None:
    """Checks the keys that no signature speaks for: at the top level, in the primary config's own sections, and slots.

    An experiment file can bring in any key; one that nothing reads would pass silently.

    Raises:
        ConfigError: naming the key and the nearest valid one, or for a slot the choices that have it.
    """
    for section in REQUIRED:
        keys = REQUIRED[section] | OPTIONAL.get(section, {})
        for key in config if section == "" else config.get(section) or {}:
            if key not in keys:
                where = f"{section} has" if section else "the config has"
                raise ConfigError(f"{where} an unknown key {key!r}{did_you_mean(str(key), keys)}")
    check_complete(config)
    for slot, owner in SLOTS.items():
        if config.get(slot) is not None and not _takes(config, owner, slot):
            raise ConfigError(no_slot(slot, owner, configs))
    reduction = OmegaConf.select(config, "pooler.operator.reduction")
    if reduction and not _takes(config, "pooler.operator", "reduction", reduction):
        raise ConfigError(no_slot("reduction", "pooler.operator", configs, reduction))


def check_complete(config: DictConfig) -> None:
    """Checks that a config has all that a run reads.

    Raises:
        ConfigError: naming what is missing.
    """
    for section, keys in REQUIRED.items():
        values = config.get(section) if section else config
        for key in keys:
            if isinstance(values, DictConfig) and key not in values:
                raise ConfigError(f"the config has no {f'{section}.{key}' if section else key}, which a run needs")


def check_config(config: DictConfig, origin: Origin = lambda key: None) -> None:
    """Checks the values of a composed config: that none is missing, that its `_target_`s are admitted and have the
    arguments that they are given, and that each value is of the type that its reader asks for.

    Args:
        config: the config; only what it has is checked, and interpolations of Hydra's own config are taken as good.
        origin: says which config file set a key, for messages.

    Raises:
        ConfigError: naming the key, what came and what is accepted.
    """
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ConfigError(f"no value given for {', '.join(missing)}: pass {' '.join(key + '=...' for key in missing)}")
    try:
        plain = _plain(config, "")
    except RecursionError as error:
        raise ConfigError("the config refers to itself without an end: look at its ${...}") from error
    for section, keys in [*REQUIRED.items(), *OPTIONAL.items()]:
        values = plain.get(section) if section else plain
        for key, annotation in keys.items():
            if isinstance(values, dict) and key in values:
                _check_value(f"{section}.{key}" if section else key, values[key], annotation, origin)
    own = _own(config)
    for path, node in targets(plain):
        _check_arguments(path, node, resolve(path, node, own), origin)


def origin_of_job() -> Origin:
    """Which config file set a key of the config of the job that Hydra runs; nothing is known without one."""
    if not HydraConfig.initialized():
        return lambda key: None
    job = HydraConfig.get()
    return Configs.of_job(job).origin([*job.overrides.hydra, *job.overrides.task])


@contextmanager
def naming_files(config: DictConfig) -> Iterator[None]:
    """Adds to what the construction of a part of `config` raises which files set the values that it names.

    The user may have given none of them: `sampling_ratio 2 has no meaning` may be about an experiment's.
    """
    try:
        yield
    except Exception as error:
        message = message_of(error) or ""
        section = message.partition(" ")[0].strip(",:").partition(".")[0]
        values = OmegaConf.to_container(config, resolve=False).get(section)  # type: ignore[union-attr]
        words, origin = set(re.findall(r"\w+", message)), origin_of_job()
        named = [key for key in _leaves(values, section) if key.rpartition(".")[2] in words]
        files = [f"{key}={OmegaConf.select(config, key)} is set in {file}" for key in named if (file := origin(key))]
        if not files:
            raise
        raise ConfigError(f"{message} ({'; '.join(files)})") from error


def _leaves(node: Any, path: str) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _leaves(value, f"{path}.{key}")
    else:
        yield path


def _takes(config: DictConfig, owner: str, argument: str, value: Any = None) -> bool:
    """Whether the `_target_` at `owner` has an argument of that name (see `takes`)."""
    target = OmegaConf.select(config, f"{owner}._target_")
    return target is not None and takes(resolve(owner, {"_target_": target}, _own(config)), argument, value)


def _check_value(key: str, value: Any, annotation: Any, origin: Origin) -> None:
    if not fits(value, annotation):
        file = origin(key)
        where = f" ({file})" if file else ""
        raise ConfigError(f"{key} must be {accepted(annotation)}, got {_shown(value)}{where}")


def _shown(value: Any) -> str:
    if isinstance(value, dict) and "_target_" in value:
        return f"an object ({value['_target_']})"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def _check_arguments(path: str, node: dict[Any, Any], target: Any, origin: Origin) -> None:
    """Checks the names and types of what a `_target_` is given, as far as Python knows what it takes."""
    try:
        parameters = parameters_of(target)
    except (TypeError, ValueError):
        return
    given = {str(key): value for key, value in node.items() if not str(key).startswith("_")}
    takes_any = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values())
    unknown = [] if takes_any else [key for key in given if key not in parameters]
    if unknown:
        raise ConfigError(_unknown(path, str(node["_target_"]).rpartition(".")[2], unknown, parameters, origin))
    for key, value in given.items():
        parameter = parameters.get(key)
        # A default may be None where the annotation forgets it.
        if parameter is not None and value != parameter.default:
            _check_value(f"{path}.{key}", value, parameter.annotation, origin)


def _unknown(path: str, name: str, keys: Sequence[str], parameters: dict[str, Parameter], origin: Origin) -> str:
    """Says which arguments a `_target_` does not have and, if another file brought them, how to be rid of them."""
    group = path.partition(".")[0]
    target_file = origin(f"{path}._target_")
    foreign = {f"{path}.{key}": file for key in keys if (file := origin(f"{path}.{key}")) and file != target_file}
    if not foreign:
        return f"{path}: {name} has no argument {keys[0]!r}{did_you_mean(keys[0], parameters)}"
    key, file = next(iter(foreign.items()))
    if near := difflib.get_close_matches(key.rpartition(".")[2], parameters, n=1, cutoff=0.8):
        return f"{path}: {name} has no argument {key.rpartition('.')[2]!r}; did you mean {near[0]!r}? ({file})"
    files = ", ".join(dict.fromkeys(foreign.values()))
    shown = ", ".join(repr(key.rpartition(".")[2]) for key in foreign)
    without = " ".join(f"'~{key}'" for key in foreign)
    return (
        f"{path}: {name} has no argument {shown}, set in {files} for another {group}: choose that {group}, or "
        f"take the setting out with {without}"
    )


def _own(config: DictConfig) -> tuple[str, ...]:
    imports = config.get("imports")
    return packages_of_user([str(name) for name in imports] if isinstance(imports, ListConfig) else [])


def _plain(node: Any, path: str) -> Any:
    """A config as dicts and lists with interpolations resolved; those of what only a job of Hydra knows are MISSING."""
    if isinstance(node, ListConfig):
        keys: Any = range(len(node)) if not node._is_none() else None
    elif isinstance(node, DictConfig):
        keys = list(node) if not node._is_none() else None
    else:
        return node
    if keys is None:
        return None
    values = {}
    for key in keys:
        name = f"{path}.{key}" if path else str(key)
        try:
            values[key] = _plain(node[key], name)
        except MissingMandatoryValue:
            values[key] = MISSING
        except (OmegaConfBaseException, ValueError) as error:
            raw = node._get_node(key)
            if "${hydra:" not in str(raw._value()):
                raise ConfigError(f"{name}={raw._value()} cannot be resolved: {error}") from error
            values[key] = MISSING
    return values if isinstance(node, DictConfig) else list(values.values())
