"""Checking a command line and a config before any work, so that a typo fails in a second and names its cure.

| module | what it holds |
|---|---|
| `command_line.py` | which arguments are `key=value`, and what Hydra's own options ask for |
| `overrides.py` | `key=value` arguments, and setting them in a config |
| `configs.py` | the config files that a command line sees, and what is composed of them |
| `other_data.py` | the data of a finished run, replaced by other data |
| `other_parts.py` | its poolers and proposals, replaced by others |
| `check.py` | a composed config against `schema.py` and the signatures of what its `_target_`s name |
| `extras.py` | which packages a training needs that detpool does not |
| `values.py` | whether a value is of an annotated type |
| `signatures.py` | which classes and functions a config may name, and what they take, read from source files |

Nothing here imports torch, which alone takes seconds, or what a config names.
"""

from detpool.extras import require

require()

from detpool.config.check import check, naming_files
from detpool.config.command_line import CommandLine, parse_command_line
from detpool.config.configs import Configs, config_folder
from detpool.config.extras import check_extras
from detpool.config.other_data import replace_data
from detpool.config.other_parts import replace_parts
from detpool.config.overrides import apply_overrides, parse_override, parse_path
from detpool.config.schema import PARTS

__all__ = [
    "PARTS",
    "CommandLine",
    "Configs",
    "apply_overrides",
    "check",
    "check_extras",
    "config_folder",
    "naming_files",
    "parse_command_line",
    "parse_override",
    "parse_path",
    "replace_data",
    "replace_parts",
]
