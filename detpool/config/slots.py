"""Which parts of a config take a slot: what a model or backbone may be given, and a pooler's reduction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from detpool.config.targets import imported
from detpool.errors import ConfigError
from detpool.signatures import parameters_of

if TYPE_CHECKING:
    from detpool.config.configs import Configs


def takes(target: Any, argument: str, value: Any = None) -> bool:
    """Whether a class or function has an argument of that name, and not a string where `value` is an object."""
    try:
        parameter = parameters_of(target).get(argument)
    except (TypeError, ValueError):
        return False
    return parameter is not None and not (isinstance(value, dict) and parameter.annotation is str)


def no_slot(slot: str, owner: str, configs: Configs, value: Any = None) -> str:
    """Says that what was chosen for `owner` has no such slot, and which choices have it, or take it if none has.

    What was not imported before is not looked at: another choice that is broken, or slow to import, is none of the
    command's business.
    """
    group = owner.split(".")[0]
    having, taking = [], []
    for choice in configs.choices(group):
        try:
            config = configs.compose([f"{group}={choice}"])
            target = imported(str(OmegaConf.select(config, f"{owner}._target_")))
            has = config.get(slot) is not None
        except (ConfigError, OmegaConfBaseException):
            continue
        having += [choice] if has else []
        taking += [choice] if takes(target, slot, value) else []
    what = "takes no such" if isinstance(value, dict) else "has no"
    hint = f"; these do: {group}={', '.join(having or taking)}" if having or taking else ""
    return f"the {group} that was chosen {what} {slot}{hint}"
