"""Why a sample is not the one that the teacher saw: the diagnosis behind one error.

It runs only once something is wrong, so it may draw samples again and search the whole cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from kdcache.columns import FINGERPRINT
from kdcache.data import sources
from kdcache.data.references import compare
from kdcache.errors import FingerprintMismatchError, KdcacheError

if TYPE_CHECKING:
    from kdcache.data.join import CachedDataset

_MOVED = (
    "the teacher saw what is sample {now} now as sample {then}: the dataset was reordered, "
    "shifted, filtered or shuffled since the dump."
)
_LISTED = 4
_SEARCHED = 16
_RANDOM = (
    "the dataset is random: the same sample, drawn twice, differs. A cached target is valid only "
    "for the input that the teacher saw; remove the random augmentation."
)


def mismatch_error(
    joined: CachedDataset, index: int, sample: Any, row: int
) -> FingerprintMismatchError:
    """The error for a sample whose fingerprint is not the stored one, with likely causes.

    Args:
        joined: the dataset in which it happened.
        index: the sample's number in the user's dataset.
        sample: what the dataset returned.
        row: its row in the cache.
    """
    found = joined.source(sample)
    stored = int(joined.copy.column(FINGERPRINT)[row])
    split = joined.view.manifest.split
    causes = "\n".join(f"  - {cause}" for cause in _causes(joined, index, found))
    return FingerprintMismatchError(
        f"sample {index} of split {split!r} is not what the teacher saw: fingerprint in the cache "
        f"{stored:016x}, of this sample {found:016x}.\n{causes}\n"
        "No optimiser step has used it. Restore the dataset and its transforms, or dump again "
        "into a new cache."
    )


def _causes(joined: CachedDataset, index: int, found: int) -> list[str]:
    again = joined.source(sources.fetch(joined.dataset, [index])[0])
    if again != found:
        return [_RANDOM]
    causes = [*_elsewhere(joined, index), *_against_references(joined)]
    return causes or ["the sample was edited, or its decoding or transform changed."]


def _elsewhere(joined: CachedDataset, index: int) -> list[str]:
    """Whether this sample, or one of those after it, stands at another place in the cache."""
    stored = joined.copy.column(FINGERPRINT)
    for number in range(index, min(index + _SEARCHED, len(joined.dataset))):
        found = joined.source(sources.fetch(joined.dataset, [number])[0])
        rows = np.flatnonzero(stored == np.uint64(found))
        if rows.size and number not in rows:
            return [_MOVED.format(now=number, then=rows[0])]
    return []


def _against_references(joined: CachedDataset) -> list[str]:
    """What the samples that the manifest describes look like now."""
    lines = []
    for reference in joined.view.manifest.references:
        number = reference.get("sample")
        if type(number) is not int or not 0 <= number < len(joined.dataset):
            continue
        try:
            sample = sources.fetch(joined.dataset, [number])[0]
        except (KdcacheError, IndexError, KeyError, OSError):
            continue
        content = joined.source.content(sample)
        lines.append(f"reference sample {number}: {compare(reference, content)}")
    return lines[:_LISTED]
