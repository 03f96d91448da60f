"""A cache of parsed annotation files, which later runs map into memory instead of parsing the file again."""

from __future__ import annotations

import contextlib
import hashlib
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

_VERSION = 3  # of the cached content: increase it when the content, or the way it is computed, changes
_WORTHWHILE = 2**24  # minimum file size in bytes; smaller files are parsed about as fast as their hash is computed

Columns = dict[str, Any]
"""Tensors, tuples of tensors, lists of strings, and numbers, by name."""


def cached(source: Path, kind: str, build: Callable[[], Columns]) -> Columns:
    """Returns the result of ``build`` for a file, mapped into memory from a cache file if there is a valid one.

    All processes on a machine share the mapped pages. The cache file is ``.<name>.<kind>.cache`` in the folder of the
    file or, if that folder is not writable, below ``~/.cache/detpool`` (``$XDG_CACHE_HOME/detpool``). It holds a hash
    of the file's bytes and a checksum of its own content. If either does not match, or it cannot be read, the
    result is built again and a message is printed. If several processes need it at the same time, one builds it. Files
    smaller than 16 MiB are not cached.

    Args:
        source: the annotation file.
        kind: name of what ``build`` computes, to distinguish several results for the same file.
        build: function without arguments that computes the result.

    Raises:
        OSError: If ``source`` cannot be read.
    """
    if source.stat().st_size < _WORTHWHILE:
        return build()
    name = f".{source.name}.{kind}.cache"
    shared = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "detpool"
    places = [source.with_name(name), shared.joinpath(*source.resolve().parent.parts[1:], name)]
    key = f"{_VERSION} {kind} {_hash(source)}"
    with _locked(source):
        for place in places:
            if found := _load(place, key):
                return found
        content = build()
        for place in places:
            with contextlib.suppress(OSError, RuntimeError):  # torch raises RuntimeError if the disk is full
                _save(place, key, content)
                return _load(place, key) or content
    rank_zero_info(f"{source}: read anew at each start, as neither {places[0]} nor {places[1]} can be written")
    return content


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on a file during the block, if the platform and the file system support this."""
    with path.open("rb") as file:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _load(place: Path, key: str) -> Columns | None:
    try:
        kept = torch.load(place, mmap=True, weights_only=True)
        if kept["key"] == key and kept["checksum"] == _checksum(kept["columns"]):
            return kept["columns"]
        fault = "damaged" if kept["key"] == key else "of another file or another version"
    except FileNotFoundError:
        return None
    except Exception as error:  # torch.load may raise anything for damaged files
        fault = f"damaged ({type(error).__name__})"
    rank_zero_info(f"{place} is {fault}: the annotations are read anew")
    return None


def _save(place: Path, key: str, columns: Columns) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f"{place.name}.{uuid4().hex}.tmp")  # unique even across machines
    try:
        torch.save({"key": key, "checksum": _checksum(columns), "columns": columns}, temporary)
        os.replace(temporary, place)
    finally:
        temporary.unlink(missing_ok=True)


def _checksum(value: Any) -> int:
    """Checksum of all bytes, so that C libraries never get data that was damaged after validation."""
    if isinstance(value, Tensor):
        return zlib.crc32(value.contiguous().numpy().data.cast("B")) if value.numel() else 0
    if isinstance(value, dict | list | tuple):
        parts = value.items() if isinstance(value, dict) else value
        return zlib.crc32(repr([_checksum(part) for part in parts]).encode())
    return zlib.crc32(repr(value).encode())
