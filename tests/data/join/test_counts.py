"""What a step counts, before any model has run."""

from __future__ import annotations

import pytest
import torch

import kdcache
from kdcache.data.batch.section import parse_mapping
from kdcache.data.join.counts import batch_counts
from tests.data import toys
from tests.data.sequences import IGNORED, LENGTHS, CausalNet, loader, pad_right, sequences


def collate(samples):
    """Every third token has a label."""
    batch = pad_right(samples)
    batch["labels"][batch["input_ids"] % 3 != 0] = IGNORED
    return batch


LABELLED = [int((ids[1:] % 3 == 0).sum()) for ids in sequences()]


def test_of_the_joined_batches_of_a_step(cache):
    user = loader(sequences(), collate)
    toys.dump(cache, user, teacher=CausalNet(), batch={"causal": True})
    joined = kdcache.CachedDataset(user.dataset, cache, collate_fn=collate, batch={"causal": True})
    batches = list(toys.joined_loader(joined))
    assert [len(b.targets.num_positions) for b in batches] == [3, 3, 2]
    counts = kdcache.step_counts(batches, batch={"causal": True})
    assert (counts.positions, counts.labelled, counts.batches) == (
        sum(n - 1 for n in LENGTHS),
        sum(LABELLED),
        3,
    )
    first = kdcache.step_counts(batches[:1], batch={"causal": True})
    assert (first.positions, first.labelled) == (sum(LENGTHS[:3]) - 3, sum(LABELLED[:3]))


def test_of_batches_without_labels(cache):
    samples = [(x,) for x in toys.vectors(5)]
    toys.dump(cache, samples)
    joined = kdcache.CachedDataset(toys.Samples(samples), cache)
    counts = kdcache.step_counts(list(toys.joined_loader(joined)))
    assert (counts.positions, counts.labelled, counts.batches) == (5, None, 2)


X, Y = torch.zeros(2, 4), torch.tensor([[1, 2, -100, 3], [-100, 1, 1, 1]])
MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])


@pytest.mark.parametrize(
    ("mapping", "batch", "labelled"),
    [
        ({}, (X, Y), 6),
        ({"inputs": [0], "labels": 1, "mask": 2}, (X, Y, MASK), 3),
        ({"inputs": [0], "labels": 1, "causal": True}, (X, Y), 5),
        ({"inputs": [0], "labels": 1, "mask": "output:mask"}, (X, Y), None),
        ({"inputs": [0], "labels": 1, "mask": 2}, (X, Y, MASK[:, :2]), None),
        ({}, (X, Y.float()), None),
        ({}, (X,), None),
    ],
)
def test_of_the_users_own_batch(mapping, batch, labelled):
    assert batch_counts(parse_mapping(mapping, "student"), batch) == (None, labelled, None)
