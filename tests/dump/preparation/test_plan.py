"""What is decided before the first shard: its size, what is fingerprinted, what is refused."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import kdcache
from kdcache.codecs import DenseCodec
from kdcache.columns import Column
from kdcache.data.batch.mapping import BatchMapping
from kdcache.dump.preparation.plan import MAX_SHARD_BYTES, choose_samples_per_shard
from kdcache.dump.preparation.split_data import choose_source
from kdcache.dump.shards.keyed import shard_batches
from kdcache.errors import DataError, UsageError
from kdcache.store import Manifest
from tests.data import toys


@given(
    num_samples=st.integers(1, 10**8),
    batch_size=st.integers(1, 4096),
    sample_bytes=st.floats(9, 1e9),
)
def test_samples_per_shard(num_samples, batch_size, sample_bytes):
    size = choose_samples_per_shard(num_samples, batch_size, sample_bytes)
    assert 1 <= size <= num_samples
    assert size == num_samples or size % batch_size == 0
    assert size * sample_bytes <= MAX_SHARD_BYTES or size <= batch_size
    if size > batch_size:  # a shard is not larger than it must be
        num_shards = math.ceil(num_samples / size)
        smaller = size - batch_size
        assert num_shards > 100 or smaller * sample_bytes < 1 << 20


@pytest.mark.parametrize(
    ("num_samples", "batch_size", "sample_bytes", "expected"),
    [
        (60_000, 256, 44, 7424),  # MNIST: nine shards
        (1_281_167, 256, 2012, 5120),  # ImageNet, 1,000 classes in float16: 10 MB
        (10_000, 8, 2048 * 4 * 1000, 8),  # tokens: one batch is 62 MB
        (10, 64, 44, 10),
    ],
)
def test_samples_per_shard_of_known_sizes(num_samples, batch_size, sample_bytes, expected):
    assert choose_samples_per_shard(num_samples, batch_size, sample_bytes) == expected


@given(st.integers(1, 200), st.integers(1, 50), st.integers(1, 50))
def test_batches_never_cross_shards(num_samples, samples_per_shard, batch_size):
    manifest = Manifest(
        split="train",
        num_samples=num_samples,
        samples_per_shard=samples_per_shard,
        batch_size=batch_size,
        num_classes=1,
        codec={},
        columns=(Column(name="num_positions", per="sample", dtype="int32"),),
    )
    batches = list(shard_batches(manifest, range(manifest.num_shards)))
    assert [n for _, batch in batches for n in batch] == list(range(num_samples))
    for shard, batch in batches:
        assert len(batch) <= batch_size
        assert {n // samples_per_shard for n in batch} == {shard}
    # A replica that owns some of the shards forms the same batches.
    some = list(shard_batches(manifest, range(0, manifest.num_shards, 2)))
    assert some == [(shard, batch) for shard, batch in batches if shard % 2 == 0]


IMAGE, TEXT = torch.zeros(3, 4, 4), "a cat"
STACK = torch.zeros(2, 3, 4, 4)

# name -> one sample, a batch of two, mapping, what is fingerprinted of the sample
SOURCES = {
    "(x, y)": ((IMAGE, 1), [STACK, torch.zeros(2)], BatchMapping(), [IMAGE]),
    "array": ((np.zeros((3, 4, 4)), 1), [STACK, torch.zeros(2)], BatchMapping(), "first"),
    "numbers": (([1, 2, 3], 1), [torch.zeros(2, 3), torch.zeros(2)], BatchMapping(), "first"),
    "a bare tensor": (IMAGE, STACK, BatchMapping(), IMAGE),
    "by name": (
        {"image": IMAGE, "y": 1},
        {"image": STACK, "y": torch.zeros(2)},
        BatchMapping(inputs=["image"]),
        [IMAGE],
    ),
    "nested": (
        ({"a": [IMAGE, 3]}, 1),
        [{"a": [STACK, torch.zeros(2)]}, torch.zeros(2)],
        BatchMapping(inputs=["0"]),
        [{"a": [IMAGE, 3]}],
    ),
    "texts in a batch": (
        {"text": TEXT, "y": 1},
        {"text": [TEXT, TEXT], "y": torch.zeros(2)},
        BatchMapping(inputs=["text"]),
        [TEXT],
    ),
    "all": ((IMAGE, IMAGE), [STACK, STACK], BatchMapping(inputs="all"), (IMAGE, IMAGE)),
    # The collate function makes a batch of another structure: the path leads elsewhere.
    "collate swaps": ((1, IMAGE), (STACK, torch.zeros(2)), BatchMapping(), "sample"),
    "collate tokenises a text": (TEXT, (torch.zeros(2, 5), torch.ones(2, 5)), None, "sample"),
    "collate pads a list": ([3, 1, 4], (torch.zeros(2, 5), torch.ones(2, 5)), None, "sample"),
    "collate names": ((IMAGE, 1), {"pixel_values": STACK}, BatchMapping(), "sample"),
    "collate keeps one of two": (
        {"image": {"a": IMAGE, "b": 1}},
        {"image": {"a": STACK}},
        BatchMapping(inputs=["image"]),
        "sample",
    ),
    "collate reads a file": (("cat.jpg", 1), [STACK, torch.zeros(2)], BatchMapping(), "sample"),
}


@pytest.mark.parametrize("name", SOURCES)
def test_what_is_fingerprinted(name):
    sample, batch, mapping, expected = SOURCES[name]
    mapping = (mapping or BatchMapping()).resolve(batch)
    content = choose_source("inputs", mapping, sample, batch).content(sample)
    if isinstance(expected, str) and expected == "sample":
        assert content is sample
    elif isinstance(expected, str):
        assert content[0] is sample[0]
        assert len(content) == 1
    else:
        assert repr(content) == repr(expected)


def test_a_label_that_collation_moves_is_seen_to_change(cache):
    """(y, x) in samples, (x, y) in batches: the fingerprint is not of the label alone."""

    def swap(samples):
        return torch.stack([x for _, x in samples]), torch.tensor([y for y, _ in samples])

    pairs = [(y, x) for x, y in toys.labelled(12)]
    toys.dump(cache, toys.loader(pairs, collate_fn=swap))
    edited = [(y, x + 1) for y, x in pairs]
    joined = kdcache.CachedDataset(toys.Samples(edited), cache, collate_fn=swap)
    with pytest.raises(kdcache.KdcacheError, match=r"sample 0 .*is not what the teacher saw"):
        joined.__getitems__([0])


class TestRefused:
    def refused(self, cache, says, error=UsageError, samples=None, **options):
        with pytest.raises(error, match=says):
            toys.dump(cache, toys.labelled(12) if samples is None else samples, **options)
        assert not cache.exists()

    @pytest.mark.parametrize("name", ["fingerprint", "num_positions", "key"])
    def test_reserved_column_names(self, cache, name):
        class Greedy(DenseCodec):
            def columns(self, num_classes):
                reserved = Column(name=name, per="position", dtype="float32")
                return (*super().columns(num_classes), reserved)

        self.refused(cache, f"reserved column names.*{name}", codec=Greedy(dtype="float32"))

    def test_an_empty_split(self, cache):
        empty = DataLoader(toys.Samples([]), sampler=[])
        self.refused(cache, "split 'train' is empty", DataError, samples=empty)

    def test_other_classes_than_are_named(self, cache):
        self.refused(cache, "has 5 classes, the data names 2", DataError, class_names=["a", "b"])

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"key": "number"}, "Known: content, field:, index"),
            ({"fingerprint": "pixels"}, "Known: field:<path>, inputs, sample, tokens:<path>"),
            ({"samples_per_shard": 0}, "at least 1"),
            ({"devices": 0}, "at least 1"),
            ({"devices": 2, "part": "0/2"}, "Use one of the two"),
            ({"part": "2/2"}, "like 3/16"),
            ({"precision": "8-true"}, "precision '8-true' cannot be used"),
            ({"accelerator": "abacus"}, "'abacus'"),
            ({"accelerator": None}, "accelerator is a text, such as 'auto', not None"),
            ({"precision": 8}, "precision '8' cannot be used"),
            ({"precision": 16.0}, "precision is one of Lightning's, such as '32-true' or"),
            ({"key": None}, "key is a text, such as 'index', not None"),
            ({"fingerprint": 3}, "fingerprint, if no function, is a text, such as 'inputs', not 3"),
            ({"grace_s": "30"}, "grace_s is a number, not '30'"),
            ({"class_names": "abcde"}, r"class_names is a list of texts, .* not 'abcde'"),
            ({"class_names": [0, 1, 2, 3, 4]}, r"one of them is 0\. Make them texts"),
            ({"extend": "no"}, "extend is True or False, not 'no'"),
            ({"pilot": "no"}, "pilot is True or False, not 'no'"),
            ({"progress": 0}, "progress is True or False, not 0"),
            ({"verbose": None}, "verbose is True or False, not None"),
            (
                {"samples_per_shard": 20.0},
                "samples_per_shard is a whole number, at least 1, not 20",
            ),
            ({"samples_per_shard": True}, "samples_per_shard is a whole number"),
            ({"devices": "2"}, "devices is a whole number, at least 1, not '2'"),
            ({"part": 3}, "part is a text, such as '3/16', not 3"),
            ({"ranks_per_replica": 1.0}, "ranks_per_replica is a whole number"),
        ],
    )
    def test_settings(self, cache, options, says):
        self.refused(cache, says, **options)

    @pytest.mark.parametrize("split", [3, "tables", "a/b"])
    def test_a_name_of_a_split(self, cache, split):
        """Also of a later one: nothing is dumped of those before it."""
        samples = toys.labelled(9)
        loaders = {"train": toys.loader(samples), split: toys.loader(samples)}
        with pytest.raises(UsageError, match=r"a split's name is a text|a split cannot be called"):
            kdcache.dump_teacher(toys.make_teacher(), loaders, cache, progress=False)
        assert not cache.exists()

    @pytest.mark.parametrize("data", [3, {"train": [1, 2]}, {}])
    def test_data(self, cache, data):
        with pytest.raises(UsageError):
            kdcache.dump_teacher(toys.make_teacher(), data, cache, progress=False)
        assert not cache.exists()


def test_numbers_of_numpy_are_as_good_as_pythons(cache):
    made = toys.dump(
        cache,
        toys.labelled(9),
        samples_per_shard=np.int64(4),
        grace_s=np.float32(1),
        pilot=np.bool_(False),
        devices=np.int64(1),
    )
    assert made["train"].manifest.samples_per_shard == 4
    assert made["train"].manifest.pilot == {}
    assert kdcache.open_cache(cache)["train"].is_complete


@pytest.mark.parametrize(
    ("given", "meant"),
    [(32, "32-true"), ("32", "32-true"), (64, "64-true"), ("bf16", "bf16-mixed")],
)
def test_a_short_precision_is_the_full_one(cache, given, meant):
    made = toys.dump(cache, toys.labelled(9), precision=given)
    assert made["train"].manifest.identity["precision"] == meant
    assert toys.dump(cache, toys.labelled(9), precision=meant)["train"].is_complete


def test_a_precision_of_64_bits_is_computed_in_64_bits(cache):
    """Lightning's short name did not convert the teacher."""
    seen = []
    teacher = toys.make_teacher()
    teacher.register_forward_hook(lambda *call: seen.append(call[2].dtype))
    toys.dump(cache, toys.labelled(9), teacher, precision=64)
    assert set(seen) == {torch.float64}


def test_a_data_object_is_dumped_split_by_split(cache):
    data = SimpleNamespace(
        train_data_loader=toys.loader(toys.labelled(9)),
        val_data_loaders={"clean": toys.loader(toys.labelled(5, seed=1))},
    )
    made = kdcache.dump_teacher(toys.make_teacher(), data, cache, progress=False)
    assert made.splits == ("clean", "train")
    assert made["clean"].manifest.num_samples == 5
