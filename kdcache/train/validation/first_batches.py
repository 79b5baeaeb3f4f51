"""The beginning of a validation set, where ``limit_val_batches`` asks for no more.

A pipeline gets a shorter loader; that its scores are of a part is said beside them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from torch.utils.data import IterableDataset, SequentialSampler, Subset

from kdcache.errors import UsageError


class FirstBatches:
    """A loader that ends early; whatever else it is asked, the whole one answers.

    Attributes:
        dataset: the samples of these batches, where the loader takes them in order: a pipeline may
            divide by their number. Not there otherwise.
    """

    def __init__(self, loader: Any, number: int) -> None:
        self._loader, self._number = loader, number
        samples: Any = getattr(loader, "dataset", None)
        size = getattr(loader, "batch_size", None)
        in_order = isinstance(getattr(loader, "sampler", None), SequentialSampler)
        if size and in_order and not isinstance(samples, IterableDataset):
            self.dataset = Subset(samples, range(min(number * size, len(samples))))

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(iter(self._loader), self._number)

    def __len__(self) -> int:
        return self._number

    def __getattr__(self, name: str) -> Any:
        if name in ("dataset", "_loader"):
            raise AttributeError(f"the first batches of a loader have no {name!r}")
        return getattr(self._loader, name)

    def __str__(self) -> str:
        """``10 of 157 batches (640 of 10,000 samples)``."""
        total = _length(self._loader)
        text = (
            f"{self._number:,} batches"
            if total is None
            else f"{self._number:,} of {total:,} batches"
        )
        if hasattr(self, "dataset"):
            text += f" ({len(self.dataset):,} of {len(self._loader.dataset):,} samples)"
        return text


def _length(loader: Any) -> int | None:
    """Batches; None of a stream, whose loader has a length that raises."""
    try:
        return len(loader)
    except TypeError:
        return None


def first_batches(loader: Any, limit: int | float, name: str) -> Any:
    """A loader, or its beginning.

    Args:
        loader: of a validation set.
        limit: batches, where it is an int; a share of them, where it is a float.
        name: of the set, for errors.

    Raises:
        UsageError: a share of a set without a length, or one that is less than a batch.
    """
    total = _length(loader)
    if isinstance(limit, int):
        number = limit
    elif limit == 1.0:
        return loader
    elif total is None:
        raise UsageError(
            f"trainer.limit_val_batches {limit} is a share, and the validation set {name!r} has no "
            "length. Give a number of batches."
        )
    else:
        number = int(total * limit)
        if number == 0:
            raise UsageError(
                f"trainer.limit_val_batches {limit} of the {total:,} batches of {name!r} is less "
                f"than one. Give {1 / total:.3g} or more, a number of batches, or 0 for none."
            )
    return loader if total is not None and number >= total else FirstBatches(loader, number)
