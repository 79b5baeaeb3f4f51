"""Whether samples have the labels that they had at the dump, told from a few bytes of each.

Commit records keep digests for about a thousand samples of a split, those that a student's
start-up probe visits. Labels are no part of what the teacher saw, so a change may be meant; it is
said, and nothing is refused. Labels that are hidden from the student, or that it alone has, are
no change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import xxhash
from torch import Tensor

from kdcache.columns import Array
from kdcache.data.samples import sources
from kdcache.data.samples.keys import INDEX
from kdcache.errors import CacheCorruptedError
from kdcache.losses.labels import IGNORE_INDEX
from kdcache.store import Manifest
from kdcache.store.format.commits import Commit
from kdcache.store.format.fields import Fields

NUM_KEPT = 1024
"""As many as are probed: where keys are numbers, they are the same samples."""

NUM_KEPT_BY_CONTENT = 4096
"""More, because a student may have a part of the samples, in any order, and probe others."""

# Hexadecimal digits: a change of one sample goes unseen once in 65,536; records stay small.
_VALUE_DIGITS = 4
_PLACE_DIGITS = 8


class LabelDigest(NamedTuple):
    """The labels of one sample.

    Attributes:
        places: digest of which of its positions are labelled, 32 bits.
        values: digest of their labels, 16 bits.
    """

    places: int
    values: int


def digest_labels(labels: Array) -> LabelDigest:
    """The digest of the labels of one sample's positions, (P_i,) int64, -100 for none."""
    at = np.flatnonzero(labels != IGNORE_INDEX)
    return LabelDigest(places=_bits(at, _PLACE_DIGITS), values=_bits(labels[at], _VALUE_DIGITS))


def _bits(values: Array, num_digits: int) -> int:
    return xxhash.xxh3_64_intdigest(values.astype("<i8").tobytes()) % (1 << 4 * num_digits)


_NONE = digest_labels(np.zeros(0, np.int64))
# What classification has, one labelled position a sample; then places are not stored.
_ONE_PLACE = _bits(np.zeros(1, np.int64), _PLACE_DIGITS)


def kept_samples(manifest: Manifest, shard: int) -> list[int]:
    """Numbers of the samples of a shard whose digests are kept, ascending."""
    start, stop = manifest.shard_range(shard)
    most = NUM_KEPT if manifest.key == INDEX else NUM_KEPT_BY_CONTENT
    if manifest.is_open or manifest.num_samples <= most:  # a student's probe begins where it does
        return list(range(start, min(stop, most)))
    return [
        number for number in sources.spread(manifest.num_samples, most) if start <= number < stop
    ]


def labels_by_sample(labels: Tensor, num_positions: Tensor) -> list[Array]:
    """Labels (P,) of each sample's positions, (P_i,) int64; waits for the device."""
    ends = num_positions.cpu().numpy().cumsum()
    return np.split(labels.cpu().numpy(), ends[:-1])


def to_record(found: Mapping[int, LabelDigest], start: int, stop: int) -> dict[str, Any]:
    """What a commit record keeps; nothing where no sample is labelled.

    Args:
        found: sample -> its digest.
        start: first sample of the shard.
        stop: one past its last.
    """
    if all(digest == _NONE for digest in found.values()):
        return {}
    record: dict[str, Any] = {
        "values": "".join(f"{digest.values:0{_VALUE_DIGITS}x}" for digest in found.values())
    }
    if list(found) != list(range(start, stop)):
        record["samples"] = [number - start for number in found]
    if any(digest.places != _ONE_PLACE for digest in found.values()):
        record["places"] = "".join(
            f"{digest.places:0{_PLACE_DIGITS}x}" for digest in found.values()
        )
    return record


def from_commits(commits: Iterable[Commit]) -> dict[int, LabelDigest]:
    """Sample -> its digest at the dump; CacheCorruptedError for a record that cannot be."""
    found: dict[int, LabelDigest] = {}
    for commit in commits:
        if commit.labels:
            found |= _from_record(commit)
    return found


def _from_record(commit: Commit) -> dict[int, LabelDigest]:
    at, size = Fields(commit.labels, f"labels of shard {commit.shard}"), commit.stop - commit.start
    numbers = at.items("samples") if "samples" in commit.labels else list(range(size))
    if not all(type(number) is int and 0 <= number < size for number in numbers):
        raise CacheCorruptedError(f"{at.where}: 'samples' should be numbers below {size}.")
    values = at.hexadecimal("values", len(numbers), _VALUE_DIGITS)
    places = [_ONE_PLACE] * len(numbers)
    if "places" in commit.labels:
        places = at.hexadecimal("places", len(numbers), _PLACE_DIGITS)
    return {
        commit.start + number: LabelDigest(*pair)
        for number, *pair in zip(numbers, places, values, strict=True)
    }


class ChangedLabels:
    """Holds the labels of a student's samples against those of the dump.

    Args:
        commits: of the view that the samples are joined with.
    """

    def __init__(self, commits: Iterable[Commit]) -> None:
        self._before = from_commits(commits)
        self._num_compared = 0
        self._changed: list[tuple[int, int]] = []

    def add(
        self, rows: Array, indices: Sequence[int], labels: Tensor | None, num_positions: Tensor
    ) -> None:
        """Look at a batch.

        Args:
            rows: (B,) of the cache.
            indices: (B,) numbers in the student's dataset.
            labels: (P,) int64 of the targets' positions, -100 for none; None: there are none.
            num_positions: (B,) of the targets.
        """
        if labels is None or not self._before:
            return
        found = labels_by_sample(labels, num_positions)
        for row, index, own in zip(rows.tolist(), indices, found, strict=True):
            then = self._before.get(row, _NONE)
            now = digest_labels(own)
            # Labels at other positions are labels that one side hides.
            if then != _NONE and now.places == then.places:
                self._num_compared += 1
                if now != then:
                    self._changed.append((row, index))

    def warning(self, fingerprints: Array | None) -> str:
        """What is to be said, or nothing.

        Args:
            fingerprints: (N,) of the cache where they are the keys: samples of equal content have
                the first one's targets, and each may have had a label of its own. None elsewhere.
        """
        changed = self._changed
        if fingerprints is not None and changed:
            own = fingerprints[[row for row, _ in changed]]
            same, counts = np.unique(fingerprints[np.isin(fingerprints, own)], return_counts=True)
            is_single = np.isin(own, same[counts == 1])
            changed = [pair for pair, single in zip(changed, is_single, strict=True) if single]
        if not changed:
            return ""
        return (
            f"{len(changed):,} of {self._num_compared:,} probed samples have other labels than at "
            f"the dump (the first is sample {min(index for _, index in changed)}); their inputs "
            "are the same. The targets stay those of the teacher. Where labels were corrected "
            "since, all is well; otherwise restore them, for the student learns from both."
        )
