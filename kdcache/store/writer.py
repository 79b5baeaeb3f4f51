"""Writing a view: its manifest once, then whole shards, each its own attempt and commit.

Writers share nothing and take no locks: whoever commits a shard first has written it.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from kdcache.columns import NUM_ENTRIES, NUM_POSITIONS, Array, num_rows
from kdcache.errors import AlignmentError, CacheCorruptedError, CacheError, UsageError
from kdcache.store.cache import check_format
from kdcache.store.format.arrays import MAX_DECODED_BYTES, StoredArray, write_array
from kdcache.store.format.commits import (
    MAX_SHARD_BYTES,
    Commit,
    ManifestChangedError,
    check_origins,
    committed_shards,
    read_commits,
    read_index,
    recorded_shards,
    write_commit,
    write_index,
)
from kdcache.store.format.fields import MAX_NUMBER
from kdcache.store.format.files import (
    fsync_folder,
    fsync_tree,
    group_content,
    read_json,
    set_aside,
    write_group,
    write_json,
    writing_into,
)
from kdcache.store.format.layout import (
    ATTRIBUTE,
    COMMITS_FOLDER,
    END_FILE,
    FORMAT_VERSION,
    GROUP_FILE,
    ORDER,
    attempt_folder,
    commit_file,
    new_attempt,
    view_folder,
)
from kdcache.store.format.manifest import Manifest, check_same, read_manifest
from kdcache.store.format.tables import check_tables, rewrite_damaged, write_tables

log = logging.getLogger(__name__)


def check_cache_path(cache: Path) -> None:
    """Raise CacheError where a cache cannot be made: the path holds something else."""
    marker = cache / GROUP_FILE
    with writing_into(cache):
        # What there is before the marker: whoever makes a cache writes the marker first, under a
        # temporary name, so a racing or a killed creation leaves nothing else without it.
        is_new = not cache.exists() or (
            cache.is_dir()
            and all(path.name.startswith(f".{GROUP_FILE}.") for path in cache.iterdir())
        )
        is_marked = marker.is_file()
    if is_marked:
        attributes = read_json(marker).get("attributes")
        if isinstance(attributes, dict) and ATTRIBUTE in attributes:
            check_format(attributes[ATTRIBUTE], str(marker))
            return
    elif is_new:
        return
    raise CacheError(
        f"{cache} exists and is no teacher cache. Nothing was written. Choose another path, or "
        "remove what is there yourself."
    )


class ViewWriter:
    """Adds shards to one view of one split.

    Use :meth:`create`; several writers, in any number of processes, may hold the same view.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest

    @classmethod
    def create(
        cls, cache: Path, manifest: Manifest, tables: Mapping[str, Array] | None = None
    ) -> ViewWriter:
        """Create the view, or join one whose manifest agrees.

        The first writer's ``samples_per_shard``, tables and references stand for all: take them
        from the writer's ``manifest``. A table that is damaged, and that this run's codec comes to
        as well, is written anew.

        Raises:
            CacheError: the path holds something that is no cache, or cannot be written.
            CacheCorruptedError: there are shards, but no manifest that says of what.
            MismatchError: the view was begun with other settings; nothing was written.
            ForeignShardError: a shard in it is of another dump; nothing was written.
        """
        check_cache_path(cache)
        view = view_folder(cache, manifest.split, manifest.view)
        with writing_into(view):
            is_new = not (view / GROUP_FILE).exists()
            if is_new:
                cls._check_unused(view)
                check_tables(tables or {}, manifest.tables)
                cls._write_new(cache, view, manifest, tables or {})
            found = read_manifest(view)
            check_same(found, manifest, view)
            if not is_new:
                check_origins(view, found)
                rewrite_damaged(cache, tables or {}, found.tables.values())
        return cls(view, found)

    @staticmethod
    def _check_unused(view: Path) -> None:
        """A manifest comes before the first commit: where it was lost, no other may take over."""
        if recorded_shards(view) and not (view / GROUP_FILE).exists():
            raise CacheCorruptedError(
                f"{view} holds shards, but the manifest that says of which teacher and data "
                f"({GROUP_FILE}) is lost. Nothing was written. Restore it, or move {view.parent} "
                "away and dump this split again."
            )

    @staticmethod
    def _write_new(
        cache: Path, view: Path, manifest: Manifest, tables: Mapping[str, Array]
    ) -> None:
        cache.mkdir(parents=True, exist_ok=True)
        write_group(cache, {ATTRIBUTE: {"format": FORMAT_VERSION}})
        (view / COMMITS_FOLDER).mkdir(parents=True, exist_ok=True)
        write_group(view.parent, {})
        write_tables(cache, tables)
        # The manifest is what makes it a view, so it comes after all that readers of one need.
        write_group(view, {ATTRIBUTE: manifest.to_json()})
        # A synced file is lost with the name of a folder above it.
        for folder in (view, view.parent, cache):
            fsync_folder(folder)
        with contextlib.suppress(PermissionError):  # a folder that may be entered, not listed
            fsync_folder(cache.parent)

    @classmethod
    def extend(cls, cache: Path, manifest: Manifest, before: Manifest) -> ViewWriter:
        """Join a view whose dataset has grown at its end; what is there stays as it is.

        Args:
            cache: folder of the cache.
            manifest: as this run would write it.
            before: the same for no more samples than the view has; must be what the view says.

        Raises:
            MismatchError: the view is of other data or settings; nothing was written.
            ForeignShardError: a shard in it is of another dump; nothing was written.
            UsageError: the view is of a stream.
        """
        view = view_folder(cache, manifest.split, manifest.view)
        found = read_manifest(view)
        if (view / END_FILE).exists() or found.is_open:
            raise UsageError(f"{view} is of a stream, which cannot be extended.")
        check_same(found, before, view)
        check_origins(view, found)
        grown = found.grown_to(manifest)
        with writing_into(view):
            # By one rename: a reader finds the manifest of before, or this one.
            write_json(view / GROUP_FILE, group_content({ATTRIBUTE: grown.to_json()}), replace=True)
        return cls(view, grown)

    def end(self, num_samples: int) -> None:
        """Write down how long a stream is, before its last shard is written.

        Raises:
            AlignmentError: another run over the stream came to another end.
        """
        with writing_into(self.folder):
            write_json(self.folder / END_FILE, {"num_samples": num_samples}, replace=False)
        # The end record of another job may have been first: what stands on disk decides.
        self.manifest = read_manifest(self.folder)
        if self.manifest.num_samples != num_samples:
            raise AlignmentError(
                f"the stream of {self.folder} ended after {self.manifest.num_samples:,} samples "
                f"before, and after {num_samples:,} now. A stream must give the same samples "
                "every time."
            )

    def pending(self) -> tuple[int, ...]:
        """Numbers of the shards without a commit, ascending."""
        return self.manifest.missing(committed_shards(self.folder, self.manifest))

    def write_shard(
        self,
        shard: int,
        columns: Mapping[str, Array],
        statistics: Mapping[str, float] | None = None,
        labels: Mapping[str, Any] | None = None,
    ) -> Commit | None:
        """Write all columns of a shard as a new attempt and commit it.

        Args:
            shard: its number, 0 to num_shards - 1.
            columns: name -> rows (rows, *shape) for every column of the manifest.
            statistics: sums for reports, finite numbers.
            labels: digests of the labels of some samples, as JSON can say them.

        Returns:
            The commit, or None where another attempt at this shard was committed first.

        Raises:
            UsageError: columns are missing, unknown, or of another type, shape or length; there
                is no such shard; a statistic is no finite number.
        """
        if not 0 <= shard < self.manifest.num_shards:
            raise UsageError(f"{self.folder} has {self.manifest.num_shards} shards, no {shard}.")
        sums = {name: float(number) for name, number in (statistics or {}).items()}
        if not all(abs(number) <= MAX_NUMBER for number in sums.values()):  # NaN is not, either
            raise UsageError(f"statistics of shard {shard} are not all finite: {sums}.")
        start, stop = self.manifest.shard_range(shard)
        self._check(columns, stop - start)
        attempt = new_attempt()
        group = attempt_folder(self.folder, shard, attempt)
        with writing_into(self.folder):
            try:
                arrays = self._write_arrays(group, columns)
            except BaseException:
                # This attempt is nobody else's, and on a full disk it would stand in the way.
                shutil.rmtree(group, ignore_errors=True)
                raise
            commit = Commit(
                shard=shard,
                attempt=attempt,
                start=start,
                stop=stop,
                arrays=arrays,
                origin=self.manifest.origin,
                statistics=sums,
                labels=labels or {},
            )
            if not write_commit(self.folder, commit):
                log.warning(
                    "shard %d was committed by another job; this attempt does not count", shard
                )
                return None
            # A job may sleep between its last sync and its commit, and somebody clean meanwhile.
            # Looked at after the commit: a committed attempt is never cleaned away.
            if not group.is_dir():
                set_aside(commit_file(self.folder, shard))
                raise CacheError(
                    f"{group} was removed by somebody else before it was committed. Run the same "
                    "command again; it dumps this shard again."
                )
        return commit

    def _write_arrays(self, group: Path, columns: Mapping[str, Array]) -> dict[str, StoredArray]:
        """Write an attempt and make it durable."""
        group.mkdir()
        write_group(group, {})
        arrays = {
            column.name: write_array(group, column, columns[column.name])
            for column in self.manifest.columns
        }
        # On disk before the commit record is, which says that it is there.
        fsync_tree(group)
        fsync_folder(self.folder)
        return arrays

    def _check(self, columns: Mapping[str, Array], num_samples: int) -> None:
        names = {column.name for column in self.manifest.columns}
        if set(columns) != names:
            raise UsageError(f"a shard takes the columns {sorted(names)}, not {sorted(columns)}.")
        # Counts first: how many rows the others need is taken from them.
        for column in sorted(self.manifest.columns, key=lambda column: ORDER.index(column.per)):
            column.check_rows(columns[column.name], num_rows(column, columns, num_samples))
            if column.name in (NUM_POSITIONS, NUM_ENTRIES) and (columns[column.name] < 0).any():
                raise UsageError(f"column {column.name!r} has a negative count.")
            if columns[column.name].nbytes > MAX_DECODED_BYTES:
                self._too_large(f"column {column.name!r}", columns[column.name].nbytes)
        total = sum(rows.nbytes for rows in columns.values())
        if total > MAX_SHARD_BYTES:
            self._too_large("all columns together", total)

    def _too_large(self, what: str, num_bytes: int) -> NoReturn:
        raise UsageError(
            f"{what} of one shard has {num_bytes:,} bytes, at most {MAX_DECODED_BYTES:,} a column "
            f"and {MAX_SHARD_BYTES:,} in all are allowed. Ask for fewer samples per shard."
        )

    def finish(self) -> bool:
        """Gather the commits into the index once every shard has one; True if that is so.

        An index that says anything else, after a repair, is replaced: the records decide. But one
        that is whole, and of another manifest, says that the manifest was changed.

        Raises:
            CacheCorruptedError: a record is damaged, or the manifest was changed.
            CacheError: the index cannot be written.
        """
        if self.manifest.is_open or self.pending():
            return False
        commits = read_commits(self.folder, self.manifest)
        try:
            is_current = read_index(self.folder, self.manifest) == commits
        except ManifestChangedError:
            raise
        except CacheCorruptedError:
            is_current = False
        if not is_current:
            with writing_into(self.folder):
                write_index(self.folder, self.manifest, commits)
        return True
