"""Opening a cache: splits, views, their manifests and commits. Reads metadata; decodes on demand.

Presence is proved by commit records and checksums, never by reading an array, because Zarr gives
the fill value for what is not there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from kdcache.columns import NUM_ENTRIES, NUM_POSITIONS, Array, is_name, num_rows
from kdcache.errors import (
    CacheCorruptedError,
    CacheError,
    CacheIncompleteError,
    CacheMissingError,
    suggest,
)
from kdcache.paths import local_path
from kdcache.store.format.arrays import read_array
from kdcache.store.format.commits import Commit, read_commits, read_index, view_digest
from kdcache.store.format.fields import Fields
from kdcache.store.format.files import read_json, size_of
from kdcache.store.format.layout import (
    ATTRIBUTE,
    END_FILE,
    FORMAT_VERSION,
    GROUP_FILE,
    INDEX_FILE,
    ORDER,
    TABLES_FOLDER,
    attempt_folder,
    commit_file,
    view_folder,
)
from kdcache.store.format.manifest import Manifest, read_manifest
from kdcache.store.format.tables import read_table
from kdcache.tables import columns_of_terminal, printable


@dataclass(frozen=True, repr=False)
class Cache:
    """An opened teacher cache: a mapping from split name to its view 0.

    Attributes:
        path: its folder.
    """

    path: Path

    def __repr__(self) -> str:
        """One line: where it is, and how many samples of each split are there."""
        parts = [f"{name}: {self[name].describe()}" for name in self.splits]
        return f"Cache({str(self.path)!r}, {', '.join(parts) or 'empty'})"

    @cached_property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that were begun, sorted."""
        try:
            names = [
                folder.name
                for folder in self.path.iterdir()
                if is_name(folder.name)
                and folder.name.casefold() != TABLES_FOLDER
                and (view_folder(self.path, folder.name, 0) / GROUP_FILE).is_file()
            ]
        except OSError as error:
            raise CacheCorruptedError(
                f"{error.filename} cannot be looked at ({error.strerror})."
            ) from error
        return tuple(sorted(names))

    def summary(self, width: int | None = None) -> str:
        """The table that ``kdcache inspect`` prints.

        Args:
            width: characters of a line; the terminal's if None.
        """
        from kdcache.store.inspection import inspect_cache  # which opens caches itself
        from kdcache.store.report import report_text

        columns = columns_of_terminal() if width is None else width
        return printable(report_text(inspect_cache(self.path), columns))

    def __iter__(self) -> Iterator[str]:
        return iter(self.splits)

    def __contains__(self, split: object) -> bool:
        return split in self.splits

    def __getitem__(self, split: str) -> View:
        """View 0 of a split; CacheMissingError names the splits that there are."""
        return self.view(split)

    def view(self, split: str, number: int = 0) -> View:
        """One view of a split."""
        if split not in self.splits:
            raise CacheMissingError(
                f"{self.path} has no split {split!r}. {suggest(split, self.splits)} "
                "Dump it with kdcache dump-teacher; other splits stay as they are."
            )
        folder = view_folder(self.path, split, number)
        if not (folder / GROUP_FILE).is_file():
            raise CacheMissingError(f"{self.path} has no view {number} of split {split!r}.")
        return View(cache=self.path, folder=folder)


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


def open_cache(path: str | Path) -> Cache:
    """Open a teacher cache for reading.

    Args:
        path: its folder, as given to ``dump_teacher``.

    Returns:
        A mapping from split names to views; nothing is decoded yet.

    Raises:
        CacheMissingError: there is no such folder, or it holds no teacher cache.
        CacheCorruptedError: its metadata cannot be what was written.
    """
    folder = local_path(path, "cache")
    marker = folder / GROUP_FILE
    try:
        is_there, is_group = folder.exists(), marker.is_file()
    except OSError as error:
        raise CacheMissingError(f"{marker} cannot be looked at ({error.strerror}).") from error
    if not is_group:
        raise CacheMissingError(
            f"{folder} {'is no teacher cache' if is_there else 'does not exist'}. Make it with "
            "kdcache dump-teacher, or correct the path."
        )
    attributes = read_json(marker).get("attributes")
    if not isinstance(attributes, dict) or ATTRIBUTE not in attributes:
        raise CacheMissingError(f"{folder} is a Zarr group, but no teacher cache.")
    check_format(attributes[ATTRIBUTE], str(marker))
    return Cache(folder)


def check_format(value: object, where: str) -> None:
    """Raise CacheCorruptedError for a cache of a format that this package does not read."""
    version = Fields(value, where).integer("format")
    if version != FORMAT_VERSION:
        raise CacheCorruptedError(
            f"{where} has format version {version}; this kdcache reads {FORMAT_VERSION}. Install "
            "the version that wrote it, or dump again."
        )
