"""Reading everything in a cache and holding it against its checksums, counts and commits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdcache.columns import KEY, Array
from kdcache.errors import CacheError
from kdcache.store import View, open_cache
from kdcache.store.commits import read_commits
from kdcache.store.files import read_json
from kdcache.store.layout import GROUP_FILE, TABLES_FOLDER, attempt_folder, view_name

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

    Beside what kdcache reads itself, the ``zarr.json`` files that other Zarr readers need are
    looked at: node, shape and data type. Commit records that the index has made unnecessary may
    be absent, but not contradict it.

    Args:
        path: folder of the teacher cache.
        progress: called with (split, shards done, shards in all).

    Raises:
        CacheError: there is no cache, or what makes it one is damaged.
    """
    cache = open_cache(path)
    check = _Check(progress)
    for split in cache:
        try:
            check.split(split, cache[split])
        except CacheError as error:
            check.problems.append(f"{split}: {error}")
    for folder in sorted(cache.path.glob(f"*/{view_name(0)}")):
        if folder.parent.name not in cache:
            check.problems.append(f"{folder.parent.name}: {folder} has no manifest ({GROUP_FILE})")
    if not cache.splits:
        check.problems.append(f"{path} has no split: nothing was dumped into it.")
    return Verification(
        path=str(path),
        shards=check.shards,
        samples=check.samples,
        problems=tuple(check.problems),
    )


class _Check:
    """What was read and found so far."""

    def __init__(self, progress: Progress | None) -> None:
        self.shards = self.samples = 0
        self.problems: list[str] = []
        self._progress = progress

    def split(self, split: str, view: View) -> None:
        """Check one split; what keeps its shards from being found at all is raised."""
        manifest = view.manifest
        missing = view.pending
        if manifest.is_open:
            self.problems.append(f"{split}: the end of the stream was not reached")
        elif missing:
            first, last = manifest.shard_range(missing[0])
            self.problems.append(
                f"{split}: {len(missing)} of {manifest.num_shards} shards are not there; the first "
                f"is shard {missing[0]} (samples {first} to {last - 1})"
            )
        self._records(split, view)
        self._metadata(split, view)
        try:
            view.read_tables()
        except CacheError as error:
            self.problems.append(f"{split}: {error}")
        keys = [columns[KEY] for columns in self._read(split, view) if KEY in columns]
        every = np.concatenate(keys) if keys else np.zeros(0)
        repeated = len(every) - len(np.unique(every))
        if repeated:
            self.problems.append(f"{split}: {repeated} keys stand there more than once")

    def _records(self, split: str, view: View) -> None:
        """Commit records that the index has made unnecessary, but that contradict it."""
        try:
            records = {commit.shard: commit for commit in read_commits(view.folder, view.manifest)}
        except CacheError as error:
            self.problems.append(f"{split}: {error}")
            return
        for commit in view.commits:
            if records.get(commit.shard, commit) != commit:
                self.problems.append(
                    f"{split}: the commit record of shard {commit.shard} is not what the index says"
                )

    def _metadata(self, split: str, view: View) -> None:
        """What only other Zarr readers look at."""
        expected: dict[Path, dict[str, Any]] = {view.cache / split: {"node_type": "group"}}
        if view.manifest.tables:
            expected[view.cache / TABLES_FOLDER] = {"node_type": "group"}
        for commit in view.commits:
            group = attempt_folder(view.folder, commit.shard, commit.attempt)
            expected[group] = {"node_type": "group"}
            for column in view.manifest.columns:
                expected[group / column.name] = {
                    "node_type": "array",
                    "shape": [*column.shape, commit.arrays[column.name].rows],
                    "data_type": column.dtype,
                }
        for folder, wanted in expected.items():
            try:
                found = read_json(folder / GROUP_FILE)
            except (CacheError, OSError) as error:
                self.problems.append(f"{split}: other Zarr readers cannot open {folder}: {error}")
                continue
            for name, value in wanted.items():
                if found.get(name) != value:
                    self.problems.append(
                        f"{split}: {folder / GROUP_FILE} says {name} {found.get(name)!r}, the "
                        f"commit {value!r}"
                    )

    def _read(self, split: str, view: View) -> Iterator[dict[str, Array]]:
        """The columns of every sound shard."""
        for number, commit in enumerate(view.commits, start=1):
            self.shards += 1
            try:
                columns = view.read_shard(commit)
            except CacheError as error:
                self.problems.append(
                    f"{split}: shard {commit.shard} (samples {commit.start} to {commit.stop - 1}): "
                    f"{error}"
                )
            else:
                self.samples += commit.stop - commit.start
                yield columns
            if self._progress is not None:
                self._progress(split, number, len(view.commits))
