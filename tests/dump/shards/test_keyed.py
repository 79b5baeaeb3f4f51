"""Batches on their way to the teacher."""

from __future__ import annotations

import numpy as np
import torch

from kdcache.dump.shards.keyed import KeyedBatch, StreamItem


def test_a_loader_that_pins_pins_the_users_batch(monkeypatch):
    # PyTorch pins what it knows, and of anything else what says how.
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self, *_: self + 1)
    batch = (torch.zeros(2), {"labels": torch.zeros(2), "name": "a"})
    keyed = KeyedBatch(samples=(0, 1), identity={"key": np.zeros(2, np.uint64)}, batch=batch)
    pinned = torch.utils.data._utils.pin_memory.pin_memory(keyed)
    assert isinstance(pinned, KeyedBatch)
    assert pinned.samples == (0, 1)
    assert pinned.batch[0].tolist() == pinned.batch[1]["labels"].tolist() == [1, 1]
    assert batch[0].tolist() == [0, 0]

    item = torch.utils.data._utils.pin_memory.pin_memory(
        StreamItem(shard=3, first=6, keyed=keyed, length=8)
    )
    assert (item.shard, item.first, item.length) == (3, 6, 8)
    assert item.keyed.batch[0].tolist() == [1, 1]
    assert StreamItem(shard=3, first=6).pin_memory().keyed is None
