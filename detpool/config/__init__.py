"""Checking a command line and a config before any work, so that a typo fails in a second and names its cure.

| module | what it holds |
|---|---|
| `command_line.py` | which arguments are `key=value`, and what Hydra's own options ask for |
| `overrides.py` | `key=value` arguments, and setting them in a config |
| `configs.py` | the config files that a command line sees, and what it composes of them |
| `check.py` | a composed config against `schema.py` and the signatures of what its `_target_`s name |
| `values.py` | whether a value is of an annotated type |
| `slots.py` | which choices have a slot that was asked for |
| `targets.py` | which classes and functions a config may name |

Nothing here imports torch: that alone takes seconds. Looking up what a config names does, so that comes last.
"""

from detpool.config.check import check_complete, check_config, check_keys, naming_files, origin_of_job
from detpool.config.command_line import CommandLine, parse_command_line
from detpool.config.configs import Configs
from detpool.config.overrides import apply_overrides, parse_override
from detpool.config.schema import SLOTS

__all__ = [
    "SLOTS",
    "CommandLine",
    "Configs",
    "apply_overrides",
    "check_complete",
    "check_config",
    "check_keys",
    "naming_files",
    "origin_of_job",
    "parse_command_line",
    "parse_override",
]
