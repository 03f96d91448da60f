"""The config files that a command line can name, and their composition by Hydra, with errors that say what to do."""

from __future__ import annotations

import copy
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra._internal.config_repository import CachingConfigRepository, ConfigResult, IConfigRepository
from hydra._internal.utils import create_config_search_path
from hydra.core.default_element import ConfigDefault, GroupDefault, ResultDefault
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import Override, OverrideType
from hydra.core.utils import setup_globals
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from detpool.config.overrides import expand_home, parse_override
from detpool.config.schema import PARTS, fields
from detpool.config.signatures import argument_of_target
from detpool.errors import ConfigError, did_you_mean

MOUNTED = {"stem_pool": "downsample"}
MOUNTED |= dict.fromkeys(("mask_pooler", "iou_pooler", "stage2_pooler", "stage3_pooler"), "pooler")
"""Parts that take their choices from another group: `stem_pool=blur` is short for `downsample@stem_pool=blur`."""
SEVERAL = ("callbacks", "logger")
"""Groups from which several members can be chosen and merged: `callbacks=[ema,early_stopping]`."""
_EXTRAS = {
    "submitit_local": "submitit",
    "submitit_slurm": "submitit",
    "joblib": "joblib",
    "optuna": "optuna",
    "ray": "ray",
}
"""Hydra's plugins, and the extras of detpool that install them."""


