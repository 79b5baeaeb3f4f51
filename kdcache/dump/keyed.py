"""Samples on their way to the teacher, with what identifies them, in batches within shards.

Whatever order or sampler the user's loader has, stage one walks the dataset by number: every
sample exactly once, and never two shards in one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from kdcache.columns import FINGERPRINT, KEY, Array
from kdcache.data import sources
from kdcache.data.fingerprint import FingerprintSource
from kdcache.data.keys import field_key, is_stored
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


class KeyedDataset(Dataset[Any]):
    """The user's dataset, fingerprinted before collation.

    Args:
        dataset: map-style.
        collate_fn: the user's.
        source: what is fingerprinted.
        key: where keys come from.
    """

    def __init__(
        self,
        dataset: Any,
        collate_fn: Callable[[list[Any]], Any],
        source: FingerprintSource,
        key: str,
    ) -> None:
        self.dataset = dataset
        self._collate = collate_fn
        self._source = source
        self._key = key

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: Sequence[int]) -> KeyedBatch:
        """Fetch, fingerprint and collate one batch (PyTorch's batched fetch)."""
        samples = sources.fetch(self.dataset, indices)
        return KeyedBatch(
            samples=tuple(indices),
            identity=self.identity(samples),
            batch=self._collate(samples),
        )

    def identity(self, samples: Sequence[Any]) -> dict[str, Array]:
        """Column name -> (B,) uint64: fingerprints, and keys where they are stored."""
        found = {FINGERPRINT: np.asarray([self._source(s) for s in samples], np.uint64)}
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


def _already_collated(batch: Any) -> Any:
    return batch


def keyed_loader(
    loader: DataLoader[Any], dataset: KeyedDataset, batches: Sequence[list[int]]
) -> DataLoader[Any]:
    """A loader over exactly these batches, with the workers of the user's loader."""
    options = sources.worker_options(loader)
    return DataLoader(dataset, batch_sampler=batches, collate_fn=_already_collated, **options)
