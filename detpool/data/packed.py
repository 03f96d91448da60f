"""Sequences of strings, stored in three tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from msgspec import Raw
from torch import Tensor


class PackedStrings:
    """An immutable sequence of strings that worker processes share.

    A list of strings would be copied into every worker: spawned workers get a pickled copy, and in forked workers pages
    are copied because reading a Python object writes its reference count. Tensors are shared in both cases.

    Args:
        data: uint8, the bytes of all strings in UTF-8.
        starts, ends: int64 (n,), the range of each string in ``data``.
    """

    def __init__(self, data: Tensor, starts: Tensor, ends: Tensor) -> None:
        self.parts = data, starts, ends

    @classmethod
    def pack(cls, strings: Iterable[str | Raw]) -> PackedStrings:
        encoded = [string.encode() if isinstance(string, str) else string for string in strings]
        ends = torch.tensor([0, *(memoryview(part).nbytes for part in encoded)]).cumsum(0)
        data = torch.frombuffer(bytearray().join(encoded) or bytearray(1), dtype=torch.uint8)
        return cls(data, ends[:-1], ends[1:])

    def take(self, indices: Tensor) -> PackedStrings:
        """Returns the strings at the given indices, without copying their bytes."""
        data, starts, ends = self.parts
        return PackedStrings(data, starts[indices], ends[indices])

    def __len__(self) -> int:
        return len(self.parts[1])

    def __getitem__(self, index: int) -> str:
        data, starts, ends = self.parts
        return data[starts[index] : ends[index]].numpy().tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        data, starts, ends = self.parts
        view = data.numpy().data
        return (str(view[start:end], "utf-8") for start, end in zip(starts.tolist(), ends.tolist(), strict=True))
