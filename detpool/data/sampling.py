"""Samplers: the samples that each process reads, their order, and the seed of the random transforms of each."""

import hashlib
import random
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data.distributed import DistributedSampler


@dataclass(frozen=True, slots=True)
class SampleKey:
    """Index of a sample together with the seed of its random transforms.

    Args:
        index: position in the data set, 0 .. len - 1.
        seed: non-negative 63-bit integer.
    """

    index: int
    seed: int


def derive_seed(*parts: int) -> int:
    """Hash integers to a seed that is the same on every platform and in every run, and unrelated for close integers.

    Args:
        parts: integers that fit in 64 bits, for example (run seed, epoch, index).

    Returns:
        An integer in [0, 2**63).
    """
    data = b"".join(part.to_bytes(8, "little", signed=True) for part in parts)
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") >> 1


@contextmanager
def seeded_rng(seed: int) -> Iterator[None]:
    """Seed the CPU generators of torch, numpy and ``random``, and restore their states at the end of the block.

    CUDA generators are not changed: transforms run on the CPU, and a model in this process may use the GPU.
    """
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(torch_state)
        np.random.set_state(numpy_state)
        random.setstate(python_state)


# Both samplers derive from `DistributedSampler` so that Lightning, whatever `use_distributed_sampler` is, recognizes
# that they are already sharded and does not shard them again.


class TrainSampler(DistributedSampler):
    """All samples in random order, which depends on (seed, epoch), divided among the processes.

    Every process gets the same number of samples, as collective training steps require. If the size of the data set is
    not a multiple of the number of processes, the first samples of the epoch's order occur twice.

    Args:
        dataset: anything with a length of at least 1.
        seed: the run's seed.
        rank: index of this process, 0 .. world_size - 1.
        world_size: number of processes.
        groups: bool (len,), the group of each sample. Every ``batch_size`` consecutive samples belong to the same
            group, except for the last ones of a process. None: there is a single group.
        batch_size: see ``groups``.

    Raises:
        ValueError: If the data set is empty, or ``rank`` is not below ``world_size``.
    """

    def __init__(
        self,
        dataset: Sized,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        groups: Tensor | None = None,
        batch_size: int = 1,
    ) -> None:
        if len(dataset) == 0:
            raise ValueError("dataset: got one without samples, need at least 1 to train")
        super().__init__(dataset, num_replicas=world_size, rank=rank, seed=seed)  # type: ignore[arg-type]
        self.skip, self.groups, self.batch_size = 0, groups, batch_size

    def __iter__(self) -> Iterator[SampleKey]:
        """Yield this process's part of the epoch that was set by the last `set_epoch` (default 0).

        The first ``skip`` keys are left out, once: this continues a run that was stopped within an epoch.
        """
        skip, self.skip = self.skip, 0
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.epoch))
        order = torch.randperm(len(self.dataset), generator=generator)  # type: ignore[arg-type]
        shard = order.repeat(-(-self.total_size // len(order)))[self.rank : self.total_size : self.num_replicas]
        indices = shard.tolist() if self.groups is None else _batched(shard, self.groups[shard], self.batch_size)
        for index in indices[skip:]:
            yield SampleKey(index, derive_seed(self.seed, self.epoch, index))


def _batched(indices: Tensor, groups: Tensor, batch_size: int) -> list[int]:
    """Reorders indices into batches of a single group, in the order in which they fill up; the rest comes last."""
    batched: list[int] = []
    waiting: dict[bool, list[int]] = {False: [], True: []}
    for index, group in zip(indices.tolist(), groups.tolist(), strict=True):
        waiting[group].append(index)
        if len(waiting[group]) == batch_size:
            batched += waiting[group]
            waiting[group] = []
    return batched + waiting[False] + waiting[True]


class EvalSampler(DistributedSampler):
    """Samples rank, rank + world_size, ... in order: over all processes, every sample once, without padding.

    The seeds do not depend on the epoch: evaluation sees the same pixels each time, even if its transform is random.

    Args:
        dataset: anything with a length.
        seed: the run's seed.
        rank: index of this process, 0 .. world_size - 1.
        world_size: number of processes.

    Raises:
        ValueError: If ``rank`` is not below ``world_size``.
    """

    def __init__(self, dataset: Sized, seed: int = 0, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(dataset, num_replicas=world_size, rank=rank, shuffle=False, seed=seed)  # type: ignore[arg-type]
        self.indices = range(rank, len(dataset), world_size)

    def __iter__(self) -> Iterator[SampleKey]:
        for index in self.indices:
            yield SampleKey(index, derive_seed(self.seed, 0, index))

    def __len__(self) -> int:
        return len(self.indices)
