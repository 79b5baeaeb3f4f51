"""The join of a stream: samples that come one after another, in any order, found by their keys."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from kdcache.data.join.dataset import Join, JoinedBatch, JoinedSamples
from kdcache.data.samples import sources
from kdcache.data.samples.keys import INDEX
from kdcache.errors import UsageError

log = logging.getLogger(__name__)

# A stream may hold a sample twice by itself.
_REPEATED = 0.1


class CachedStream(Join, IterableDataset[tuple[int, Any]]):
    """A user's IterableDataset joined with the cached targets of its samples.

    The cache is keyed by content or by a field, so the stream may come in another order than at
    the dump, or in parts; it may not hold a sample that the teacher did not see. Each DataLoader
    worker reads its own copy of the user's stream, which divides itself among workers and ranks
    as it always did.

    For the arguments see :class:`kdcache.data.join.dataset.Join`.

    Raises:
        UsageError: the cache is keyed by number.
    """

    def _check_dataset(self) -> None:
        # How often each sample came in an epoch, in memory that all workers share.
        seen = torch.zeros(self.view.manifest.num_samples, dtype=torch.uint8)
        self._seen: Tensor = seen.share_memory_()  # type: ignore[no-untyped-call]
        self._has_warned = False
        if self.view.manifest.key == INDEX:
            raise UsageError(
                f"{self.view.cache} joins targets by sample number, and the samples of a stream "
                "have none. Dump with key: content, or key: field:<path>."
            )

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        """(number within this stream, sample); joined in whole batches by ``collate_fn``."""
        worker = get_worker_info()
        if worker is not None and worker.id == 0:
            self._seen.zero_()  # an epoch begins
        yield from enumerate(sources.in_turn(self.dataset, self.view.manifest.split))
        if worker is not None and worker.id == 0:
            self._warn_of_repeats(worker.num_workers)

    def _warn_of_repeats(self, num_workers: int) -> None:
        """Say where workers read the same samples: a stream has to divide itself among them."""
        seen, repeated = (int((self._seen > least).sum()) for least in range(2))
        if num_workers > 1 and repeated > _REPEATED * seen and not self._has_warned:
            self._has_warned = True
            log.warning(
                "split %r: %s of %s samples of the stream came more than once in an epoch, from "
                "%d workers: each reads the whole of it. Let the dataset divide its samples by "
                "torch.utils.data.get_worker_info(), or use one worker",
                self.view.manifest.split,
                f"{repeated:,}",
                f"{seen:,}",
                num_workers,
            )

    def collate_fn(self, numbered: list[tuple[int, Any]]) -> JoinedBatch:
        """Joined batches for a DataLoader; see :meth:`collate`."""
        numbers, samples = zip(*numbered, strict=True)
        joined = self.join(numbers, list(samples))
        if get_worker_info() is not None:
            self._seen[torch.from_numpy(joined.rows)] += 1
        return self.collate(joined)

    def probe(self, count: int, batch_size: int) -> Iterator[JoinedSamples]:
        """The first ``count`` samples, joined in batches."""
        samples = sources.in_turn(self.dataset, self.view.manifest.split)
        numbered = itertools.islice(enumerate(samples), count)
        while part := list(itertools.islice(numbered, batch_size)):
            yield self.join([number for number, _ in part], [sample for _, sample in part])

    def loader_like(self, loader: DataLoader[Any]) -> DataLoader[Any]:
        """A DataLoader with all of a loader's settings, giving joined batches."""
        sources.check_batched(loader)
        _ = self.copy  # opened before workers are forked, which then share it
        return sources.with_dataset(loader, self, self.collate_fn)
