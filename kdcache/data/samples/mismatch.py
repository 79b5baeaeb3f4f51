"""Why a sample is not one that the teacher saw: the diagnosis behind an error.

It runs only once something is wrong, so it may draw samples again and search the whole cache.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from kdcache.columns import FINGERPRINT
from kdcache.data.samples import sources
from kdcache.data.samples.fingerprint import FingerprintSource
from kdcache.data.samples.keys import INDEX
from kdcache.data.samples.references import compare
from kdcache.errors import (
    AlignmentError,
    CacheError,
    FingerprintMismatchError,
    KdcacheError,
)
from kdcache.store import LocalCopy, View, open_cache

_LISTED = 4
_SEARCHED = 16
_RANDOM = (
    "the dataset is random: the same sample, drawn twice, differs. A cached target is valid only "
    "for the input that the teacher saw; remove the random augmentation."
)
_MOVED = (
    "the teacher saw what is sample {now} now as sample {then}: the dataset was reordered, "
    "shifted, filtered or shuffled since the dump."
)
_EDITED = "the sample was edited, or its decoding or transform changed."
_REMEDY = "Restore the dataset and its transforms, or dump again into a new cache."


class Joined(Protocol):
    """What a diagnosis looks at: the user's samples, and the cache's view of them."""

    dataset: Any
    view: View
    source: FingerprintSource

    @property
    def copy(self) -> LocalCopy:
        """The local copy of the view."""


def mismatch_error(joined: Joined, index: int, sample: Any, row: int) -> FingerprintMismatchError:
    """The error for a sample whose fingerprint is not the stored one, with likely causes.

    Args:
        joined: the dataset in which it happened.
        index: the sample's number in the user's dataset.
        sample: what the dataset returned.
        row: its row in the cache.
    """
    stored = int(joined.copy.column(FINGERPRINT)[row])
    return FingerprintMismatchError(
        f"sample {index} of split {joined.view.manifest.split!r} is not what the teacher saw: "
        f"fingerprint in the cache {stored:016x}, of this sample {joined.source(sample):016x}.\n"
        f"{_listed(joined, index, sample)}\n"
        f"No optimiser step has used it. {_REMEDY}"
    )


def missing_error(joined: Joined, index: int, sample: Any) -> AlignmentError:
    """The error for a sample whose key (its content, or a field of it) was never dumped."""
    manifest = joined.view.manifest
    return AlignmentError(
        f"sample {index} is not in split {manifest.split!r} of {joined.view.cache}: its key, by "
        f"{manifest.key}, was never dumped.\n{_listed(joined, index, sample)}\n{_REMEDY}"
    )


def _listed(joined: Joined, index: int, sample: Any) -> str:
    return "\n".join(f"  - {cause}" for cause in _causes(joined, index, sample))


def _causes(joined: Joined, index: int, sample: Any) -> list[str]:
    found = joined.source(sample)
    if sources.is_stream(joined.dataset):
        return _in_other_split(joined, found) or [_EDITED]
    if joined.source(sources.fetch(joined.dataset, [index])[0]) != found:
        return [_RANDOM]
    # Only where keys are numbers do numbers of the dump and of this dataset mean the same.
    by_number = joined.view.manifest.key == INDEX
    moved = [*(_moved(joined, index) if by_number else []), *_in_other_split(joined, found)]
    return [*(moved or [_EDITED]), *(_against_references(joined) if by_number else [])]


def _moved(joined: Joined, index: int) -> list[str]:
    """Whether this sample, or one of those after it, stands at another place in the cache."""
    stored = joined.copy.column(FINGERPRINT)
    # Several, for after a shift the first samples may have no partner in the cache.
    for number in range(index, min(index + _SEARCHED, len(joined.dataset))):
        found = joined.source(sources.fetch(joined.dataset, [number])[0])
        rows = np.flatnonzero(stored == np.uint64(found))
        if rows.size and number not in rows:
            return [_MOVED.format(now=number, then=rows[0])]
    return []


def _in_other_split(joined: Joined, found: int) -> list[str]:
    """Whether another split of the cache has this very input."""
    cache, own = open_cache(joined.view.cache), joined.view.manifest.split
    for split in cache:
        try:
            commits = () if split == own else cache[split].commits
            for commit in commits:
                rows = cache[split].read_shard(commit)[FINGERPRINT]
                if np.uint64(found) in rows:
                    at = commit.start + int(np.flatnonzero(rows == np.uint64(found))[0])
                    return [f"the teacher saw it as sample {at} of split {split!r}: wrong split."]
        except CacheError:  # it is being dumped, or damaged: no help here
            continue
    return []


def _against_references(joined: Joined) -> list[str]:
    """What the samples that the manifest describes look like now."""
    lines = []
    for reference in joined.view.manifest.references:
        number = reference.get("sample")
        if type(number) is not int or not 0 <= number < len(joined.dataset):
            continue
        try:
            content = joined.source.content(sources.fetch(joined.dataset, [number])[0])
            lines.append(f"reference sample {number}: {compare(reference, content)}")
        except (KdcacheError, IndexError, KeyError, OSError):
            continue
    return lines[:_LISTED]
