"""A Hugging Face dataset, joined by content after it was filtered, shuffled and divided."""

from __future__ import annotations

import pytest
import torch

import kdcache
from kdcache import CachedDataset, CachedStream
from kdcache.errors import AlignmentError
from tests.data import toys

datasets = pytest.importorskip("datasets")

N = 30
PAIRS = toys.labelled(N)


@pytest.fixture(scope="module")
def whole():
    columns = {"x": [x.tolist() for x, _ in PAIRS], "labels": [y for _, y in PAIRS]}
    return datasets.Dataset.from_dict(columns).with_format("torch")


@pytest.fixture
def dumped(cache, whole):
    return toys.dump(cache, whole, batch=MAPPING, key="content")


MAPPING = {"inputs": ["x"], "labels": "labels"}


def live(batch):
    return toys.make_teacher()(batch["x"]), torch.ones(len(batch["x"]), dtype=torch.int64)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data,
        lambda data: data.shuffle(seed=3),
        lambda data: data.filter(lambda row: row["labels"] != 2),
        lambda data: data.select([4, 1, 4]),
        lambda data: data.train_test_split(test_size=0.4, seed=1)["test"],
        lambda data: data.add_column("note", ["-"] * N),
    ],
    ids=["same", "shuffled", "filtered", "selected", "divided", "with a column"],
)
def test_finds_its_targets(dumped, whole, change):
    joined = CachedDataset(change(whole), dumped, batch=MAPPING)
    toys.assert_joined_equals_live(toys.joined_loader(joined), live)


def test_as_a_stream(dumped, whole):
    stream = whole.to_iterable_dataset(num_shards=3).shuffle(seed=1, buffer_size=8)
    joined = CachedStream(stream, dumped, batch=MAPPING)
    loader = torch.utils.data.DataLoader(joined, 4, collate_fn=joined.collate_fn)
    batches = toys.assert_joined_equals_live(loader, live)
    assert sum(len(batch["x"]) for batch in batches) == N


def test_what_was_mapped_to_something_else_is_refused(dumped, whole):
    changed = whole.map(lambda row: {"x": row["x"] * 2})
    joined = CachedDataset(changed, dumped, batch=MAPPING)
    with pytest.raises(AlignmentError, match="sample 0 is not in split 'train'"):
        joined.__getitems__([0])


def test_a_stream_is_dumped(cache, whole):
    stream = whole.to_iterable_dataset(num_shards=3)
    loader = torch.utils.data.DataLoader(stream, 4)
    made = toys.dump(cache, loader, batch=MAPPING, key="content")
    assert made["train"].manifest.num_samples == N
    joined = kdcache.CachedDataset(whole, made, batch=MAPPING)
    toys.assert_joined_equals_live(toys.joined_loader(joined), live)
