"""Checks of a composed config before any work: that its keys exist and each value has a type that is accepted."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from detpool.config.configs import Configs
from detpool.config.overrides import join, leaves, nodes
from detpool.config.schema import PARTS, fields
from detpool.config.signatures import Parameter, argument_of_target, parameters_of_target
from detpool.config.values import LATER, fits, words
from detpool.data_sources import check_sources
from detpool.errors import ConfigError, did_you_mean, message_of
from detpool.own_packages import check_packages, packages_of_user

_SOURCES = {"detpool.data.coco.coco_datamodule": "json", "detpool.data.voc.voc_datamodule": "xml"}
"""Data sets whose files can be named in several ways: their `_target_` and the kind of their annotation files."""
_GIVEN_TO_TRAINER = {
    "callbacks": "callbacks=...",
    "logger": "logger=...",
    "enable_progress_bar": "progress=true or progress=false",
    "enable_model_summary": "'+callbacks.summary={_target_: lightning.pytorch.callbacks.RichModelSummary}'",
    "default_root_dir": "hydra.run.dir=...",
    "use_distributed_sampler": "no other key: the data are shared out by their own samplers",
}
"""Arguments of the trainer that a run sets itself, and the keys that control them."""


def check(config: DictConfig, configs: Configs | None = None, overrides: Sequence[str] = ()) -> None:
    """Checks a whole config.

    No value may be missing, keys must be known, `_target_`s must be admitted and accept their arguments, and every
    part (`PARTS`) must be an argument of the backbone or the model.

    Args:
        config: a composed config, or the config of a finished run.
        configs: the config files that it was composed from, which error messages name; None if they are not known.
        overrides: the command line that it was composed for.

    Raises:
        ConfigError: If a check fails. The message names the key, its value and what is accepted.
    """
    _Check(config, configs, overrides).run()


class _Check:
    """The check of one config, with the files and the command line that its messages refer to."""

    def __init__(self, config: DictConfig, configs: Configs | None, overrides: Sequence[str]) -> None:
        self.plain, self.configs, self.overrides = _plain(config), configs, overrides
        self.own = packages_of_user(self.plain.get("imports"))
        self.objects = {path: node for path, node in nodes(self.plain) if isinstance(node, dict) and "_target_" in node}

    def run(self) -> None:
        for section, name in {"": "Config", "optim": "Optim", "evaluation": "Evaluation"}.items():
            given = self.plain[section] if section else self.plain
            self.check_arguments(section, given, fields(name))
            if absent := [key for key, field in fields(name).items() if key not in given and field.default is None]:
                raise ConfigError(f"the config has no {join(section, absent[0])}, which a run needs")
        check_packages(self.plain.get("imports"))
        if self.configs and (ours := sorted(_GIVEN_TO_TRAINER.keys() & self.plain["trainer"].keys())):
            raise ConfigError(f"trainer.{ours[0]} has no effect here; what sets it is {_GIVEN_TO_TRAINER[ours[0]]}")
        limits = fields("Trainer")
        for key in limits.keys() & self.plain["trainer"].keys():
            self.check_value(f"trainer.{key}", self.plain["trainer"][key], limits[key])
        for section in ("callbacks", "logger"):
            for name, member in (self.plain.get(section) or {}).items():
                self.check_value(f"{section}.{name}", member, fields("Members")["each"])
        takes = {path: self.check_target(path, node) for path, node in self.objects.items()}
        if kind := _SOURCES.get(self.plain["data"]["_target_"]):
            try:
                check_sources(kind, self.plain["data"])
            except ValueError as error:
                raise ConfigError(str(error)) from error
        for part in PARTS:
            takers = (takes[owner] for owner in ("backbone", "model"))
            if self.plain.get(part) and not any(taken is None or part in taken for taken in takers):
                raise ConfigError(self.configs.no_reader(part) if self.configs else f"nothing reads {part}")

    def check_target(self, path: str, node: Mapping[Any, Any]) -> dict[str, Parameter] | None:
        """Checks the arguments of a `_target_` and returns those that it accepts; None if its source does not tell."""
        accepted = parameters_of_target(path, node, self.own)
        if path == "model" and accepted is not None:
            accepted = {**accepted, **fields("Model")}
        for key, parameter in fields("Node").items():
            if key in node:
                self.check_value(f"{path}.{key}", node[key], parameter)
        if accepted is not None:
            given = {str(key): value for key, value in node.items() if not str(key).startswith("_")}
            self.check_arguments(path, given, accepted)
        return accepted

    def check_arguments(self, path: str, given: Mapping[Any, Any], accepted: Mapping[str, Parameter]) -> None:
        if unknown := [str(key) for key in given if key not in accepted]:
            raise ConfigError(self.unknown(path, unknown, accepted))
        for key, value in given.items():
            self.check_value(join(path, key), value, accepted[key])

    def check_value(self, key: str, value: Any, parameter: Parameter) -> None:
        if fits(value, parameter):
            return
        name = key.rpartition(".")[2]
        if key in PARTS and isinstance(value, dict):
            hint = f": {', '.join(f'{key}.{name}' for name in value)} is set, and no {key} is chosen: add {key}=..."
        elif self.configs and isinstance(value, str) and value in self.configs.choices(name):
            hint = f"; to choose it: {name}={value}"
        else:
            file = self.origin(key)
            hint = f" ({file}){self.having(key, value)}" if file else ""
        raise ConfigError(f"{key} must be {words(parameter)}, got {_shown(value)}{hint}")

    def unknown(self, path: str, keys: Sequence[str], accepted: Mapping[str, Parameter]) -> str:
        """Returns a message that names the unknown keys of a part and, if another file set them, how to remove them."""
        file = self.origin(join(path, keys[0]))
        where = f" ({file})" if file else ""
        groups = self.configs.groups() if self.configs else []
        if not path and self.configs and keys[0] in groups:
            choices = ", ".join(self.configs.choices(keys[0]))
            return f"{keys[0]} is no part of the config: choose one with {keys[0]}={choices}{where}"
        if path in ("", "optim", "evaluation"):
            deeper = [key for key, _ in leaves(self.plain) if not path and key.endswith(f".{keys[0]}")]
            near = did_you_mean(keys[0], [*accepted, *([] if path else groups)])
            what = f"{path} has no key" if path else "there is no key or group"
            return f"{what} {keys[0]!r}{f'; did you mean {deeper[0]!r}?' if deeper else near}{where}"
        name = str(self.objects[path]["_target_"]).rpartition(".")[2]
        files = {key: file for key in keys if (file := self.origin(f"{path}.{key}"))}
        foreign = {key: file for key, file in files.items() if file != self.origin(f"{path}._target_")}
        key = next(iter(foreign), keys[0])
        close = difflib.get_close_matches(key, accepted, n=1, cutoff=0.8)
        if not foreign or close:
            hint = f"; did you mean {close[0]!r}?" if close else did_you_mean(key, accepted)
            return f"{path}: {name} has no argument {key!r}{hint}" + (f" ({foreign[key]})" if foreign else "")
        shown, without = ", ".join(map(repr, foreign)), " ".join(f"'~{path}.{key}'" for key in foreign)
        whose = f"set in {', '.join(dict.fromkeys(foreign.values()))} for another {path.partition('.')[0]}"
        return (
            f"{path}: {name} has no argument {shown}, {whose}{self.having(f'{path}.{key}', None)}; or take the setting "
            f"out with {without}"
        )

    def origin(self, key: str) -> str | None:
        return self.configs.origin(key, self.overrides) if self.configs else None

    def having(self, key: str, value: Any) -> str:
        """Returns a hint that lists the choices of a part's group which accept the argument `key`.

        Unless `value` is None, the choice must accept this value, too.
        """
        path, _, name = key.rpartition(".")
        found = [
            choice
            for choice, target in (self.configs.targets(path) if self.configs else ())
            if (parameter := argument_of_target(target, name, self.own)) and (value is None or fits(value, parameter))
        ]
        return f"; these take it: {path.partition('.')[0]}={', '.join(found)}" if found else ""


@contextmanager
def naming_files(config: DictConfig) -> Iterator[None]:
    """Adds to an error raised while a part of `config` is built the files that set the values it mentions.

    The user may not have set these values: `sampling_ratio 2 has no meaning` may refer to a value of an experiment
    file. If a message mentions no key, as messages of libraries may not, the overrides of that part are added instead.

    Raises:
        ConfigError: If the error can be explained in this way; otherwise the original error.
    """
    try:
        yield
    except Exception as error:
        message = message_of(error) or ""
        # The part that the message begins with is more precise than the object that was being built.
        parts = [*re.findall(r"^([\w@]+)", message), *re.findall(r"while building ([\w@]+)", message)]
        parts = [part for part in parts if part in config]
        if not parts or not HydraConfig.initialized():
            raise
        job = HydraConfig.get()
        configs, overrides = Configs.of_job(job), [*job.overrides.hydra, *job.overrides.task]
        words = set(re.findall(r"\w+", message))
        settings = {key: value for key, value in leaves(_plain(config)) if key.startswith(f"{parts[0]}.")}
        named = {key: value for key, value in settings.items() if key.rpartition(".")[2] in words}
        notes = [
            f"{key}={value} is set in {file}"
            for key, value in named.items()
            if (file := configs.origin(key, overrides))
        ]
        if not named:
            given = [line for line in job.overrides.task if line.startswith(f"{parts[0]}.")]
            notes = [f"given: {' '.join(given)}"] if given else []
        if not notes:
            raise
        raise ConfigError(f"{message} ({'; '.join(notes)})") from error


def _plain(config: DictConfig) -> dict[str, Any]:
    """Returns a config as dicts and lists with interpolations resolved.

    Raises:
        ConfigError: If keys have no value or an interpolation cannot be resolved. The message names the keys.
    """
    config = config.copy()
    raw = dict(leaves(OmegaConf.to_container(config, resolve=False)))
    if missing := [key for key, value in raw.items() if value == "???"]:
        given = " ".join(f"{key}=..." for key in missing)
        raise ConfigError(f"no value given for {', '.join(missing)}: pass {given}")
    for key, value in raw.items():
        if isinstance(value, str) and "${hydra:" in value:
            OmegaConf.update(config, key, LATER)
    try:
        plain = OmegaConf.to_container(config, resolve=True)
    except RecursionError as error:
        raise ConfigError("the config refers to itself without an end") from error
    except (OmegaConfBaseException, ValueError) as error:
        key = str(getattr(error, "full_key", ""))
        raise ConfigError(f"{key}={raw.get(key)} cannot be resolved: {str(error).splitlines()[0]}") from error
    assert isinstance(plain, dict)
    return plain  # type: ignore[return-value]


def _shown(value: Any) -> str:
    if isinstance(value, dict) and "_target_" in value:
        return f"an object ({value['_target_']})"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else f"{value!r:.200}"
