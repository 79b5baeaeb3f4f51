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
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler

from kdcache.data.batch.mapping import Mapped
from kdcache.data.join.counts import batch_counts
from kdcache.data.samples import sources
from kdcache.data.samples.order import EpochOrder
from kdcache.errors import UsageError


class WindowBatch(NamedTuple):
    """A micro-batch, and what its whole window on this rank counts.

    Attributes:
        batch: joined, or the user's own.
        labelled: labelled positions of this micro-batch; None where only a model tells.
        window: (4,) int64: positions, labelled positions, samples and micro-batches of it; what is
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
        done: gives how many batches of the epoch were trained on before this pass, where a
            training was interrupted within it.
        size: from how many batches of the epoch were taken before to the micro-batches of the
            next window.
        mapping: gives the current batch mapping.
    """

    done: Callable[[], int]
    size: Callable[[int], int]
    mapping: Callable[[], Mapped]

    def of(self, batches_after: Callable[[int], Iterator[Any]]) -> Iterator[WindowBatch]:
        """The batches of a pass, each with the counts of its window.

        Args:
            batches_after: from how many batches are done to the others; asked when the first one
                is wanted, since only then it is known.
        """
        taken = self.done()
        batches = batches_after(taken)
        # The price: a whole window is in memory before its first micro-batch is trained on.
        while part := list(itertools.islice(batches, self.size(taken))):
            taken += len(part)
            yield from self._window(part)

    def _window(self, part: Sequence[Any]) -> Iterator[WindowBatch]:
        # Asked anew for each window: a student's first step may have settled what was inferred.
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
        return self.windows.of(self._after)

    def _after(self, done: int) -> Iterator[Any]:
        if self.order is not None:
            # Left out where sample numbers are drawn, so that the batches trained on before an
            # interruption are not loaded again.
            self.order.start = done * self.order.batch_size
        return super().__iter__()

    @property
    def order(self) -> EpochOrder | None:
        """The order of samples, where it can be gone on with in the middle of an epoch."""
        return self.sampler if isinstance(self.sampler, EpochOrder) else None

    def state_dict(self) -> dict[str, Any]:
        """Nothing: Lightning takes a loader that has it for one that goes on by itself.

        How far it was says the Trainer's own progress, and the seed of the order the module.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load."""

    @classmethod
    def like(cls, loader: sources.Loader, windows: Windows) -> WindowLoader:
        """A loader with all of another's settings, that looks ahead.

        Where it shuffles all samples, or none, their order becomes an :class:`EpochOrder`: with
        the seed of the loader's generator, if it has one.
        """
        is_stream = sources.is_stream(loader.dataset)
        options = sources.loader_options(loader, is_stream=is_stream)
        order = None if is_stream else EpochOrder.like(loader)
        if order is not None:
            # Workers' seeds come from a generator of its own: nothing is drawn from the global one.
            options |= {"sampler": order, "generator": torch.Generator()}
        return cls(loader.dataset, windows=windows, collate_fn=loader.collate_fn, **options)


def check_sampler(loader: WindowLoader) -> None:
    """Raise UsageError for a sampler that Lightning would replace by one over all samples.

    Under several ranks it does so with PyTorch's own; ours stands for those over all samples.
    """
    if isinstance(loader.sampler, RandomSampler | SequentialSampler):
        raise UsageError(
            f"the loader's {type(loader.sampler).__name__} draws a part of the samples, or some of "
            "them twice. Over several ranks Lightning would draw all of them once instead. Give "
            "the part as a dataset (torch.utils.data.Subset), or a DistributedSampler of your own."
        )
