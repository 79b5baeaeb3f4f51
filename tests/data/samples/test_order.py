"""The order of samples: a pure function of seed and epoch, shared by ranks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from kdcache.data.samples.order import EpochOrder


def order(**options):
    settings = {"num_samples": 20, "batch_size": 4, "shuffle": True, "seed": 3, **options}
    return EpochOrder(**settings)


sizes = {
    "num_samples": st.integers(1, 60),
    "batch_size": st.integers(1, 7),
    "num_ranks": st.integers(1, 5),
    "shuffle": st.booleans(),
}


def batches(numbers, size, drop_last=False):
    found = [numbers[at : at + size] for at in range(0, len(numbers), size)]
    return [batch for batch in found if len(batch) == size or not drop_last]


@given(**sizes, drop_last=st.booleans())
def test_ranks_have_as_many_batches_and_share_all_samples(
    num_samples, batch_size, num_ranks, shuffle, drop_last
):
    one = EpochOrder(
        num_samples=num_samples,
        batch_size=batch_size,
        shuffle=shuffle,
        drop_last=drop_last,
        seed=5,
    )
    parts = [one.of_rank(rank, num_ranks).tolist() for rank in range(num_ranks)]
    counts = {len(batches(part, batch_size, drop_last)) for part in parts}
    assert len(counts) == 1
    numbers = [number for part in parts for number in part]
    if drop_last:
        assert len(numbers) == len(set(numbers))
        assert num_samples - len(numbers) < num_ranks
    else:
        assert set(numbers) == set(range(num_samples))
        assert len(numbers) - num_samples < num_ranks
        most = max(numbers.count(number) for number in set(numbers))
        assert most == 1 or num_samples % num_ranks


@given(**sizes)
def test_the_batches_of_all_ranks_are_one_larger_batch(num_samples, batch_size, num_ranks, shuffle):
    one = EpochOrder(num_samples=num_samples, batch_size=batch_size, shuffle=shuffle, seed=5)
    parts = [batches(one.of_rank(r, num_ranks).tolist(), batch_size) for r in range(num_ranks)]
    whole = batches(one.whole().tolist(), batch_size * num_ranks)
    for together, wanted in zip(zip(*parts, strict=True), whole, strict=True):
        found = {number for batch in together for number in batch}
        assert found >= set(wanted)
        assert len(wanted) < batch_size * num_ranks or found == set(wanted)


def test_it_depends_on_seed_and_epoch_alone():
    one, same, other = order(), order(), order(seed=4)
    assert list(one) == list(same) != list(other)
    first = list(one)
    one.set_epoch(1)
    assert sorted(one) == list(range(20))
    assert list(one) != first
    one.set_epoch(0)
    torch.rand(5)
    assert list(one) == first


def test_a_pass_can_begin_later():
    one = order()
    whole = list(one)
    one.start = 8
    assert list(one) == whole[8:]
    assert list(one) == whole


def test_a_seed_is_given_once():
    one, seeded = order(seed=None), order(seed=3)
    one.seeded(7)
    seeded.seeded(7)
    assert (one.order_seed, seeded.order_seed) == (7, 3)


DATA = TensorDataset(torch.arange(20))


@pytest.mark.parametrize("options", [{"shuffle": True}, {"shuffle": False}, {"drop_last": True}])
def test_it_takes_over_from_pytorchs_own(options):
    loader = DataLoader(DATA, batch_size=6, **options)
    found = EpochOrder.like(loader)
    assert (found.total, found.batch_size) == (20, 6)
    assert found.shuffle is options.get("shuffle", False)
    assert found.drop_last is options.get("drop_last", False)
    assert found.order_seed is None
    again = DataLoader(DATA, batch_size=6, sampler=found, drop_last=found.drop_last)
    assert len(again) == len(loader)
    assert EpochOrder.like(again) is found


def test_a_seeded_generator_gives_its_seed():
    generator = torch.Generator().manual_seed(11)
    loader = DataLoader(DATA, batch_size=6, shuffle=True, generator=generator)
    assert EpochOrder.like(loader).order_seed == 11
    loader = DataLoader(DATA, batch_size=6, sampler=RandomSampler(DATA, generator=generator))
    assert EpochOrder.like(loader).order_seed == 11


def test_a_batch_sampler_of_pytorchs_own_is_its_parts():
    batches = BatchSampler(RandomSampler(DATA), 6, drop_last=True)
    found = EpochOrder.like(DataLoader(DATA, batch_sampler=batches))
    assert (found.batch_size, found.shuffle, found.drop_last) == (6, True, True)


class OwnBatches(BatchSampler):
    pass


@pytest.mark.parametrize(
    "options",
    [
        {"sampler": WeightedRandomSampler(torch.ones(20), 20)},
        {"sampler": RandomSampler(DATA, replacement=True)},
        {"sampler": RandomSampler(DATA, num_samples=10)},
        {"sampler": SubsetRandomSampler(range(10))},
        {"sampler": SequentialSampler(range(10))},
        {"batch_sampler": OwnBatches(RandomSampler(DATA), 4, drop_last=False)},
    ],
)
def test_it_leaves_every_other_sampler_alone(options):
    if "batch_sampler" not in options:
        options["batch_size"] = 4
    assert EpochOrder.like(DataLoader(DATA, **options)) is None
