"""Samples on their way to the teacher, with what identifies them, in batches within shards.

Whatever order or sampler the user's loader has, stage one walks the dataset by number: every
sample exactly once, and never two shards in one batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset, IterableDataset
from torch.utils.data._utils import pin_memory as pinning

from kdcache.columns import FINGERPRINT, KEY, Array
from kdcache.data.samples import sources
from kdcache.data.samples.fingerprint import FingerprintSource
from kdcache.data.samples.keys import field_key, is_stored
from kdcache.dump.processes.preemption import out_of_reach
from kdcache.store import Manifest


@dataclass(frozen=True, kw_only=True, eq=False)
class KeyedBatch:
    """One batch for the teacher.

    Attributes:
        samples: (B,) numbers in the dataset.
        identity: column name -> (B,) uint64: fingerprints, and keys where they are stored.
        batch: what the user's collate function made.
    """

    samples: tuple[int, ...]
    identity: dict[str, Array]
    batch: Any

    def pin_memory(self) -> KeyedBatch:
        """Called by a DataLoader that pins, which knows the user's batch only behind it."""
        pinned = pinning.pin_memory(self.batch)  # type: ignore[no-untyped-call]
        return replace(self, batch=pinned)


class KeyedDataset(Dataset[Any]):
    """The user's dataset, fingerprinted before collation.

    Args:
        dataset: map-style, or a stream whose samples are given to :meth:`batch`.
        collate_fn: the user's.
        source: what is fingerprinted.
        key: where keys come from.
        split: that is dumped.
    """

    def __init__(
        self,
        dataset: Any,
        collate_fn: Callable[[list[Any]], Any],
        source: FingerprintSource,
        key: str,
        split: str,
    ) -> None:
        self.dataset = dataset
        self.split = split
        self._collate = collate_fn
        self._source = source
        self._key = key

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: Sequence[int]) -> KeyedBatch:
        """Fetch, fingerprint and collate one batch (PyTorch's batched fetch)."""
        return self.batch(indices, sources.fetch(self.dataset, indices, self.split))

    def batch(self, numbers: Sequence[int], samples: list[Any]) -> KeyedBatch:
        """Fingerprint and collate samples that are here."""
        return KeyedBatch(
            samples=tuple(numbers),
            identity=self.identity(samples, numbers),
            batch=sources.collated(self._collate, samples, numbers, self.split),
        )

    def identity(self, samples: Sequence[Any], numbers: Sequence[int]) -> dict[str, Array]:
        """Column name -> (B,) uint64: fingerprints, and keys where they are stored."""
        found = {FINGERPRINT: self._source.of_each(samples, numbers, self.split)}
        if is_stored(self._key):
            keys = [field_key(self._key, sample) for sample in samples]
            found[KEY] = np.asarray(keys, np.uint64)
        return found

    def __getitem__(self, index: int) -> KeyedBatch:
        """A batch of one."""
        return self.__getitems__([index])


def shard_batches(manifest: Manifest, shards: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
    """(shard, sample numbers) of every batch, in order."""
    for shard in shards:
        start, stop = manifest.shard_range(shard)
        for first in range(start, stop, manifest.batch_size):
            yield shard, list(range(first, min(first + manifest.batch_size, stop)))


@dataclass(frozen=True, kw_only=True, eq=False)
class StreamItem:
    """What a stream's reader says of its next few samples, which lie in one block.

    Attributes:
        shard: the block.
        first: number of the first sample.
        keyed: a batch for the teacher; None in a block that is not wanted.
        ends_shard: whether the block is whole with them.
        fingerprints: of the samples, where the block is in the cache already.
        length: samples of the whole stream, with its last item.
    """

    shard: int
    first: int
    keyed: KeyedBatch | None = None
    ends_shard: bool = False
    fingerprints: Array | None = None
    length: int | None = None

    def pin_memory(self) -> StreamItem:
        """See :meth:`KeyedBatch.pin_memory`."""
        return replace(self, keyed=None if self.keyed is None else self.keyed.pin_memory())


class KeyedStream(IterableDataset[StreamItem]):
    """A user's stream, cut into blocks of the size of a shard, and those into batches.

    Args:
        keyed: the stream with its collate function, fingerprints and keys.
        samples_per_shard: of a block.
        batch_size: of a batch.
        part: (number, count): the blocks with number % count are wanted.
        done: blocks that are in the cache already.
    """

    def __init__(
        self,
        keyed: KeyedDataset,
        *,
        samples_per_shard: int,
        batch_size: int,
        part: tuple[int, int],
        done: frozenset[int],
    ) -> None:
        self._keyed = keyed
        self._samples_per_shard = samples_per_shard
        self._batch_size = batch_size
        self._part = part
        self._done = done

    def __iter__(self) -> Iterator[StreamItem]:
        """Batch after batch; one is held back, so that the last is known to be the last."""
        samples = sources.in_turn(self._keyed.dataset, self._keyed.split)
        first, part = 0, list(itertools.islice(samples, self._room(0)))
        while part:
            stop = first + len(part)
            upcoming = list(itertools.islice(samples, self._room(stop)))
            item = self._item(first, part)
            ends_shard = stop % self._samples_per_shard == 0 or not upcoming
            yield replace(item, ends_shard=ends_shard, length=None if upcoming else stop)
            first, part = stop, upcoming

    def _room(self, first: int) -> int:
        """Samples of a batch that begins at ``first``: it does not leave its block."""
        return min(self._batch_size, self._samples_per_shard - first % self._samples_per_shard)

    def _item(self, first: int, samples: list[Any]) -> StreamItem:
        shard = first // self._samples_per_shard
        number, count = self._part
        numbers = range(first, first + len(samples))
        if shard in self._done:
            found = self._keyed.identity(samples, numbers)[FINGERPRINT]
            return StreamItem(shard=shard, first=first, fingerprints=found)
        if shard % count != number:
            return StreamItem(shard=shard, first=first)
        keyed = self._keyed.batch(numbers, samples)
        return StreamItem(shard=shard, first=first, keyed=keyed)


def _worker_options(loader: DataLoader[Any]) -> dict[str, Any]:
    """Of the user's loader; its workers live on where SIGTERM asks for the end of the dump."""
    options = sources.worker_options(loader)
    return {**options, "worker_init_fn": out_of_reach(loader.worker_init_fn)}


def stream_loader(loader: DataLoader[Any], dataset: KeyedStream) -> DataLoader[Any]:
    """A loader over a stream: at most one worker, since two would each read half of it."""
    options = _worker_options(loader)
    return DataLoader(
        dataset,
        batch_size=None,
        collate_fn=_already_collated,
        **{**options, "num_workers": min(1, loader.num_workers)},
    )


def _already_collated(batch: Any) -> Any:
    return batch


def keyed_loader(
    loader: DataLoader[Any], dataset: KeyedDataset, batches: Sequence[list[int]]
) -> DataLoader[Any]:
    """A loader over exactly these batches, with the workers of the user's loader."""
    options = _worker_options(loader)
    return DataLoader(dataset, batch_sampler=batches, collate_fn=_already_collated, **options)
