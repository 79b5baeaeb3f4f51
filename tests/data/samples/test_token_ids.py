"""``tokens:<path>``: equal token ids have one fingerprint, whatever holds them."""

from __future__ import annotations

import array

import numpy as np
import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache import CachedDataset
from kdcache.config import fingerprint_function
from kdcache.data.samples.fingerprint import FingerprintSource, fingerprint, token_ids
from kdcache.errors import AlignmentError, DataError
from tests.data import toys

SOURCE = FingerprintSource.of_tokens("tokens:ids")
IDS = st.lists(st.integers(0, 250), max_size=12)
# All of them hold 0 to 250.
INTEGERS = ["uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
CONTAINERS = [
    list,
    tuple,
    lambda ids: [np.int32(n) for n in ids],
    lambda ids: [torch.tensor(n) for n in ids],
    *[lambda ids, t=t: np.asarray(ids, t) for t in [*INTEGERS, ">i4"]],
    *[lambda ids, t=t: torch.tensor(ids, dtype=getattr(torch, t)) for t in INTEGERS],
    lambda ids: np.repeat(np.asarray(ids, np.int32), 2)[::2],
]


@settings(deadline=None)
@given(ids=IDS, one=st.sampled_from(CONTAINERS), other=st.sampled_from(CONTAINERS))
def test_containers_do_not_count(ids, one, other):
    assert SOURCE({"ids": one(ids)}) == SOURCE({"ids": other(ids), "text": "another leaf"})


@settings(deadline=None)
@given(first=IDS, second=IDS, one=st.sampled_from(CONTAINERS), other=st.sampled_from(CONTAINERS))
def test_ids_and_their_order_and_number_do(first, second, one, other):
    same = SOURCE({"ids": one(first)}) == SOURCE({"ids": other(second)})
    assert same == (first == second)


def test_golden():
    """It stands in caches: int64, little-endian, as FORMAT.md says."""
    content = b"Aint64(2,)" + (7).to_bytes(8, "little") + (-1).to_bytes(8, "little", signed=True)
    assert SOURCE({"ids": [7, -1]}) == xxhash.xxh3_64_intdigest(content) == 1923608527368605968


def test_paths():
    nested = FingerprintSource.of_tokens("tokens:0.ids")
    assert nested(({"ids": [3]}, "label")) == SOURCE({"ids": [3]})
    assert FingerprintSource.of_tokens("tokens:")(torch.tensor([3])) == SOURCE({"ids": [3]})
    assert nested.to_json() == {
        "algorithm": "xxh3_64",
        "source": "tokens:0.ids",
        "paths": ["0.ids"],
    }
    assert fingerprint_function("tokens:0.ids") is None  # no class path, for all its dots


@pytest.mark.parametrize(
    "value",
    [
        [1.0],
        [True],
        ["1"],
        [1 << 63],
        [[1]],
        [[1], [1, 2]],
        [None],
        5,
        "12",
        b"12",
        None,
        {"a": 1},
        np.zeros(2),
        np.zeros((1, 2), np.int64),
        np.asarray([1 << 63], np.uint64),
        torch.zeros(1, 2, dtype=torch.int64),
        torch.tensor(1),
        torch.ones(2),
        torch.ones(2, dtype=torch.bfloat16),
        array.array("d", [1.0]),
    ],
    ids=repr,
)
def test_what_is_no_token_ids(value):
    with pytest.raises(DataError, match="is no token ids: a flat list"):
        token_ids(value)


SENTENCES = [[5, 1, 4], [2, 2], [9], [1, 4, 5]]
BATCH = {"inputs": ["ids"], "mask": "real", "causal": True}


def collate(samples):
    length = max(len(sample["ids"]) for sample in samples)
    made = torch.zeros(2, len(samples), length, dtype=torch.int64)
    for row, sample in enumerate(samples):
        ids = torch.as_tensor(sample["ids"])
        made[0, row, : len(ids)], made[1, row, : len(ids)] = ids, 1
    return {"ids": made[0], "real": made[1]}


def samples_of(make, sentences=SENTENCES):
    return toys.Samples([{"ids": make(ids)} for ids in sentences])


def test_a_dump_is_joined_whatever_the_students_dataset_holds(cache):
    dumped = toys.loader(samples_of(lambda ids: ids), collate_fn=collate)
    teacher = torch.nn.Embedding(10, 5)
    toys.dump(cache, dumped, teacher, batch=BATCH, key="content", fingerprint="tokens:ids")
    options = {"batch": BATCH, "collate_fn": collate}
    for make in (torch.tensor, lambda ids: np.asarray(ids, np.int32)):
        joined = CachedDataset(samples_of(make, SENTENCES[::-1]), cache, **options)
        (batch,) = toys.joined_loader(joined, batch_size=4)
        real = batch.batch["real"].bool()
        real[:, :-1] &= real[:, 1:].clone()
        real[:, -1] = False
        wanted = teacher(batch.batch["ids"])[real]
        torch.testing.assert_close(batch.targets.logits(), wanted.detach())
    joined = CachedDataset(samples_of(torch.tensor, [[5, 1, 3]]), cache, **options)
    with pytest.raises(AlignmentError, match="sample 0 is not in split"):
        next(iter(toys.joined_loader(joined)))


def test_a_path_that_leads_to_no_ids_is_said_before_the_dump(cache):
    loader = toys.loader(samples_of(lambda ids: ids), collate_fn=collate)
    for path, said in (("tokens:is", "leads nowhere"), ("tokens:", "a dict is no token ids")):
        with pytest.raises(DataError, match=said):
            toys.dump(cache, loader, torch.nn.Embedding(10, 5), batch=BATCH, fingerprint=path)
    assert fingerprint(token_ids([1])) == fingerprint(np.asarray([1]))
