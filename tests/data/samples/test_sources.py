"""Loaders from any kind of data object, and copies of loaders that keep all settings."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, IterableDataset, Subset

from kdcache.data.samples import sources
from kdcache.errors import AlignmentError, DataError, UsageError
from tests.data import toys

LOADER, OTHER = toys.loader([1, 2, 3]), toys.loader([4])


class Module(pl.LightningDataModule):
    """Without validation: Lightning's own hook only raises."""

    def __init__(self):
        super().__init__()
        self.ran = []

    def prepare_data(self):
        self.ran.append("prepare_data")

    def setup(self, stage):
        self.ran.append(f"setup {stage}")

    def train_dataloader(self):
        return LOADER


class Plain:
    """The predecessor's interface: loaders as attributes."""

    train_data_loader = LOADER

    def __init__(self, validation=None):
        self.val_data_loaders = validation


class Stream(IterableDataset):
    def __iter__(self):
        return iter([torch.zeros(2)])


def test_a_lightning_data_module():
    data = Module()
    sources.prepare(data)
    assert data.ran == ["prepare_data", "setup fit"]
    assert sources.loaders(data) == (LOADER, {})


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (None, {}),
        ([], {}),
        (OTHER, {"val": OTHER}),
        ([OTHER], {"val": OTHER}),
        ([OTHER, LOADER], {"val_0": OTHER, "val_1": LOADER}),
        ({"clean": OTHER, "noisy": LOADER}, {"clean": OTHER, "noisy": LOADER}),
    ],
)
def test_validation_loaders_by_name(given, named):
    data = Plain(given)
    sources.prepare(data)
    assert sources.loaders(data) == (LOADER, named)


@pytest.mark.parametrize("given", [3, "x", [3], {"train": OTHER}, {"a": None}])
def test_what_are_no_validation_loaders(given):
    with pytest.raises(UsageError, match="validation loaders"):
        sources.loaders(Plain(given))


def test_no_training_loader():
    with pytest.raises(UsageError, match="object has no training DataLoader"):
        sources.loaders(object())


class TestClassNames:
    class Named(toys.Samples):
        classes = ("cat", "dog")

    def test_of_the_data_before_its_dataset(self):
        data = Plain()
        data.class_names = ["a", 1]
        assert sources.class_names(data, self.Named([])) == ("a", "1")
        assert sources.class_names(Plain(), self.Named([])) == ("cat", "dog")

    def test_of_the_dataset_below_subsets(self):
        assert sources.class_names(None, Subset(Subset(self.Named([1]), [0]), [0])) == (
            "cat",
            "dog",
        )

    @pytest.mark.parametrize("found", [None, "names", [], 3])
    def test_none(self, found):
        data = Plain()
        data.classes = found
        assert sources.class_names(data, toys.Samples([])) == ()


class TestMapStyle:
    @pytest.mark.parametrize("dataset", [Stream(), object()])
    def test_a_stream_is_one(self, dataset):
        assert sources.is_stream(dataset)
        assert not sources.is_stream(toys.Samples([1]))

    def test_batches_made_by_the_dataset_are_refused(self):
        with pytest.raises(DataError, match="batch_size=None"):
            sources.check_batched(DataLoader(toys.Samples([1]), batch_size=None))


SETTINGS = {
    "batch_size": 3,
    "drop_last": True,
    "num_workers": 2,
    "timeout": 5,
    "persistent_workers": True,
    "prefetch_factor": 7,
    "multiprocessing_context": "spawn",
    "worker_init_fn": print,
    "in_order": False,
    "generator": torch.Generator(),
}


class TestCopies:
    def test_keep_every_setting(self):
        loader = toys.loader(range(9), shuffle=True, **SETTINGS)
        other = toys.Samples(range(9))
        copied = sources.with_dataset(loader, other, list)
        context = SETTINGS["multiprocessing_context"]
        for name, value in {
            **SETTINGS,
            "sampler": loader.sampler,
            "pin_memory": False,
        }.items():
            found = getattr(copied, name)
            if name == "multiprocessing_context":
                assert found.get_start_method() == context
            else:
                assert found == value, name
        assert copied.dataset is other
        assert copied.collate_fn is list

    def test_keep_a_batch_sampler(self):
        batches = [[0, 2], [1]]
        loader = DataLoader(toys.Samples(range(3)), batch_sampler=batches)
        copied = sources.with_dataset(loader, toys.Samples(range(3)), list)
        assert list(copied) == [[0, 2], [1]]


class TestFetch:
    def test_by_the_datasets_own_batched_fetch(self):
        assert sources.fetch(toys.BatchedFetch([5, 6, 7]), [2, 0]) == [7, 5]

    def test_that_loses_samples(self):
        class Loses(toys.Samples):
            def __getitems__(self, indices):
                return self.samples[:1]

        with pytest.raises(AlignmentError, match=r"Loses.__getitems__ returned 1 .* asked for 2"):
            sources.fetch(Loses([5, 6]), [0, 1])
