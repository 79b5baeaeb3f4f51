"""The join under every way in which a DataLoader can draw samples: each gets its own targets."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    Subset,
    WeightedRandomSampler,
)

import kdcache
from kdcache import CachedDataset, JoinedBatch
from kdcache.errors import AlignmentError, CacheIncompleteError, CacheMissingError, UsageError
from tests.data import toys

N = 22
SAMPLES = toys.labelled(N)


@pytest.fixture(scope="module")
def dumped(tmp_path_factory):
    return toys.dump(tmp_path_factory.mktemp("join") / "c", SAMPLES)


@pytest.fixture
def joined(dumped):
    return CachedDataset(toys.Samples(SAMPLES), dumped)


def own_batches():
    return [[3, 1], [0], [21, 20, 19, 3]]


# name -> DataLoader settings of the user's, and how many samples come out
LOADERS = {
    "in order": ({"batch_size": 4}, N),
    "shuffled": ({"batch_size": 4, "shuffle": True}, N),
    "drop_last": ({"batch_size": 4, "shuffle": True, "drop_last": True}, 20),
    "sampler": ({"batch_size": 4, "sampler": RandomSampler(range(N), num_samples=9)}, 9),
    "sampler with repeats": (
        {"batch_size": 4, "sampler": WeightedRandomSampler([1.0] * N, 30, replacement=True)},
        30,
    ),
    "sampler of tensors": ({"batch_size": 4, "sampler": torch.arange(N - 1, -1, -1)}, N),
    "batch sampler": ({"batch_sampler": BatchSampler(range(N), 5, drop_last=True)}, 20),
    "own batches": ({"batch_sampler": own_batches()}, 7),
    "forked workers": ({"batch_size": 4, "num_workers": 2, "shuffle": True}, N),
    "own collate": ({"batch_size": 4, "collate_fn": toys.stack_pairs}, N),
}


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_every_sample_gets_its_own_targets(name, dumped):
    options, count = LOADERS[name]
    loader = DataLoader(toys.Samples(SAMPLES), **options)
    joined = CachedDataset(loader.dataset, dumped, collate_fn=loader.collate_fn)
    batches = toys.assert_joined_equals_live(joined.loader_like(loader), toys.live_linear)
    assert sum(len(images) for images, _ in batches) == count


def test_persistent_spawned_workers_over_two_epochs(dumped):
    """A spawned worker gets the dataset through a pickle, and opens the targets itself."""
    loader = toys.loader(
        SAMPLES,
        collate_fn=toys.stack_pairs,
        shuffle=True,
        num_workers=1,
        persistent_workers=True,
        multiprocessing_context="spawn",
    )
    joined = CachedDataset(loader.dataset, dumped, collate_fn=loader.collate_fn)
    copied = joined.loader_like(loader)
    for _ in range(2):
        toys.assert_joined_equals_live(copied, toys.live_linear)


def test_a_pickle_holds_nothing_decoded(joined):
    before = len(pickle.dumps(joined))
    toys.assert_joined_equals_live(toys.joined_loader(joined), toys.live_linear)
    assert len(pickle.dumps(joined)) == before


def test_a_dataset_with_its_own_batched_fetch(tmp_path):
    source = toys.loader(toys.BatchedFetch(SAMPLES))
    toys.dump(tmp_path / "c", source)
    joined = CachedDataset(source.dataset, tmp_path / "c")
    toys.assert_joined_equals_live(toys.joined_loader(joined, shuffle=True), toys.live_linear)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_distributed_sampler_over_the_joined_dataset(joined, rank):
    """What Lightning puts in the loader's place: padded with repeats to equal lengths."""
    loader = joined.loader_like(toys.loader(SAMPLES, batch_size=4, shuffle=True))
    sampler = DistributedSampler(loader.dataset, num_replicas=3, rank=rank, shuffle=True)
    again = DataLoader(loader.dataset, batch_size=4, sampler=sampler, collate_fn=loader.collate_fn)
    batches = toys.assert_joined_equals_live(again, toys.live_linear)
    assert sum(len(images) for images, _ in batches) == 8


def test_a_part_of_the_joined_dataset(joined):
    part = Subset(joined, [7, 2, 20])
    loader = DataLoader(part, batch_size=2, collate_fn=joined.collate_fn)
    toys.assert_joined_equals_live(loader, toys.live_linear)


def test_one_sample_alone(joined):
    found = joined[5]
    assert isinstance(found, JoinedBatch)
    assert found.batch[0] is SAMPLES[5][0]
    torch.testing.assert_close(
        found.targets.logits(), toys.make_teacher()(SAMPLES[5][0][None]).detach()
    )


@pytest.mark.parametrize("form", [str, lambda c: c, kdcache.open_cache, lambda c: c["train"]])
def test_a_cache_may_be_given_in_any_form(dumped, form, tmp_path):
    given = form(dumped.path) if form in (str, kdcache.open_cache) else form(dumped)
    joined = CachedDataset(toys.Samples(SAMPLES), given, local_copy=str(tmp_path))
    toys.assert_joined_equals_live(toys.joined_loader(joined), toys.live_linear)


def test_collation_that_was_forgotten_is_explained(joined):
    with pytest.raises(UsageError, match=r"collate_fn=joined.collate_fn"):
        next(iter(DataLoader(joined, batch_size=2)))


def test_no_such_split(dumped):
    with pytest.raises(CacheMissingError, match="Did you mean 'train'"):
        CachedDataset(toys.Samples(SAMPLES), dumped, split="trian")


def test_an_unfinished_split(tmp_path):
    toys.dump(tmp_path / "c", SAMPLES, part="0/2")
    with pytest.raises(CacheIncompleteError, match="first missing one holds samples 8 to 15"):
        CachedDataset(toys.Samples(SAMPLES), tmp_path / "c")


@pytest.mark.parametrize("index", [(3, 224), "name", 1.5])
def test_a_sampler_that_gives_no_numbers(dumped, index):
    class Any(toys.Samples):
        def __getitem__(self, index):
            return SAMPLES[0]

    joined = CachedDataset(Any(SAMPLES), dumped)
    with pytest.raises(AlignmentError, match=r"no sample number.*key: content"):
        joined.__getitems__([index])
