"""The thread that turns encoded batches into shards, so that the teacher never waits for a disk.

A bounded queue lies between the loop and the thread; the thread's first error stops the loop, and
whole shards that are in the queue are written also when the loop itself fails.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kdcache.columns import Array
from kdcache.dump.statistics import as_mapping
from kdcache.errors import DataError
from kdcache.store import ViewWriter

_QUEUED_BATCHES = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedBatch:
    """What the loop hands over.

    Attributes:
        shard: the shard that these samples belong to.
        samples: their numbers, ascending.
        tensors: column name -> rows on any device.
        arrays: column name -> rows that never were on a device.
        invalid: (P,) bool, logits that are NaN or +inf, or a row without a finite one.
        num_positions: (B,) int64.
        statistics: (6,) float64.
        ends_shard: whether the shard is whole with this batch.
    """

    shard: int
    samples: tuple[int, ...]
    tensors: Mapping[str, Tensor]
    arrays: Mapping[str, Array]
    invalid: Tensor
    num_positions: Tensor
    statistics: Tensor
    ends_shard: bool


def check_valid(batch: EncodedBatch) -> None:
    """Raise DataError naming the first sample with a logit that no target should hold."""
    invalid = batch.invalid.cpu().numpy()
    if not invalid.any():
        return
    owner = np.repeat(batch.samples, batch.num_positions.cpu().numpy())
    raise DataError(
        f"the teacher's logits of sample {owner[invalid][0]} are NaN, +inf, or all -inf "
        f"({int(invalid.sum())} positions in this batch). Shards that were finished stay; this one "
        "was not written. Mend the teacher or the sample (a lower precision overflows), then run "
        "the same command again."
    )


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
        self._queue: queue.Queue[EncodedBatch | None] = queue.Queue(_QUEUED_BATCHES)
        self._error: BaseException | None = None
        self._parts: list[EncodedBatch] = []
        self._thread = threading.Thread(target=self._run, name="kdcache-writer", daemon=True)

    def __enter__(self) -> ShardWriter:
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self._queue.put(None)
        self._thread.join()
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
        check_valid(batch)
        self._parts.append(batch)
        if not batch.ends_shard:
            return
        parts, self._parts = self._parts, []
        columns = {
            name: np.concatenate([part.tensors[name].cpu().numpy() for part in parts])
            for name in batch.tensors
        } | {name: np.concatenate([part.arrays[name] for part in parts]) for name in batch.arrays}
        sums = torch.stack([part.statistics.cpu() for part in parts]).sum(dim=0)
        statistics = as_mapping(sums)
        self._writer.write_shard(batch.shard, columns, statistics)
        self._on_shard(batch.shard, statistics)
