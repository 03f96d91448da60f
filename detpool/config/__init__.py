"""Checks of a command line and a config before any work, so that a typo fails within a second, with a hint to fix it.

| module | contents |
|---|---|
| `command_line.py` | splits a command line into `key=value` arguments and Hydra's own options |
| `overrides.py` | reads `key=value` arguments and sets them in a config |
| `configs.py` | finds the config files that a command line can name, and composes a config from them |
| `other_data.py` | replaces the data of a finished run |
| `other_parts.py` | replaces the poolers and proposals of a finished run |
| `check.py` | checks a composed config against `schema.py` and the signatures of the `_target_`s |
| `extras.py` | checks that the optional packages a training needs are installed |
| `values.py` | checks whether a value has an annotated type |
| `signatures.py` | reads from source files which classes and functions a config may name, and their arguments |

Nothing here imports torch, which alone takes seconds, or the objects that a config names.
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
