"""Recognizes the finished runs of a study without composing their configs.

The plan of a study maps command lines to runs, and has a hash of everything else from which configs are composed. While
the hash is the same, a command line has the same config, and so the same folder, which is named after the config.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from detpool.config import Configs
from detpool.run_record import read_metrics

_CODE = ("config", "study")
"""Packages of detpool that convert a command line to a config and its fingerprint."""


def hash_inputs(configs: Configs, arguments: Sequence[str]) -> str | None:
    """Hashes everything besides the command line that affects the composed config.

    That is the config files with their locations, the code that reads them, and the user's home folder. Returns None if
    something else affects it too: a package of configs, or an environment variable in a file or in an argument.
    """
    if any("oc.env" in argument for argument in arguments):
        return None
    content = hashlib.sha256(f"{configs.name} {Path.home()} {metadata.version('hydra-core')}".encode())
    content.update(metadata.version("omegaconf").encode())
    for source in configs.get_sources():
        if source.scheme() == "file":
            for name, text in _files(Path(source.path)):
                if b"oc.env" in text:
                    return None
                content.update(repr((source.provider, name, text)).encode())
        elif (source.scheme(), source.path) not in (("pkg", "hydra.conf"), ("structured", "")):
            return None
    for package in _CODE:
        for path in sorted((Path(__file__).parents[1] / package).glob("*.py")):
            content.update(path.read_bytes())
    return content.hexdigest()


def _files(folder: Path) -> Iterator[tuple[str, bytes]]:
    for top, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        for name in sorted(names):
            if name.endswith(".yaml"):
                path = Path(top, name)
                yield str(path.relative_to(folder)), path.read_bytes()


def is_finished(run_dir: Path) -> bool:
    """Returns whether a run has written metrics that can be read; a run without them is started or resumed."""
    try:
        read_metrics(run_dir / "metrics.json")
    except (FileNotFoundError, ValueError):
        return False
    return True
