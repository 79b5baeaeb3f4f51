"""The key of a sample: what joins it with its targets. Never its place in an order.

``index`` is the number in a map-style dataset; ``field:<path>`` a leaf of the sample;
``content`` its fingerprint. The last two find their targets wherever the sample now stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kdcache.columns import Array
from kdcache.data.batch.leaves import leaf
from kdcache.data.samples.fingerprint import fingerprint
from kdcache.errors import AlignmentError, UsageError, suggest

INDEX = "index"
CONTENT = "content"
FIELD = "field:"


def check_key_source(source: str) -> str:
    """Return the source, or raise UsageError for one that is none."""
    if source not in (INDEX, CONTENT) and not source.startswith(FIELD):
        raise UsageError(f"key: {source!r} is none. {suggest(source, [INDEX, CONTENT, FIELD])}")
    return source


def is_stored(source: str) -> bool:
    """Whether keys need a column of their own."""
    return source.startswith(FIELD)


def field_key(source: str, sample: Any) -> int:
    """The 64-bit key of a sample whose source is ``field:<path>``."""
    return fingerprint(leaf(sample, source.removeprefix(FIELD), "key field"))


def check_unique(source: str, numbers: Sequence[int], samples: Sequence[Any]) -> None:
    """Raise AlignmentError where two of some samples have the same key.

    Args:
        source: ``field:<path>``.
        numbers: of the samples.
        samples: as the dataset returned them.
    """
    first: dict[int, int] = {}
    for number, sample in zip(numbers, samples, strict=True):
        other = first.setdefault(field_key(source, sample), number)
        if other != number:
            raise AlignmentError(_same_key(source, other, number))


def _same_key(source: str, first: int, second: int) -> str:
    return (
        f"samples {first} and {second} have the same key ({source}). Targets cannot be told apart "
        "by it. Dump with a field that is unique, or with key: content."
    )


class KeyIndex:
    """From 64-bit keys to rows of the cache.

    Args:
        keys: (N,) uint64, every row's key.
        source: ``content``, where equal samples share the first one's targets, or
            ``field:<path>``, where keys are unique.

    Raises:
        AlignmentError: two samples have the same key field.
    """

    def __init__(self, keys: Array, source: str) -> None:
        # Stable: of rows with equal content the first one is found, in every process.
        self._order = np.argsort(keys, kind="stable")
        self._sorted = keys[self._order]
        twice = np.flatnonzero(self._sorted[1:] == self._sorted[:-1])
        if source != CONTENT and twice.size:
            raise AlignmentError(_same_key(source, *self._order[twice[0] : twice[0] + 2]))

    def rows(self, keys: Array) -> Array:
        """(B,) rows of the cache; -1 for a key that is not there."""
        # clip: a key beyond the last one is compared with that one, and differs.
        at = np.searchsorted(self._sorted, keys).clip(max=len(self._sorted) - 1)
        return np.where(self._sorted[at] == keys, self._order[at], -1)
