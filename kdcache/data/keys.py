"""The key of a sample: what joins it with its targets. Never its place in an order.

``index`` is the number in a map-style dataset; ``field:<path>`` a leaf of the sample;
``content`` its fingerprint. The last two find their targets wherever the sample now stands.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kdcache.columns import Array
from kdcache.data.batch import leaf
from kdcache.data.fingerprint import fingerprint
from kdcache.errors import AlignmentError, UsageError, suggest

INDEX = "index"
CONTENT = "content"
_FIELD = "field:"


def check_key_source(source: str) -> str:
    """Return the source, or raise UsageError for one that is none."""
    if source not in (INDEX, CONTENT) and not source.startswith(_FIELD):
        raise UsageError(f"key: {source!r} is none. {suggest(source, [INDEX, CONTENT, _FIELD])}")
    return source


def is_stored(source: str) -> bool:
    """Whether keys need a column of their own."""
    return source.startswith(_FIELD)


def field_key(source: str, sample: Any) -> int:
    """The 64-bit key of a sample whose source is ``field:<path>``."""
    return fingerprint(leaf(sample, source.removeprefix(_FIELD)))


class KeyIndex:
    """From 64-bit keys to rows of the cache."""

    def __init__(self, keys: Array, *, unique: bool) -> None:
        self._order = np.argsort(keys, kind="stable")
        self._sorted = keys[self._order]
        twice = np.flatnonzero(self._sorted[1:] == self._sorted[:-1])
        if unique and twice.size:
            first, second = self._order[twice[0]], self._order[twice[0] + 1]
            raise AlignmentError(
                f"samples {first} and {second} of the cache have the same key. Dump with a field "
                "that is unique."
            )

    def rows(self, keys: Array) -> Array:
        """(B,) rows of the cache; -1 for a key that is not there."""
        at = np.searchsorted(self._sorted, keys).clip(max=len(self._sorted) - 1)
        return np.where(self._sorted[at] == keys, self._order[at], -1)
