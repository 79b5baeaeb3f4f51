"""Sets without targets: the same batches, and errors that name the set and the sample."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, default_collate

from kdcache.data.samples.named_samples import with_named_samples
from kdcache.errors import SampleError
from tests.data import toys

N, WRONG = 22, 13
SAMPLES = toys.labelled(N)

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")


class Photos(toys.Samples):
    wrong = None
    kind = "photos"

    def __getitem__(self, index):
        if index == self.wrong:
            raise OSError("truncated")
        return super().__getitem__(index)


class Batched(Photos):
    def __getitems__(self, indices):
        return [self[index] for index in indices]


class Stream(IterableDataset):
    def __init__(self, samples):
        self.photos = Photos(samples)

    def __iter__(self):
        return (self.photos[n] for n in range(N))


def refused(samples):
    raise KeyError("pixel_values")


@pytest.fixture(params=[Photos, Batched, Stream])
def dataset(request):
    return request.param(SAMPLES)


def broken(dataset):
    vars(getattr(dataset, "photos", dataset))["wrong"] = WRONG
    return dataset


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_the_users(dataset, workers):
    loader = toys.loader(dataset, num_workers=workers)
    for found, wanted in zip(with_named_samples(loader, "v"), loader, strict=True):
        assert torch.equal(found[0], wanted[0])
        assert torch.equal(found[1], wanted[1])


def test_so_is_a_random_order():
    def batches(wrap):
        sampler = RandomSampler(SAMPLES, generator=torch.Generator().manual_seed(3))
        return list(wrap(DataLoader(Photos(SAMPLES), batch_size=5, sampler=sampler)))

    found, wanted = batches(lambda loader: with_named_samples(loader, "v")), batches(iter)
    assert all(torch.equal(f[1], w[1]) for f, w in zip(found, wanted, strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_sample_that_cannot_be_read(dataset, workers):
    loader = with_named_samples(toys.loader(broken(dataset), num_workers=workers), "v")
    with pytest.raises(SampleError, match=rf"sample {WRONG} of split 'v' cannot be read"):
        list(loader)


def test_samples_that_make_no_batch(dataset):
    loader = with_named_samples(toys.loader(dataset, collate_fn=refused), "v")
    with pytest.raises(SampleError, match=r"samples 0 to 3 of split 'v' cannot be collated"):
        list(loader)


def test_what_the_dataset_has_is_there():
    named = with_named_samples(toys.loader(Photos(SAMPLES)), "v").dataset
    assert (len(named), named.kind) == (N, "photos")
    with pytest.raises(AttributeError):
        _ = named.no_such_thing


def divide(worker):
    torch.utils.data.get_worker_info().dataset.wrong = None


class Own(DataLoader):
    pass


@pytest.mark.parametrize(
    "loader",
    [
        Own(Photos(SAMPLES)),
        DataLoader(Photos(SAMPLES), batch_size=None),
        DataLoader(Stream(SAMPLES), worker_init_fn=divide),
        [default_collate(SAMPLES)],
    ],
)
def test_what_might_then_be_another_loader_is_left_alone(loader):
    assert with_named_samples(loader, "v") is loader
