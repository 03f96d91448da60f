"""Annotations in a form that is read in a moment, kept for the next run."""

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

_VERSION = 3  # of what is kept: a change of it, or of how it is made, makes those of before stale
_WORTHWHILE = 2**24  # bytes of a file; smaller ones are read as fast as their hash could be trusted

Columns = dict[str, Any]
"""Tensors and tuples of tensors, lists of texts and numbers, by name."""


def cached(source: Path, kind: str, build: Callable[[], Columns]) -> Columns:
    """What ``build`` makes of a file, mapped into memory from where an earlier call with the same file has kept it.

    All processes of a machine share the mapped pages. It is kept beside the file, ``.<name>.<kind>.cache``, or, where
    that folder cannot be written, below ``~/.cache/detpool`` (``$XDG_CACHE_HOME/detpool``). It names the hash of the
    file's bytes and a checksum of its own; what does not fit, or cannot be read, is built anew, and a message says so.
    Of processes that need it at the same time one builds. Files of less than 16 MiB are read each time.

    Args:
        source: the file.
        kind: names what ``build`` makes, if it is more than one thing.
        build: called without arguments.

    Raises:
        OSError: ``source`` cannot be read.
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
            with contextlib.suppress(OSError, RuntimeError):  # the latter is torch's for a full disk
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
    """Waits until no other process is in such a block, where the file system can tell."""
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
    except Exception as error:  # of many kinds: whatever the bytes make of torch.load
        fault = f"damaged ({type(error).__name__})"
    rank_zero_info(f"{place} is {fault}: the annotations are read anew")
    return None


def _save(place: Path, key: str, columns: Columns) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f"{place.name}.{uuid4().hex}.tmp")  # of several machines too
    try:
        torch.save({"key": key, "checksum": _checksum(columns), "columns": columns}, temporary)
        os.replace(temporary, place)
    finally:
        temporary.unlink(missing_ok=True)


def _checksum(value: Any) -> int:
    """Of all bytes, so that none that was not checked when it was read reaches the libraries in C."""
    if isinstance(value, Tensor):
        return zlib.crc32(value.contiguous().numpy().data.cast("B")) if value.numel() else 0
    if isinstance(value, dict | list | tuple):
        parts = value.items() if isinstance(value, dict) else value
        return zlib.crc32(repr([_checksum(part) for part in parts]).encode())
    return zlib.crc32(repr(value).encode())