def config_folder() -> Path:
    """Returns the folder of detpool's config files: inside the package if installed, beside it in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


class _Files(CachingConfigRepository):
    """Repository of config files that finds and reads each file only once for all compositions."""

    def __init__(self, delegate: IConfigRepository) -> None:
        super().__init__(delegate)
        self.options: dict[tuple[str, ObjectType | None], list[str]] = {}

    def __deepcopy__(self, memo: Any) -> _Files:
        # Hydra composes with a copy of the repository and may change its folders.
        copied = _Files(self.delegate)
        copied.cache, copied.options = self.cache, self.options
        return copied

    def load_config(self, config_path: str) -> ConfigResult | None:
        # A composed config shares parts with the files that were read, and changes them.
        return copy.deepcopy(super().load_config(config_path))

    def get_group_options(self, group_name: str, results_filter: ObjectType | None = ObjectType.CONFIG) -> list[str]:
        key = (group_name, results_filter)
        if key not in self.options:
            self.options[key] = super().get_group_options(group_name, results_filter)
        return self.options[key]


class Configs(ConfigLoaderImpl):
    """Hydra's loader of the config files in a folder, and in further folders that follow it in the search path.

    Each set of choices is composed once, and other `key=value` arguments are set in copies of the result. They may set
    keys that no file lists; `check` finds those that nothing takes. Each load returns a new copy.

    Args:
        folder: folder that holds the primary config and one folder per group.
        name: name of the primary config.
        config_dir: a further folder, as given by `--config-dir`.
        searchpath: further folders, or `pkg://package`, as in `hydra.searchpath`.

    Raises:
        ConfigError: If a further folder does not exist.
    """

    def __init__(self, folder: Path, name: str, config_dir: str | None = None, searchpath: Sequence[str] = ()) -> None:
        version.setbase("1.3")
        setup_globals()
        self.folder, self.name = folder.resolve(), name
        path = create_config_search_path(str(self.folder))
        schema = path.get_path().pop()  # Hydra requires it to be the last
        for provider, place in [("command-line", config_dir), *(("hydra.searchpath", place) for place in searchpath)]:
            place = (place or "").removeprefix("file://")
            if place and "://" not in place and not Path(place).is_dir():
                raise ConfigError(f"the folder of configs {place} does not exist (looked from {Path.cwd()})")
            if place:
                path.append(provider, place if "://" in place else f"file://{Path(place).resolve()}")
        path.get_path().append(schema)
        super().__init__(path)
        self.files = _Files(self.repository)
        self.repository = self.files  # type: ignore[assignment]
        self._composed: dict[Any, DictConfig] = {}
        self._defaults: dict[Any, Sequence[ResultDefault]] = {}

    def __getstate__(self) -> dict[str, Any]:
        # A process that a launcher starts for a run composes only that run.
        files = _Files(self.files.delegate)
        return {**self.__dict__, "files": files, "repository": files, "_composed": {}, "_defaults": {}}

    @classmethod
    def of_job(cls, job: Any) -> Configs:
        """Returns the config files of a job that Hydra runs; `job` is the part `hydra` of its config."""
        sources = [(str(s.provider), f"{s.schema}://{s.path}") for s in job.runtime.config_sources]
        main = next(path for provider, path in sources if provider == "main")
        further = [path for provider, path in sources if provider not in ("hydra", "main", "schema")]
        return cls(Path(main.removeprefix("file://")), str(job.job.config_name), searchpath=further)

    def choices(self, group: str) -> list[str]:
        """Returns the members of a group; an empty list if there is no such group."""
        group = MOUNTED.get(group, group)
        return self.repository.get_group_options(group, ObjectType.CONFIG) if group else []

    def groups(self) -> list[str]:
        """Returns the groups of the config files, and the parts that are chosen from a group of another name."""
        return [name for name in (*self.list_groups(""), *MOUNTED) if name != "hydra"]

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """Composes the config of plain `key=value` arguments, without the part `hydra`.

        A `run_dir` that is an interpolation, and so refers to the part `hydra`, becomes "".

        Raises:
            ConfigError: If it cannot be composed (see `load_configuration`).
        """
        config = self.load_configuration(self.name, list(overrides), RunMode.RUN)
        with open_dict(config):
            del config["hydra"]
            if OmegaConf.is_interpolation(config, "run_dir"):
                config.run_dir = ""
        return config

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """Composes the config of a command line. Hydra's sweepers and launchers call this.

        Raises:
            ConfigError: If an argument is not `key=value`, a group does not have a choice (the message names the
                nearest valid one), or files cannot be read or composed.
        """
        shared, seed = self.load_without_seed(overrides, run_mode)
        config = copy.deepcopy(shared)
        with open_dict(config):
            if seed is not None:
                config.seed = seed
            task = [given for given in map(parse_override, overrides) if not given.is_hydra_override()]
            config.hydra.overrides.task = [given.input_line for given in task]
            names = config.hydra.job.config.override_dirname
            config.hydra.job.override_dirname = get_overrides_dirname(
                task, exclude_keys=names.exclude_keys, item_sep=names.item_sep, kv_sep=names.kv_sep
            )
        return config

    def load_without_seed(
        self, overrides: Sequence[str], run_mode: RunMode = RunMode.RUN
    ) -> tuple[DictConfig, int | None]:
        """Composes the config of a command line without its seed, and returns the config and the seed.

        Command lines that differ only in the seed share this config, which is composed once and must not be changed;
        references to `seed` in it are not resolved. The seed is None if the command line sets none or sets a value that
        is not an integer.

        Raises:
            ConfigError: See `load_configuration`.
        """
        choices, values = self._split(overrides, run_mode)
        seeds = [override.value() for override in values if override.key_or_group == "seed"]
        whole = [seed for seed in seeds if type(seed) is int]
        if len(whole) == len(seeds):
            values = [override for override in values if override.key_or_group != "seed"]
        key = (choices, tuple(override.input_line for override in values), run_mode)
        if key not in self._composed:
            try:
                config = copy.deepcopy(self._compose_choices(choices, run_mode))
            except ConfigError:  # the cause may be a misspelled group: its choice would have added what is missing
                known = [*fields("Config"), *self.groups()]
                for name in (override.key_or_group.partition(".")[0] for override in values):
                    if name not in known:
                        raise ConfigError(f"there is no key or group {name!r}{did_you_mean(name, known)}") from None
                raise
            with open_dict(config):
                for override in values:
                    self._set(config, override)
            expand_home(config)
            self._composed[key] = config
        return self._composed[key], whole[-1] if whole and whole == seeds else None

    def _split(self, overrides: Sequence[str], run_mode: RunMode) -> tuple[tuple[str, ...], list[Override]]:
        """Splits a command line into choices of groups (with Hydra's own keys) and other values; expands variants."""
        parsed = [parse_override(argument) for argument in overrides]
        variants = self.variants(parsed)
        choices: list[str] = []
        values: list[Override] = []
        for override in parsed:
            spelled = [override]
            if override.key_or_group == "variant":
                for name in _texts(override):
                    if name not in variants:
                        none = f"{override.input_line}: only a study has variants, and not every one"
                        known = f"variant={name} does not exist{did_you_mean(str(name), variants)}"
                        raise ConfigError(known if variants else none)
                spelled = [] if override.is_sweep_override() else variants[str(override.value())]
            for part in spelled:
                if part.is_sweep_override() and run_mode is RunMode.RUN:
                    raise ConfigError(_several(part))
                group = MOUNTED.get(part.key_or_group)
                if group and part.package is None and None not in _texts(part):
                    part = parse_override(f"{group}@{part.input_line}")
                is_choice = part.is_hydra_override() or bool(self.choices(part.key_or_group))
                if is_choice:
                    self._check_choices(part)
                if part.is_sweep_override():
                    continue
                if is_choice:
                    choices.append(str(part.input_line))
                else:
                    values.append(part)
        return tuple(choices), values

    def variants(self, parsed: Sequence[Override]) -> dict[str, list[Override]]:
        """Returns the variants of the study that a command line names, each as a list of overrides.

        Raises:
            ConfigError: If the variants are not a mapping of names to plain `key=value` arguments.
        """
        study = next((o.value() for o in parsed if o.key_or_group == "study" and o.type is not OverrideType.DEL), None)
        variants = self._variants_of(str(study)) if study else {}
        if odd := [str(key) for key in variants if not re.fullmatch(r"[\w-]+", str(key))]:
            raise ConfigError(f"study {study}: names of variants have letters, digits, _ and - only, got {odd[0]!r}")
        found = {
            str(name): [parse_override(part) for part in shlex.split(str(text))] for name, text in variants.items()
        }
        for name, overrides in found.items():
            for override in overrides:
                try:
                    if override.type is OverrideType.DEL or override.is_sweep_override():
                        raise ConfigError(f"{override.input_line!r} is not a plain key=value")
                    self._check_choices(override)
                except ConfigError as error:
                    raise ConfigError(f"variant {name} of study {study}: {error}") from error
        return found

    def _variants_of(self, study: str) -> dict[Any, Any]:
        """Returns `variants` of a study's file, merged over those of the studies that its defaults list names."""
        file = self.file(f"study/{study}")
        if file is None:
            return {}
        own = OmegaConf.select(file.config, "variants") or {}
        if not isinstance(own, DictConfig | dict):
            raise ConfigError(f"study {study}: variants must be a mapping")
        found: dict[Any, Any] = {}
        for default in file.defaults_list or ():
            base = default.path.removeprefix("/study/") if isinstance(default, ConfigDefault) and default.path else "/"
            if not base.startswith("/") and base != "_self_":
                found |= self._variants_of(base)
        return found | dict(own)

    def _check_choices(self, override: Override) -> None:
        group = override.key_or_group
        if override.is_hydra_override() or override.type is OverrideType.DEL or not self.choices(group):
            return
        for choice in self._names(override):
            if choice is None:
                raise ConfigError(f"{override.input_line}: a group's choice is taken out with '~{group}'")
            folder, _, name = f"{MOUNTED.get(group, group)}/{choice}".rpartition("/")
            if name not in self.choices(folder):
                near = did_you_mean(choice, self.choices(group))
                raise ConfigError(f"{override.package or group}={choice:.100} does not exist{near}")

    def _names(self, override: Override) -> Iterator[str | None]:
        """Yields the members of a group that an override names, including those of a list or a sweep; None for null."""
        group = override.key_or_group
        for text in _texts(override):
            if text is None or not text.startswith("["):
                yield text
                continue
            value: Any = parse_override(f"{group}={text}").value()
            names = [str(name) for name in value]
            if group not in SEVERAL:
                whole = override.package or group
                raise ConfigError(
                    f"{whole}={text} is a list, and there is one {whole}: choose one, or with -m a run of each: "
                    f"{whole}={','.join(names)}"
                )
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise ConfigError(f"{group}={text} names {twice} twice")
            yield from names or (None,)

    def _compose_choices(self, choices: tuple[str, ...], run_mode: RunMode) -> DictConfig:
        """Composes group choices with Hydra; for a study, removes keys that no run uses and sets the study's folder."""
        key = (choices, run_mode)
        if key not in self._composed:
            try:
                config = super().load_configuration(self.name, list(choices), run_mode)
            except Exception as error:  # Hydra's, OmegaConf's, YAML's, the file system's
                raise self._explained(error, choices) from error
            study = config.hydra.runtime.choices.get("study")
            with open_dict(config):
                config.pop("variants", None)
                for part in PARTS:
                    if config.get(part) == {}:  # the choices `own` and `none`
                        del config[part]
                if study:
                    if not any(line.startswith("hydra.sweep.dir=") for line in choices):
                        config.hydra.sweep.dir = f"logs/{study}"
                    config.hydra.sweep.subdir, config.hydra.output_subdir = ".", None
            self._composed[key] = config
        return self._composed[key]

    def _set(self, config: DictConfig, override: Override) -> None:
        change = override if override.type is OverrideType.DEL else replace(override, type=OverrideType.FORCE_ADD)
        try:
            self._apply_overrides_to_config([change], config)
        except Exception as error:  # Hydra's and OmegaConf's
            cause = str(error.__cause__ or error).strip().partition("\n")[0]
            raise ConfigError(f"{override.input_line:.200} cannot be set: {cause}") from error

    def file(self, member: str) -> ConfigResult | None:
        """Returns the file of a config `group/choice`; None if there is none.

        Raises:
            ConfigError: If the file cannot be read or does not hold a mapping.
        """
        try:
            file = self.repository.load_config(member)
        except Exception as error:
            raise ConfigError(f"{member}.yaml cannot be read: {error}") from error
        if file and not isinstance(file.config, DictConfig):
            raise ConfigError(f"{member}.yaml must hold keys and values")
        return file

    def origin(self, key: str, overrides: Sequence[str]) -> str | None:
        """Returns the path of the config file that set a key; None if the command line set it or no file is found."""
        choices, values = self._split(overrides, RunMode.RUN)
        given = [override.key_or_group for override in values]
        if any(f"{key}.".startswith(f"{own}.") or own.startswith(f"{key}.") for own in given):
            return None
        if choices not in self._defaults:
            self._defaults[choices] = self.compute_defaults_list(self.name, list(choices), RunMode.RUN).defaults
        for default in reversed(self._defaults[choices]):
            package = f"{default.package}." if default.package else ""
            file = self.file(default.config_path) if default.config_path and f"{key}.".startswith(package) else None
            if file and (f"{key}." == package or _has(file.config, key.removeprefix(package))):
                folder = Path(str(file.path).removeprefix("file://"))
                path = folder / f"{default.config_path}.yaml"
                return str(path.relative_to(self.folder.parent) if folder == self.folder else path)
        return None

    def targets(self, path: str) -> Iterator[tuple[str, str]]:
        """Yields `(choice, _target_)` at a key of the config, for each choice of the group that the key begins with."""
        group, _, rest = path.partition(".")
        for choice in self.choices(group):
            for file in self._with_bases(f"{MOUNTED.get(group, group)}/{choice}"):
                keys = (f"{place}._target_".lstrip(".") for place in (path, rest))
                if target := next((found for key in keys if (found := OmegaConf.select(file.config, key))), None):
                    yield choice, str(target)
                    break

    def no_reader(self, part: str) -> str:
        """Returns a message that nothing takes a part, with the choices of models or backbones that do."""
        for group in ("model", "backbone"):
            having = [choice for choice in self.choices(group) if self._brings(f"{group}/{choice}", part)]
            having = having or [choice for choice, target in self.targets(group) if argument_of_target(target, part)]
            if having:
                return f"the {group} that was chosen has no {part}; these do: {group}={', '.join(having)}"
        return f"nothing reads {part}"

    def _brings(self, member: str, part: str) -> bool:
        return any(
            isinstance(default, GroupDefault) and part in (default.package, str(default.group).strip("/"))
            for file in self._with_bases(member)
            for default in file.defaults_list or ()
        )

    def _with_bases(self, member: str) -> Iterator[ConfigResult]:
        """Yields the file of a config and the files of its group that it builds on."""
        try:
            file = self.file(member)
        except ConfigError:  # a broken file of a choice that the command did not make must not stop it
            return
        if file is not None:
            yield file
            for default in reversed(file.defaults_list or []):
                if isinstance(default, ConfigDefault) and default.path != "_self_":
                    yield from self._with_bases(f"{member.rpartition('/')[0]}/{default.path}")

    def _explained(self, error: Exception, choices: Sequence[str]) -> ConfigError:
        text = str(error) or str(error.__cause__)
        if missing := re.search(r"Could not find 'hydra/(launcher|sweeper)/(\w+)'", text):
            kind, name = missing.groups()
            if name in _EXTRAS:
                return ConfigError(f"the {kind} {name} is not installed: pip install 'detpool[{_EXTRAS[name]}]'")
            return ConfigError(f"hydra/{kind}={name} does not exist{did_you_mean(name, _EXTRAS)}")
        if absent := re.search(r"Could not override '(?:\w+@)?(\w+)'", text):
            # If the user followed Hydra's advice to append the group, it would be ignored.
            return ConfigError(self.no_reader(absent[1]))
        try:
            for override in map(parse_override, choices):
                for name in self._names(override):
                    self.file(f"{override.key_or_group}/{name}")
        except ConfigError as broken:
            return broken
        return ConfigError(f"the configs do not compose: {text} (of {' '.join(choices):.500})")


def _texts(override: Override) -> list[str | None]:
    """Returns the value of a `key=value` argument, or all values of a sweep, as text (null as None)."""
    if override.is_sweep_override():
        texts = [text.strip("'\"") for text in override.sweep_string_iterator()]
        return [None if text == "null" else text for text in texts]
    value = override.value()
    if isinstance(value, list):
        return [str(override.get_value_element_as_str())]
    return [None if value is None else str(value)]


def _several(override: Override) -> str:
    line = str(override.input_line)
    key, _, values = line.partition("=")
    return (
        f"{line} names several values: add -m for a run of each; a list is {key}=[{values}], a text with commas "
        f"{key}=\"'{values}'\""
    )


def _has(content: Any, key: str) -> bool:
    """Returns whether a file sets a dotted key, directly or by a reference to another part of the config."""
    node: Any = OmegaConf.to_container(content, resolve=False) if isinstance(content, DictConfig) else {}
    for part in key.split("."):
        if isinstance(node, str) and node.startswith("${"):
            return True
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True
