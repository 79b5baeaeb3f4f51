"""Reading everything in a cache and holding it against its checksums, counts and commits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdcache.columns import KEY, Array
from kdcache.errors import CacheError
from kdcache.store import View, open_cache

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What a verification found.

    Attributes:
        path: of the cache.
        shards: that were read.
        samples: that have sound targets.
        problems: one line each; empty for a cache that is whole.
    """

    path: str
    shards: int
    samples: int
    problems: tuple[str, ...]

    @property
    def is_sound(self) -> bool:
        """Whether every split is complete and every checksum right."""
        return not self.problems


def verify_cache(path: str | Path, *, progress: Progress | None = None) -> Verification:
    """Check every split of a cache: checksums, counts, commits, coverage.

    Args:
        path: folder of the teacher cache.
        progress: called with (split, shards done, shards in all).

    Raises:
        CacheMissingError: there is no cache.
    """
    cache = open_cache(path)
    problems: list[str] = []
    shards = samples = 0
    if not cache.splits:
        problems.append(f"{path} has no split.")
    for split in cache:
        try:
            found = _verify_view(cache[split], split, problems, progress)
        except CacheError as error:
            problems.append(f"{split}: {error}")
            continue
        shards, samples = shards + found[0], samples + found[1]
    return Verification(path=str(path), shards=shards, samples=samples, problems=tuple(problems))


def _verify_view(
    view: View, split: str, problems: list[str], progress: Progress | None
) -> tuple[int, int]:
    manifest = view.manifest
    view.read_tables()
    missing = view.pending
    if missing:
        first, last = manifest.shard_range(missing[0])
        problems.append(
            f"{split}: {len(missing)} of {manifest.num_shards} shards are not there; the first "
            f"is shard {missing[0]} (samples {first} to {last - 1})"
        )
    keys: list[Array] = []
    sound = 0
    for number, commit in enumerate(view.commits):
        try:
            columns = view.read_shard(commit)
        except CacheError as error:
            problems.append(
                f"{split}: shard {commit.shard} (samples {commit.start} to {commit.stop - 1}): "
                f"{error}"
            )
        else:
            sound += commit.stop - commit.start
            if KEY in columns:
                keys.append(columns[KEY])
        if progress is not None:
            progress(split, number + 1, len(view.commits))
    if keys:
        every = np.concatenate(keys)
        repeated = len(every) - len(np.unique(every))
        if repeated:
            problems.append(f"{split}: {repeated} keys stand there more than once")
    return len(view.commits), sound
