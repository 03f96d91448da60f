"""The configurations of a sweep: runs that differ only in their seed have the same configuration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from omegaconf import DictConfig

from detpool.config import Configs, parse_override
from detpool.errors import ConfigError
from detpool.study.layout import fingerprint
from detpool.study.plan import compose_jobs, sweep_jobs


@dataclass(frozen=True)
class Configuration:
    """The common settings of several runs.

    Attributes:
        label: what distinguishes it from the others, `pooler=roi_align, backbone=lite0`, or the name of its variant.
        overrides: the command line without a seed.
        config: the composed config of the first seed.
        seeds: the seeds of the runs, in order; None stands for the config's own seed.
        runs: the `fingerprint` of each run.
    """

    label: str
    overrides: list[str]
    config: DictConfig
    seeds: list[int | None] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)


def list_configurations(configs: Configs, arguments: Sequence[str]) -> list[Configuration]:
    """List the configurations of a command line such as `study=smallest` or `pooler=roi_pool,roi_align`, in its order.

    A configuration that is named twice (`pooler=roi_align,roi_align`) is listed twice, the second time with the label
    `pooler=roi_align (2)`.

    Args:
        configs: the config files to which the command line refers.
        arguments: the `key=value` arguments of the command line.

    Raises:
        ConfigError: If there is a typo in the arguments or in the study, a configuration cannot be composed, or the
            sweeper chooses runs during the sweep.
    """
    jobs = sweep_jobs(configs, arguments)
    if jobs is None:
        raise ConfigError("a sweeper that chooses runs as it goes has no list of configurations: leave sweeper=... out")
    alike: dict[tuple[str, ...], list[Configuration]] = {}
    found: list[Configuration] = []
    for job, config, seed in compose_jobs(configs, jobs):
        parsed = [override for override in map(parse_override, job) if not override.is_hydra_override()]
        words = [str(override.input_line) for override in parsed if override.key_or_group != "seed"]
        same = alike.setdefault(tuple(words), [])
        one = next((each for each in same if seed not in each.seeds), None)
        if one is None:
            one = Configuration("", words, configs.compose(job))
            same.append(one)
            found.append(one)
        one.seeds.append(seed)
        one.runs.append(fingerprint(config, seed))
    return _labelled(found)


def _labelled(found: Sequence[Configuration]) -> list[Configuration]:
    common = set.intersection(*(set(one.overrides) for one in found))
    counts: Counter[str] = Counter()
    labelled = []
    for one in found:
        all_words = [word for word in one.overrides if not word.startswith("study=")]
        apart = [word for word in all_words if word not in common] or all_words
        label = ", ".join(word.removeprefix("variant=") for word in apart) or "the defaults"
        counts[label] += 1
        number = f" ({counts[label]})" if counts[label] > 1 else ""
        labelled.append(Configuration(label + number, one.overrides, one.config, one.seeds, one.runs))
    return labelled
