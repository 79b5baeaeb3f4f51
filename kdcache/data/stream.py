"""The join of a stream: samples that come one after another, in any order, found by their keys."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from kdcache.data import sources
from kdcache.data.join import Join, JoinedBatch, JoinedSamples
from kdcache.data.keys import INDEX
from kdcache.errors import UsageError


class CachedStream(Join, IterableDataset[tuple[int, Any]]):
    """A user's IterableDataset joined with the cached targets of its samples.

    The cache is keyed by content or by a field, so the stream may come in another order than at
    the dump, or in parts; it may not hold a sample that the teacher did not see. Each DataLoader
    worker reads its own copy of the user's stream, which divides itself among workers and ranks
    as it always did.

    For the arguments see :class:`kdcache.data.join.Join`.

    Raises:
        UsageError: the cache is keyed by number.
    """

    def _check_dataset(self) -> None:
        if self.view.manifest.key == INDEX:
            raise UsageError(
                f"{self.view.cache} joins targets by sample number, and the samples of a stream "
                "have none. Dump with key: content, or key: field:<path>."
            )

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        """(number within this stream, sample); joined in whole batches by ``collate_fn``."""
        return enumerate(sources.in_turn(self.dataset, self.view.manifest.split))

    def collate_fn(self, numbered: list[tuple[int, Any]]) -> JoinedBatch:
        """Joined batches for a DataLoader; see :meth:`collate`."""
        numbers, samples = zip(*numbered, strict=True)
        return self.collate(self.join(numbers, list(samples)))

    def probe(self, count: int, batch_size: int) -> Iterator[JoinedSamples]:
        """The first ``count`` samples, joined in batches."""
        numbered = itertools.islice(iter(self), count)
        while part := list(itertools.islice(numbered, batch_size)):
            yield self.join([number for number, _ in part], [sample for _, sample in part])

    def loader_like(self, loader: DataLoader[Any]) -> DataLoader[Any]:
        """A DataLoader with all of a loader's settings, giving joined batches."""
        sources.check_batched(loader)
        _ = self.copy  # opened before workers are forked, which then share it
        return sources.with_dataset(loader, self, self.collate_fn)
