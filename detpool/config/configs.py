"""The config files that a command line can name, and what it composes of them, with errors that name their cure.

Nothing here imports torch, which alone takes seconds, or what configs name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.config_store import ConfigStore
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import Override, OverrideType
from hydra.core.utils import setup_globals
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from detpool.config.overrides import check_key, choices_of, is_hydras, parse_override
from detpool.config.schema import OPTIONAL, REQUIRED, SLOTS
from detpool.config.slots import no_slot
from detpool.errors import ConfigError, did_you_mean

Origin = Callable[[str], str | None]
"""Called with a key, returns the config file that sets it, or None if that is not known, or the command line does."""

# Plugins of Hydra, and our extras that install them.
_EXTRAS = {
    "joblib": "joblib",
    "optuna": "optuna",
    "ray": "ray",
    "submitit_local": "submitit",
    "submitit_slurm": "submitit",
}


class Configs:
    """The config files in a folder, and in further ones that Hydra's search path has after it.

    Args:
        folder: holds the primary config and a folder for each group.
        name: of the primary config.
        searchpath: further folders, or `pkg://package`, as in `hydra.searchpath`.
    """

    def __init__(self, folder: Path, name: str, searchpath: Sequence[str] = ()) -> None:
        version.setbase("1.3")
        setup_globals()
        self.folder, self.name = folder.resolve(), name
        self._searchpath = list(searchpath)
        path = create_config_search_path(str(self.folder))
        schema = path.get_path().pop()  # which Hydra wants to be the last
        for place in self._searchpath:
            path.append("further", place)
        path.get_path().append(schema)
        self._loader = ConfigLoaderImpl(path)
        self._choices: dict[str, list[str]] = {}

    @classmethod
    def of_job(cls, job: Any) -> Configs:
        """Those of a job that Hydra runs, of whose config `job` is the part `hydra`."""
        sources = [(str(s.provider), str(s.schema), str(s.path)) for s in job.runtime.config_sources]
        main = next(path for provider, _, path in sources if provider == "main")
        known = ("hydra", "main", "schema")
        further = [f"{scheme}://{path}" for provider, scheme, path in sources if provider not in known]
        return cls(Path(main), str(job.job.config_name), further)

    def with_searchpath(self, searchpath: Sequence[str]) -> Configs:
        """These and further ones.

        Raises:
            ConfigError: if one of `searchpath` is no text, or names a folder that does not exist.
        """
        for path in searchpath:
            if not isinstance(path, str):
                raise ConfigError(f"hydra.searchpath must be a list of folders, got {path!r} in it")
            folder = path.removeprefix("file://")
            if "://" not in folder and not Path(folder).is_dir():
                raise ConfigError(f"the folder of configs {folder} does not exist (looked from {Path.cwd()})")
        return Configs(self.folder, self.name, [*self._searchpath, *searchpath]) if searchpath else self

    def choices(self, group: str) -> list[str]:
        """The members of a group; none if there is no such group."""
        if group not in self._choices:
            self._choices[group] = self._loader.repository.get_group_options(group, ObjectType.CONFIG)
        return self._choices[group]

    def groups(self) -> list[str]:
        """The groups of the config files."""
        return [name for name in self._loader.list_groups("") if name != "hydra"]

    def compose(self, overrides: Sequence[str], hydra: bool = False) -> DictConfig:
        """The config of a command line of plain `key=value`; without a run its `run_dir` is "".

        Args:
            overrides: the command line.
            hydra: whether to keep Hydra's own part of the config.

        Raises:
            ConfigError: for an argument that is not `key=value`, an unknown group or key, or a choice that a group does
                not have; the message names the nearest valid one. And for files that cannot be read or composed.
        """
        parsed = [parse_override(override) for override in overrides]
        for override in parsed:
            if override.is_sweep_override():
                line = str(override.input_line)
                key, _, values = line.partition("=")
                raise ConfigError(
                    f"{line} names several values: add -m for a run of each; a list is {key}=[{values}], a text with "
                    f"commas {key}=\"'{values}'\""
                )
            self.check_choices(override)
            key = override.key_or_group
            if override.type is not OverrideType.DEL and override.value() is None and self.choices(key):
                raise ConfigError(f"{key}=null: a group's choice is taken out with '~{key}'")
        try:
            config = self._load(overrides)
        except Exception as error:  # Hydra's, OmegaConf's, YAML's, the file system's
            raise self._explained(error, parsed) from error
        with open_dict(config):
            if not hydra:
                del config["hydra"]
            if OmegaConf.is_interpolation(config, "run_dir"):
                config.run_dir = ""
        return config

    def check_choices(self, override: Override) -> None:
        """Checks the choices of a `group=choice`, or of a sweep over a group.

        Raises:
            ConfigError: if the group does not have one; the message names the nearest.
        """
        group = override.key_or_group
        if is_hydras(override) or override.type is OverrideType.DEL or not self.choices(group):
            return
        for choice in choices_of(override):
            folder, _, name = f"{group}/{choice}".rpartition("/")
            if choice is not None and name not in self.choices(folder):
                raise ConfigError(f"{group}={choice:.100} does not exist{did_you_mean(choice, self.choices(group))}")

    def check_key(self, config: DictConfig, key: str) -> None:
        """Checks that a config has a dotted key.

        Raises:
            ConfigError: naming the nearest valid one.
        """
        check_key(config, key, self.groups())

    def read(self, member: str) -> tuple[str, DictConfig] | None:
        """The file of a config `group/choice`, as messages name it, and its content; None if there is none to read."""
        for folder in self._folders():
            path = folder / f"{member}.yaml"
            if path.is_file():
                name = str(path.relative_to(self.folder.parent) if folder == self.folder else path)
                try:
                    content = OmegaConf.load(path)
                except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
                    raise ConfigError(f"{name} cannot be read: {error}") from error
                if not isinstance(content, DictConfig):
                    raise ConfigError(f"{name} must hold keys and values")
                return name, content
        group, _, choice = member.rpartition("/")
        if group == "variant":
            return f"variant {choice} of the study", ConfigStore.instance().load(f"{member}.yaml").node
        return None

    def origin(self, overrides: Sequence[str]) -> Origin:
        """Which file set a key of the config that a command line composes."""
        given = [parse_override(override) for override in overrides]
        keys = [o.key_or_group for o in given if not self.choices(o.key_or_group)]

        @cache
        def defaults() -> list[Any]:
            return self._loader.compute_defaults_list(self.name, list(overrides), RunMode.RUN).defaults

        def origin(key: str) -> str | None:
            if any(f"{key}.".startswith(f"{own}.") for own in keys):
                return None
            for default in reversed(defaults()):
                package = f"{default.package}." if default.package else ""
                found = self.read(default.config_path) if key.startswith(package) else None
                if found and _has(found[1], key.removeprefix(package)):
                    return found[0]
            return None

        return origin

    def _load(self, overrides: Sequence[str]) -> DictConfig:
        return self._loader.load_configuration(self.name, list(overrides), RunMode.RUN)

    def _folders(self) -> list[Path]:
        further = [path.removeprefix("file://") for path in self._searchpath if not path.startswith("pkg://")]
        return [self.folder, *map(Path, further)]

    def _explained(self, error: Exception, overrides: Sequence[Override]) -> ConfigError:
        text = str(error) or str(error.__cause__)
        absent = re.search(r"Could not (?:override|delete from config\.) '(?:\w+@)?([^']+)'", text)
        own = {override.key_or_group for override in overrides if not self.choices(override.key_or_group)}
        known = {*REQUIRED[""], *OPTIONAL[""], *self.groups(), "hydra"}
        unknown = [key for key in own if re.split(r"[./]", key)[0] not in known]
        try:
            for override in overrides:
                for choice in choices_of(override) if self.choices(override.key_or_group) else ():
                    self.read(f"{override.key_or_group}/{choice}")
            if unknown:
                self.check_key(self._load([]), unknown[0])
            if absent and absent[1] in SLOTS:
                # Hydra's advice, to append the group, would have it ignored.
                return ConfigError(no_slot(absent[1], SLOTS[absent[1]], self))
            if absent and absent[1] in own:
                groups = [str(o.input_line) for o in overrides if self.choices(o.key_or_group)]
                self.check_key(self._load(groups), absent[1])
        except ConfigError as explained:
            return explained
        except Exception:  # these do not compose either
            return _compose_error(text, overrides)
        return _compose_error(text, overrides)


def _compose_error(text: str, overrides: Sequence[Override]) -> ConfigError:
    """What Hydra raised when it put configs together; of a missing launcher or sweeper, the extra that has it."""
    missing = re.search(r"Could not find 'hydra/(launcher|sweeper)/(\w+)'", text)
    if not missing:
        named = any(override.key_or_group in text for override in overrides)
        lines = " ".join(str(override.input_line) for override in overrides)
        return ConfigError(
            f"the configs do not compose: {text}" + ("" if named or not lines else f" (of {lines:.500})")
        )
    kind, name = missing.groups()
    if name not in _EXTRAS:
        return ConfigError(f"hydra/{kind}={name} does not exist{did_you_mean(name, _EXTRAS)}")
    return ConfigError(f"the {kind} {name} is not installed: pip install 'detpool[{_EXTRAS[name]}]'")


def _has(content: DictConfig, key: str) -> bool:
    """Whether a file's content sets a dotted key, itself or by a reference to another part of the config."""
    node: Any = OmegaConf.to_container(content, resolve=False)
    for part in key.split("."):
        if isinstance(node, str) and node.startswith("${"):
            return True
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True
