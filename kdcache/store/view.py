"""One view of one split: its manifest, its commits, and its shards, decoded on demand.

Presence is proved by commit records and checksums, never by reading an array, because Zarr gives
the fill value for what is not there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from kdcache.columns import NUM_ENTRIES, NUM_POSITIONS, Array, is_name, num_rows
from kdcache.errors import CacheCorruptedError, CacheError, CacheIncompleteError
from kdcache.store.format.arrays import read_array
from kdcache.store.format.commits import Commit, read_commits, read_index, view_digest
from kdcache.store.format.files import size_of
from kdcache.store.format.layout import (
    END_FILE,
    GROUP_FILE,
    INDEX_FILE,
    ORDER,
    TABLES_FOLDER,
    attempt_folder,
    commit_file,
)
from kdcache.store.format.manifest import Manifest, read_manifest
from kdcache.store.format.tables import read_table


@dataclass(frozen=True, kw_only=True, repr=False)
class View:
    """One view of one split: manifest, commits, and decoded shards.

    Attributes:
        cache: folder of the cache.
        folder: folder of the view.
    """

    cache: Path
    folder: Path

    def __repr__(self) -> str:
        """One line: where it is, and how much of it is there."""
        return f"View({str(self.folder)!r}, {self.describe()})"

    def describe(self) -> str:
        """``60,000 samples``, or how many of the shards are there; never an error."""
        try:
            if self.is_complete:
                return f"{self.manifest.num_samples:,} samples"
            if self.manifest.is_open:
                return f"{len(self.commits):,} shards of a stream"
            return f"{len(self.commits):,} of {self.manifest.num_shards:,} shards"
        except CacheError as error:
            return type(error).__name__

    @cached_property
    def manifest(self) -> Manifest:
        """What the view is; CacheCorruptedError where it cannot be read."""
        return read_manifest(self.folder)

    @cached_property
    def commits(self) -> tuple[Commit, ...]:
        """The shards that are there, in order: from the index, or from the records."""
        gathered = read_index(self.folder, self.manifest)
        return read_commits(self.folder, self.manifest) if gathered is None else gathered

    @property
    def pending(self) -> tuple[int, ...]:
        """Numbers of the shards without a commit."""
        return self.manifest.missing({commit.shard for commit in self.commits})

    @property
    def is_complete(self) -> bool:
        """Whether every shard and every table is there."""
        return not (self.manifest.is_open or self.pending or self.missing_tables)

    @property
    def missing_tables(self) -> tuple[str, ...]:
        """Names of the codec's tables that are not there."""
        folder = self.cache / TABLES_FOLDER
        # A digest that is none is damage, not absence; read_table says so.
        return tuple(
            name
            for name, digest in self.manifest.tables.items()
            if is_name(digest) and size_of(folder / digest) is None
        )

    @property
    def digest(self) -> str:
        """Identity of the whole decoded content; only a complete view has one."""
        self.check_complete()
        return view_digest(self.manifest, self.commits)

    def check_complete(self) -> None:
        """Raise CacheIncompleteError while shards or tables are missing."""
        if self.manifest.is_open:
            raise CacheIncompleteError(
                f"{self.folder} is not complete: the end of the stream was not reached. Run the "
                "same kdcache dump-teacher command again; it goes on after what is there."
            )
        if pending := self.pending:
            total = self.manifest.num_shards
            first, last = self.manifest.shard_range(pending[0])
            raise CacheIncompleteError(
                f"{self.folder} is not complete: {total - len(pending)} of {total} shards are "
                f"there; the first missing one holds samples {first} to {last - 1}. Run the same "
                "kdcache dump-teacher command again; it dumps only what is missing."
            )
        if self.missing_tables:
            raise CacheIncompleteError(
                f"{self.folder} is not complete: the codec's table {self.missing_tables[0]!r} is "
                "not there. Run the same kdcache dump-teacher command again; it is written anew."
            )

    def read_shard(self, commit: Commit) -> dict[str, Array]:
        """Decode and verify all columns of a shard.

        Returns:
            Column name -> rows (rows, *shape).

        Raises:
            CacheCorruptedError: anything about the shard is not what its commit says.
        """
        group = attempt_folder(self.folder, commit.shard, commit.attempt)
        columns: dict[str, Array] = {}
        for column in sorted(self.manifest.columns, key=lambda column: ORDER.index(column.per)):
            stored = commit.arrays[column.name]
            wanted = num_rows(column, columns, commit.stop - commit.start)
            if stored.rows != wanted:
                raise CacheCorruptedError(
                    f"{group / column.name} has {stored.rows:,} rows, the counts beside it "
                    f"say {wanted:,}."
                )
            columns[column.name] = self.read_column(commit, column.name)
        return columns

    def read_column(self, commit: Commit, name: str) -> Array:
        """One column of a shard that needs no counts to be read, (rows, *shape), verified.

        Raises:
            CacheCorruptedError: it is not what its commit says, or a count in it is negative.
        """
        column = next(c for c in self.manifest.columns if c.name == name)
        group = attempt_folder(self.folder, commit.shard, commit.attempt)
        rows = read_array(group, column, commit.arrays[name])
        if name in (NUM_POSITIONS, NUM_ENTRIES) and (rows < 0).any():
            raise CacheCorruptedError(f"{group / name} holds a negative count.")
        return rows

    def read_num_positions(self) -> Array:
        """Positions of every sample, (N,) int32, without decoding anything else."""
        return np.concatenate([self.read_column(c, NUM_POSITIONS) for c in self.commits])

    def read_tables(self) -> dict[str, Array]:
        """The codec's tables by name, verified."""
        return {name: read_table(self.cache, d) for name, d in self.manifest.tables.items()}

    @property
    def stored_bytes(self) -> int:
        """Bytes on disk of everything that counts in this view, metadata included."""
        files = [self.folder / name for name in (GROUP_FILE, INDEX_FILE, END_FILE)]
        files += [commit_file(self.folder, commit.shard) for commit in self.commits]
        for commit in self.commits:
            group = attempt_folder(self.folder, commit.shard, commit.attempt)
            files.append(group / GROUP_FILE)
            files += [group / column.name / GROUP_FILE for column in self.manifest.columns]
        objects = sum(commit.stored_bytes for commit in self.commits)
        return objects + sum(size_of(path) or 0 for path in files)
