"""What one optimiser step divides by, known before its first backward pass.

A step's gradient is that of sums over all its micro-batches and ranks, each divided by how many
positions, or labels, these have together. A mean of micro-batches' means would weigh a position of
a short one more; and one backward pass mixes losses that count different positions. So the loader
looks one accumulation window ahead.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from kdcache.data import sources
from kdcache.data.batch import Mapped
from kdcache.data.counts import batch_counts


class WindowBatch(NamedTuple):
    """A micro-batch, and what its whole window on this rank counts.

    Attributes:
        batch: joined, or the user's own.
        labelled: labelled positions of this micro-batch; None where only a model tells.
        window: (3,) int64: positions, labelled positions and micro-batches of the window; what is
            not known counts 0.
        is_known: whether ``window`` counts the labelled positions of all its micro-batches.
        is_first: whether the window begins with it.
    """

    batch: Any
    labelled: int | None
    window: Tensor
    is_known: bool
    is_first: bool


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Cuts a loader's batches into windows of one optimiser step.

    Attributes:
        size: from how many batches of the epoch were taken before to the micro-batches of the
            next window.
        mapping: gives the current batch mapping.
    """

    size: Callable[[int], int]
    mapping: Callable[[], Mapped]

    def of(self, batches: Iterator[Any]) -> Iterator[WindowBatch]:
        """The same batches, each with the counts of its window."""
        taken = 0
        while part := list(itertools.islice(batches, self.size(taken))):
            taken += len(part)
            yield from self._window(part)

    def _window(self, part: Sequence[Any]) -> Iterator[WindowBatch]:
        mapping = self.mapping()
        counts = [batch_counts(mapping, batch) for batch in part]
        totals = [sum(number or 0 for number in column) for column in zip(*counts, strict=True)]
        window = torch.tensor([*totals, len(part)])
        is_known = all(count.labelled is not None for count in counts)
        for number, (batch, count) in enumerate(zip(part, counts, strict=True)):
            yield WindowBatch(
                batch=batch,
                labelled=count.labelled,
                window=window,
                is_known=is_known,
                is_first=number == 0,
            )


class WindowLoader(DataLoader[Any]):
    """A DataLoader that looks one window ahead.

    Lightning makes a copy of a loader for every rank, from the attributes that have the names of
    its constructor's arguments: ``windows`` is one.

    Args:
        dataset: joined with a cache, or the user's own.
        windows: cuts the batches into windows.
        options: of a DataLoader.
    """

    def __init__(self, dataset: Any, *, windows: Windows, **options: Any) -> None:
        self.windows = windows
        super().__init__(dataset, **options)

    def __iter__(self) -> Any:
        """:class:`WindowBatch` after :class:`WindowBatch`."""
        return self.windows.of(super().__iter__())

    @classmethod
    def like(cls, loader: sources.Loader, windows: Windows) -> WindowLoader:
        """A loader with all of another's settings, that looks ahead."""
        options = sources.loader_options(loader, is_stream=sources.is_stream(loader.dataset))
        return cls(loader.dataset, windows=windows, collate_fn=loader.collate_fn, **options)
