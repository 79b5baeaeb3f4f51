"""A user's set whose samples are named where they cannot be read, as they are in a joined one.

For sets without targets, which nothing of ours reads: their errors would come as they are, with
neither the set nor the sample.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch.utils.data import DataLoader, Dataset, IterableDataset

from kdcache.data.samples import sources


def with_named_samples(loader: Any, split: str) -> Any:
    """A loader like a user's own, whose errors are SampleErrors; the same one where it cannot be.

    It cannot where a loader is no plain DataLoader, or makes no batches; nor where a
    ``worker_init_fn`` may divide a stream, which is done by setting attributes of the dataset.

    Args:
        loader: of any kind.
        split: its name.
    """
    is_batched = type(loader) is DataLoader and (loader.batch_size or loader.batch_sampler)
    if not is_batched or (sources.is_stream(loader.dataset) and loader.worker_init_fn is not None):
        return loader
    # DataLoader asks whether a set is an IterableDataset, so there are two kinds.
    kind = _NamedStream if sources.is_stream(loader.dataset) else _NamedDataset
    collate = functools.partial(_collated, loader.collate_fn, split)
    return sources.with_dataset(loader, kind(loader.dataset, split), collate)


def _collated(
    collate_fn: Callable[[list[Any]], Any], split: str, numbered: Sequence[tuple[Any, Any]]
) -> Any:
    """What the user's collate function makes of samples that have their numbers beside them."""
    numbers, samples = zip(*numbered, strict=True)
    return sources.collated(collate_fn, list(samples), numbers, split)


class _NamedDataset(Dataset[Any]):
    """(number, sample) of a map-style dataset."""

    def __init__(self, dataset: Any, split: str) -> None:
        self._dataset, self._split = dataset, split

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: Any) -> tuple[Any, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[Any]) -> list[tuple[Any, Any]]:
        samples = sources.fetch(self._dataset, indices, self._split)
        return list(zip(indices, samples, strict=True))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_dataset":  # asked for while it is unpickled
            raise AttributeError(name)
        return getattr(self._dataset, name)


class _NamedStream(IterableDataset[tuple[int, Any]]):
    """(number within this stream, sample) of a stream."""

    def __init__(self, dataset: Any, split: str) -> None:
        self._dataset, self._split = dataset, split

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        yield from enumerate(sources.in_turn(self._dataset, self._split))
