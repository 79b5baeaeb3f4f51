"""The thread that turns encoded batches into shards, so that the teacher never waits for a disk.

A bounded queue lies between the loop and the thread; the thread's first error stops the loop, and
whole shards that are in the queue are written also when the loop itself fails.
"""

from __future__ import annotations

import dataclasses
import queue
import threading
from collections.abc import Callable, Mapping

import numpy as np
import torch

from kdcache.data.samples.label_digests import (
    LabelDigest,
    digest_labels,
    kept_samples,
    labels_by_sample,
    to_record,
)
from kdcache.dump.measurements.statistics import as_mapping
from kdcache.dump.shards.encoding import EncodedBatch, check_valid
from kdcache.store import ViewWriter

_QUEUED_BATCHES = 8


class ShardWriter:
    """Writes whole shards in a thread of its own; a context manager.

    Args:
        writer: of the view.
        on_shard: called in the thread with the statistics of every shard that was committed.
    """

    def __init__(
        self, writer: ViewWriter, on_shard: Callable[[int, Mapping[str, float]], None]
    ) -> None:
        self._writer = writer
        self._on_shard = on_shard
        # Bounded: batches hold their columns on the device, and a slow disk must not fill it.
        self._queue: queue.Queue[EncodedBatch | None] = queue.Queue(_QUEUED_BATCHES)
        self._error: BaseException | None = None
        self._parts: list[EncodedBatch] = []
        self._labels: dict[int, LabelDigest] = {}
        self._kept: tuple[int, frozenset[int]] = -1, frozenset()
        self._thread = threading.Thread(target=self._run, name="kdcache-writer", daemon=True)

    def __enter__(self) -> ShardWriter:
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self._queue.put(None)
        self._thread.join()
        # The loop's own error, where there is one, is the cause and not hidden by the thread's.
        if kind is None:
            self._raise()

    def put(self, batch: EncodedBatch) -> None:
        """Hand over a batch; waits while the queue is full, raises the thread's first error."""
        self._raise()
        self._queue.put(batch)

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (batch := self._queue.get()) is not None:
            if self._error is not None:
                continue  # keep draining, so that the loop is never stuck on a full queue
            try:
                self._add(batch)
            except BaseException as error:  # re-raised in the loop's thread
                self._error = error

    def _add(self, batch: EncodedBatch) -> None:
        # In this thread, which may wait for the device; the loop never does.
        check_valid(batch.invalid, batch.num_positions, batch.samples)
        self._parts.append(_from_device(batch))
        self._labels |= self._digests(batch)
        if not batch.ends_shard:
            return
        parts, self._parts = self._parts, []
        columns = {
            name: np.concatenate([part.tensors[name].numpy() for part in parts])
            for name in batch.tensors
        } | {name: np.concatenate([part.arrays[name] for part in parts]) for name in batch.arrays}
        statistics = as_mapping(torch.stack([part.statistics for part in parts]).sum(dim=0))
        start, stop = self._writer.manifest.shard_range(batch.shard)
        labels, self._labels = to_record(self._labels, start, stop), {}
        self._writer.write_shard(batch.shard, columns, statistics, labels)
        self._on_shard(batch.shard, statistics)

    def _digests(self, batch: EncodedBatch) -> dict[int, LabelDigest]:
        """Of the labels of those samples of a batch that digests are kept of."""
        if batch.labels is None:
            return {}
        if self._kept[0] != batch.shard:
            kept = frozenset(kept_samples(self._writer.manifest, batch.shard))
            self._kept = batch.shard, kept
        kept = self._kept[1].intersection(batch.samples)
        if not kept:
            return {}
        found = labels_by_sample(batch.labels, batch.num_positions)
        return {
            sample: digest_labels(own)
            for sample, own in zip(batch.samples, found, strict=True)
            if sample in kept
        }


def _from_device(batch: EncodedBatch) -> EncodedBatch:
    """The batch in main memory, so that a shard's beginning does not wait on the device."""
    tensors = {name: rows.cpu() for name, rows in batch.tensors.items()}
    statistics = batch.statistics.cpu()
    return dataclasses.replace(batch, tensors=tensors, statistics=statistics, labels=None)
