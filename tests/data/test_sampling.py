import random
from collections import Counter

import numpy as np
import pytest
import torch

from detpool.data.sampling import EvalSampler, TrainSampler, derive_seed, seeded_rng


def test_seeds_are_pinned_and_unrelated():
    # A change of the hash would change every run; neighbours must not be neighbours.
    assert derive_seed(0, 0, 0) == 1445694884619442965
    seeds = [derive_seed(*parts) for parts in np.ndindex(5, 20, 50)]
    assert len(set(seeds)) == len(seeds)
    assert 0 <= min(seeds) < max(seeds) < 2**63
    assert np.mean([seed & 1 for seed in seeds]) == pytest.approx(0.5, abs=0.05)
    assert derive_seed(0, 1) != derive_seed(1, 0)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_shards_are_equal_and_cover_all(world_size):
    for length in (1, 2, 10, 12):
        shards = [list(TrainSampler(range(length), 5, rank, world_size)) for rank in range(world_size)]
        assert {len(shard) for shard in shards} == {-(-length // world_size)}
        assert len(TrainSampler(range(length), 5, 0, world_size)) == len(shards[0])
        counts = Counter(key.index for shard in shards for key in shard)
        assert set(counts) == set(range(length))
        assert max(counts.values()) - min(counts.values()) <= 1
    for length in (0, 1, 10):  # evaluation sees every sample once
        for rank in range(world_size):
            sampler = EvalSampler(range(length), 5, rank, world_size)
            assert [key.index for key in sampler] == list(range(length))[rank::world_size]
            assert len(sampler) == len(list(sampler))


def test_train_order_and_seeds_depend_on_seed_and_epoch_only():
    def epoch(seed, number, rank=0, world_size=1):
        sampler = TrainSampler(range(40), seed, rank, world_size)
        sampler.set_epoch(number)
        return list(sampler)

    assert epoch(3, 2) == epoch(3, 2)
    orders = [tuple(key.index for key in epoch(*which)) for which in [(3, 2), (3, 3), (4, 2), (2, 3)]]
    assert len(set(orders)) == 4
    # An image is transformed alike wherever it is read.
    alone = {key.index: key.seed for key in epoch(3, 2)}
    assert all(alone[key.index] == key.seed for key in epoch(3, 2, rank=1, world_size=2))
    assert alone != {key.index: key.seed for key in epoch(3, 3)}


def test_skip_leaves_out_the_first_keys_once():
    sampler = TrainSampler(range(10))
    whole = list(sampler)
    sampler.skip = 4
    assert list(sampler) == whole[4:]
    assert list(sampler) == whole
    assert len(sampler) == 10


def test_batches_of_one_group():
    groups = torch.rand(203, generator=torch.Generator().manual_seed(0)) < 0.3
    plain, grouped = ([TrainSampler(range(203), 5, rank, 2, *rest) for rank in (0, 1)] for rest in ((), (groups, 4)))
    for before, sampler in zip(plain, grouped, strict=True):
        whole = list(sampler)
        assert sorted(whole, key=hash) == sorted(before, key=hash)  # the same samples and seeds, in another order
        mixed = [len({bool(groups[key.index]) for key in whole[i : i + 4]}) > 1 for i in range(0, len(whole), 4)]
        assert sum(mixed[:-2]) == 0
        # Batches do not wait: of a group, samples keep their order, and the other's come between.
        for group in (False, True):
            orders = [[key for key in keys if groups[key.index] == group] for keys in (whole, list(before))]
            assert orders[0] == orders[1]
        sampler.skip = 8
        assert list(sampler) == whole[8:]
        sampler.set_epoch(1)
        assert list(sampler) != whole


def test_evaluation_seeds_ignore_the_epoch():
    sampler = EvalSampler(range(4), 5)
    first = list(sampler)
    sampler.set_epoch(3)
    assert list(sampler) == first
    assert first != list(EvalSampler(range(4), 6))


def test_what_is_wrong_is_named():
    for sampler in (TrainSampler, EvalSampler):
        with pytest.raises(ValueError, match="rank"):
            sampler(range(4), 0, 2, 2)
    with pytest.raises(ValueError, match="dataset"):
        TrainSampler([])


def test_seeded_rng_repeats_and_leaves_no_trace():
    def draw():
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), [random.random() for _ in range(3)]

    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    expected = draw()
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    with seeded_rng(2**63 - 1):
        first = draw()
    with pytest.raises(ZeroDivisionError), seeded_rng(7):
        _ = draw(), 1 / 0
    assert draw() == expected
    with seeded_rng(2**63 - 1):
        assert draw() == first
    with seeded_rng(1):
        assert draw() != first
