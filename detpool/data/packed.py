"""Many strings in two tensors."""

from collections.abc import Iterable, Iterator
from itertools import pairwise

import torch


class PackedStrings:
    """An immutable sequence of strings that worker processes share.

    A list of strings is copied into every worker: pickled where workers are spawned, and where they are forked page
    by page, as reading a Python object writes its reference count. Tensors are shared in both cases.
    """

    def __init__(self, strings: Iterable[str]) -> None:
        encoded = [string.encode() for string in strings]
        self._ends = torch.tensor([0, *map(len, encoded)]).cumsum(0)
        self._bytes = torch.frombuffer(bytearray(b"".join(encoded) or b"\0"), dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        start, end = self._ends[index : index + 2].tolist()
        return self._bytes[start:end].numpy().tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        data, ends = self._bytes.numpy().tobytes(), self._ends.tolist()
        return (data[start:end].decode() for start, end in pairwise(ends))
