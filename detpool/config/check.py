"""Checking a composed config before any work: its keys, and that each value is one that its reader takes."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from inspect import Parameter
from typing import Any, Literal

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from detpool.config.configs import Configs, Origin
from detpool.config.schema import EACH, OPTIONAL, REQUIRED, SLOTS
from detpool.config.slots import no_slot, takes
from detpool.config.targets import packages_of_user, resolve, targets
from detpool.config.values import UNKNOWN, accepted, fits
from detpool.errors import ConfigError, did_you_mean, message_of
from detpool.signatures import parameters_of

# Hydra's own keys of a mapping with a `_target_`.
_HYDRAS = {
    "_partial_": bool,
    "_recursive_": bool,
    "_convert_": Literal["none", "partial", "object", "all"],
    "_args_": list,
}
_DEEPEST = 50  # mappings within mappings


def check_keys(config: DictConfig, configs: Configs) -> None:
    """Checks the keys that no signature speaks for: at the top level, in the primary config's own sections, and slots.

    An experiment file can bring in any key; one that nothing reads would pass silently.

    Raises:
        ConfigError: naming the key and the nearest valid one, or for a slot the choices that have it.
    """
    plain = _plain(config, "")
    for section in REQUIRED:
        keys = REQUIRED[section] | OPTIONAL.get(section, {})
        for key in _section(plain, section):
            if key not in keys:
                where = f"{section} has" if section else "the config has"
                raise ConfigError(f"{where} an unknown key {key!r}{did_you_mean(str(key), keys)}")
    check_complete(config)
    own = _own(plain)
    for slot, owner in SLOTS.items():
        if plain.get(slot) is not None and not _takes(owner, _section(plain, owner), own, slot):
            raise ConfigError(no_slot(slot, owner, configs))
    operator = _section(_section(plain, "pooler"), "operator")
    reduction = operator.get("reduction")
    if reduction and not _takes("pooler.operator", operator, own, "reduction", reduction):
        raise ConfigError(no_slot("reduction", "pooler.operator", configs, reduction))


def check_complete(config: DictConfig) -> None:
    """Checks that a config has all that a run reads.

    Raises:
        ConfigError: naming what is missing.
    """
    plain = _plain(config, "")
    for section, keys in REQUIRED.items():
        for key in keys:
            if (not section or isinstance(plain[section], dict)) and key not in _section(plain, section):
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
    plain = _plain(config, "")
    if missing := sorted(key for key, value in _leaves(plain) if value == "???"):
        raise ConfigError(f"no value given for {', '.join(missing)}: pass {' '.join(key + '=...' for key in missing)}")
    for section, keys in [*REQUIRED.items(), *OPTIONAL.items()]:
        for key, value in _section(plain, section).items():
            if annotation := keys.get(EACH) or keys.get(key):
                _check_value(f"{section}.{key}" if section else key, value, annotation, origin)
    own = _own(plain)
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

    The user may have given none of them: `sampling_ratio 2 has no meaning` may be about an experiment's. Where a
    message names none, as those of libraries may, what the command line sets in that part is added.
    """
    try:
        yield
    except Exception as error:
        message = message_of(error) or ""
        # What it begins with is more precise than what was being built.
        parts = [*re.findall(r"^([\w@]+)", message), *re.findall(r"while building ([\w@]+)", message)]
        parts = [part for part in parts if part in config]
        if not parts or not HydraConfig.initialized():
            raise
        words, origin = set(re.findall(r"\w+", message)), origin_of_job()
        settings = {key: value for key, value in _leaves(_plain(config, "")) if key.startswith(f"{parts[0]}.")}
        named = {key: value for key, value in settings.items() if key.rpartition(".")[2] in words}
        notes = [f"{key}={value} is set in {file}" for key, value in named.items() if (file := origin(key))]
        if not named:
            given = [line for line in HydraConfig.get().overrides.task if line.startswith(f"{parts[0]}.")]
            notes = [f"given: {' '.join(given)}"] if given else []
        if not notes:
            raise
        raise ConfigError(f"{message} ({'; '.join(notes)})") from error


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, node


def _section(plain: dict[Any, Any], name: str) -> dict[Any, Any]:
    """A mapping in a plain config, "" for itself; an empty one if there is none of that name."""
    section = plain.get(name) if name else plain
    return section if isinstance(section, dict) else {}


def _takes(owner: str, node: dict[Any, Any], own: tuple[str, ...], argument: str, value: Any = None) -> bool:
    """Whether the `_target_` of a node has an argument of that name (see `takes`)."""
    return "_target_" in node and takes(resolve(owner, node, own), argument, value)


def _check_value(key: str, value: Any, annotation: Any, origin: Origin) -> None:
    if not fits(value, annotation):
        file = origin(key)
        where = f" ({file})" if file else ""
        raise ConfigError(f"{key} must be {accepted(annotation)}, got {_shown(value)}{where}")


def _shown(value: Any) -> str:
    if isinstance(value, dict) and "_target_" in value:
        return f"an object ({value['_target_']})"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else f"{value!r:.200}"


def _check_arguments(path: str, node: dict[Any, Any], target: Any, origin: Origin) -> None:
    """Checks the names and types of what a `_target_` is given, as far as Python knows what it takes."""
    for key, annotation in _HYDRAS.items():
        if key in node:
            _check_value(f"{path}.{key}", node[key], annotation, origin)
    given = {str(key): value for key, value in node.items() if not str(key).startswith("_")}
    try:
        parameters = parameters_of(target)
    except (TypeError, ValueError):
        return
    takes_any = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values())
    unknown = [] if takes_any else [key for key in given if key not in parameters]
    if unknown:
        raise ConfigError(_unknown(path, str(node["_target_"]).rpartition(".")[2], unknown, parameters, origin))
    for key, value in given.items():
        parameter = parameters.get(key)
        # A default may be None where the annotation forgets it.
        if parameter is not None and not (value is None and parameter.default is None):
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


def _own(plain: dict[Any, Any]) -> tuple[str, ...]:
    imports = plain.get("imports")
    return packages_of_user([name for name in imports if isinstance(name, str)] if isinstance(imports, list) else [])


def _plain(node: Any, path: str) -> Any:
    """A config as dicts and lists with interpolations resolved; those of what only a job of Hydra knows are UNKNOWN.

    Raises:
        ConfigError: naming the key whose interpolation leads nowhere.
    """
    if not isinstance(node, DictConfig | ListConfig):
        return node
    if node._is_none():
        return None
    if path.count(".") > _DEEPEST:
        raise ConfigError(f"{path:.100}... refers to itself without an end")
    values = {}
    for key in range(len(node)) if isinstance(node, ListConfig) else list(node):
        name = f"{path}.{key}" if path else str(key)
        try:
            values[key] = "???" if OmegaConf.is_missing(node, key) else _plain(node[key], name)
        except (OmegaConfBaseException, ValueError) as error:
            if isinstance(error, ConfigError):
                raise
            raw = str(node._get_node(key)._value())  # type: ignore[union-attr]
            if "${hydra:" not in raw:
                raise ConfigError(f"{name}={raw} cannot be resolved: {str(error).splitlines()[0]}") from error
            values[key] = UNKNOWN
    return values if isinstance(node, DictConfig) else list(values.values())
