"""What the loop does, one batch after another, each within a shard: by number, or from a stream.

A numbered dataset is asked for the pending shards alone. A stream is read from its beginning by
every replica; the teacher only sees the blocks that are this replica's and not yet there, and
what is there is held against what the stream says now.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from kdcache.columns import FINGERPRINT, Array
from kdcache.data.samples import sources
from kdcache.dump.preparation.plan import SplitPlan
from kdcache.dump.processes.replica import Replica
from kdcache.dump.shards.keyed import (
    KeyedBatch,
    KeyedDataset,
    KeyedStream,
    StreamItem,
    keyed_loader,
    shard_batches,
    stream_loader,
)
from kdcache.errors import AlignmentError
from kdcache.store import View, ViewWriter


@dataclass(frozen=True, kw_only=True, eq=False)
class Work:
    """One batch for the teacher.

    Attributes:
        shard: that its samples belong to.
        keyed: the batch.
        ends_shard: whether the shard is whole with it.
    """

    shard: int
    keyed: KeyedBatch
    ends_shard: bool


def numbered_work(
    loader: sources.Loader, plan: SplitPlan, writer: ViewWriter, shards: Sequence[int]
) -> Iterator[Work]:
    """The batches of some shards of a numbered dataset; its workers are started at once."""
    manifest = writer.manifest
    batches = list(shard_batches(manifest, shards))
    dataset = KeyedDataset(
        loader.dataset, loader.collate_fn, plan.source, manifest.key, manifest.split
    )
    fetched = iter(keyed_loader(loader, dataset, [samples for _, samples in batches]))

    def work() -> Iterator[Work]:
        for (shard, samples), keyed in zip(batches, fetched, strict=True):
            ends_shard = samples[-1] + 1 == manifest.shard_range(shard)[1]
            yield Work(shard=shard, keyed=keyed, ends_shard=ends_shard)

    return work()


def stream_work(
    loader: sources.Loader, plan: SplitPlan, writer: ViewWriter, replica: Replica
) -> Iterator[Work]:
    """The batches of a stream's blocks that are this replica's and not yet there.

    At the stream's end its length is written down, before the last batch is given out.

    Raises:
        AlignmentError: what was dumped before is not what the stream says now.
    """
    manifest = writer.manifest
    view = View(cache=writer.folder.parents[1], folder=writer.folder)
    there = {commit.shard: commit for commit in view.commits}
    dataset = KeyedStream(
        KeyedDataset(loader.dataset, loader.collate_fn, plan.source, manifest.key, manifest.split),
        samples_per_shard=manifest.samples_per_shard,
        batch_size=manifest.batch_size,
        part=(replica.number, replica.count),
        done=frozenset(there),
    )
    items: Iterator[StreamItem] = iter(stream_loader(loader, dataset))

    @functools.lru_cache(maxsize=1)
    def stored(shard: int) -> Array:
        return view.read_shard(there[shard])[FINGERPRINT]

    def work() -> Iterator[Work]:
        for item in items:
            if item.length is not None:
                writer.end(item.length)
            if item.keyed is not None:
                yield Work(shard=item.shard, keyed=item.keyed, ends_shard=item.ends_shard)
            elif item.fingerprints is not None:
                start = item.first - there[item.shard].start
                stop = None if item.ends_shard else start + len(item.fingerprints)
                expected = stored(item.shard)[start:stop]
                _check_same_samples(expected, item.fingerprints, item.first)

    return work()


def _check_same_samples(stored: Array, found: Array, first: int) -> None:
    """Raise AlignmentError unless samples from ``first`` have the fingerprints that they had."""
    shorter = min(len(stored), len(found))
    wrong = np.flatnonzero(stored[:shorter] != found[:shorter])
    if wrong.size or len(stored) != len(found):
        at = first + (int(wrong[0]) if wrong.size else shorter)
        raise AlignmentError(
            f"sample {at} of the stream is not what it was when it was dumped before. A stream can "
            "only be resumed if it gives the same samples in the same order; make it "
            "deterministic, or dump it in one go into a new cache."
        )
