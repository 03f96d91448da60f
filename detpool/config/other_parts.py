"""Replaces the poolers and proposals of a finished run by others of their config groups."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from detpool.config.configs import MOUNTED, Configs
from detpool.config.overrides import parse_override
from detpool.config.signatures import argument_of_target
from detpool.errors import ConfigError

POOLERS = ("pooler", *(part for part, group in MOUNTED.items() if group == "pooler"))
_OF_THE_HEADS = ("output_size", "canonical_scale", "canonical_level")


def replace_parts(config: DictConfig, arguments: Sequence[str], folder: Path) -> list[str]:
    """Replace parts of a run by those that `pooler=roi_pool`, another of `POOLERS` or `proposals=jittered` chooses.

    A new pooler keeps the run's output size and assignment of levels, which the trained heads expect, unless arguments
    override them; its other settings are those of the group. `reduction=...` goes with `pooler=pool`, as in training.

    Args:
        config: config of the run; changed in place.
        arguments: plain `key=value` arguments.
        folder: folder of the config files.

    Returns:
        The remaining arguments: those that do not concern the chosen parts.

    Raises:
        ConfigError: If there is no such choice, an argument names several, or the run has no such part.
    """
    parsed = {argument: parse_override(argument) for argument in arguments}
    chosen = {given.key_or_group for given in parsed.values()} & {*POOLERS, "proposals"}
    for argument, override in parsed.items():
        if override.key_or_group in chosen and override.is_sweep_override():
            raise ConfigError(f"{argument} names several values, and one run is evaluated: see tools/probe.py")
    left, configs = list(arguments), Configs(folder, "train")
    for part in sorted(chosen & {*POOLERS}):
        if not config.get(part):
            raise ConfigError(f"{part}: the run has none to replace")
        own = [
            a for a in left if a.startswith((f"{part}=", f"{part}.")) or (part == "pooler" and a[:10] == "reduction=")
        ]
        composed = configs.compose([f"pooler{a.removeprefix(part)}" if a.startswith(part) else a for a in own])
        # Not resolved, so that references to other parts refer to those of the run.
        pooler = composed.pooler.copy()
        OmegaConf.set_struct(pooler, False)
        keys = {argument.partition("=")[0].partition(".")[2] for argument in own}
        for key in _OF_THE_HEADS:
            if key not in keys and key in config[part] and argument_of_target(pooler._target_, key) is not None:
                pooler[key] = config[part][key]
        config[part] = pooler
        left = [argument for argument in left if argument not in own]
    for argument in [a for a in left if parsed[a].key_or_group == "proposals"]:
        proposals = configs.compose([argument]).model.proposals
        OmegaConf.update(config, "model.proposals", proposals, merge=False, force_add=True)
        left.remove(argument)
    return left
