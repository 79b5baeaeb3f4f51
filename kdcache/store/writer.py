"""Writing a view: its manifest once, then whole shards, each its own attempt and commit.

Writers share nothing and take no locks: whoever commits a shard first has written it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from kdcache.columns import Array, num_rows
from kdcache.errors import CacheError, UsageError
from kdcache.store.arrays import MAX_DECODED_BYTES, write_array
from kdcache.store.commits import Commit, committed_shards, read_commits, write_commit, write_index
from kdcache.store.files import fsync_folder, fsync_tree, read_json, write_json
from kdcache.store.layout import (
    ATTRIBUTE,
    COMMITS_FOLDER,
    FORMAT_VERSION,
    GROUP_FILE,
    INDEX_FILE,
    attempt_folder,
    new_attempt,
    view_folder,
)
from kdcache.store.manifest import Manifest, check_same
from kdcache.store.tables import write_tables

log = logging.getLogger(__name__)


def _write_group(folder: Path, attributes: Mapping[str, object]) -> None:
    """A Zarr v3 group; a group that is already there stays as it is."""
    group = {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}
    write_json(folder / GROUP_FILE, group, replace=False)


def check_cache_path(cache: Path) -> None:
    """Raise CacheError where a cache cannot be made: the path holds something else."""
    marker = cache / GROUP_FILE
    if marker.is_file():
        attributes = read_json(marker).get("attributes")
        if isinstance(attributes, dict) and ATTRIBUTE in attributes:
            return
    elif not cache.exists() or (cache.is_dir() and not any(cache.iterdir())):
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

        The first writer's ``samples_per_shard`` stands for all.

        Raises:
            CacheError: the path holds something that is no cache.
            MismatchError: the view was begun with other settings; nothing was written.
        """
        check_cache_path(cache)
        view = view_folder(cache, manifest.split, manifest.view)
        (view / COMMITS_FOLDER).mkdir(parents=True, exist_ok=True)
        _write_group(cache, {ATTRIBUTE: {"format": FORMAT_VERSION}})
        _write_group(view.parent, {})
        write_tables(cache, tables or {}, manifest.tables)
        _write_group(view, {ATTRIBUTE: manifest.to_json()})
        for folder in (view, view.parent, cache):
            fsync_folder(folder)

        marker = view / GROUP_FILE
        attributes = read_json(marker).get("attributes")
        content = attributes.get(ATTRIBUTE) if isinstance(attributes, dict) else None
        found = Manifest.from_json(content, str(marker))
        check_same(found, manifest, view)
        return cls(view, found)

    def pending(self) -> tuple[int, ...]:
        """Numbers of the shards without a commit, ascending."""
        done = committed_shards(self.folder, self.manifest)
        return tuple(s for s in range(self.manifest.num_shards) if s not in done)

    def write_shard(
        self,
        shard: int,
        columns: Mapping[str, Array],
        statistics: Mapping[str, float] | None = None,
    ) -> Commit | None:
        """Write all columns of a shard as a new attempt and commit it.

        Args:
            shard: its number, 0 to num_shards - 1.
            columns: name -> rows (rows, *shape) for every column of the manifest.
            statistics: sums for reports, finite numbers.

        Returns:
            The commit, or None where another attempt at this shard was committed first.

        Raises:
            UsageError: columns are missing, unknown, or of another type, shape or length.
        """
        start, stop = self.manifest.shard_range(shard)
        self._check(columns, stop - start)
        attempt = new_attempt()
        group = attempt_folder(self.folder, shard, attempt)
        group.mkdir()
        _write_group(group, {})
        arrays = {
            column.name: write_array(group, column, columns[column.name])
            for column in self.manifest.columns
        }
        fsync_tree(group)
        fsync_folder(self.folder)
        commit = Commit(
            shard=shard,
            attempt=attempt,
            start=start,
            stop=stop,
            arrays=arrays,
            statistics=dict(statistics or {}),
        )
        if not write_commit(self.folder, commit):
            log.warning("shard %d was committed by another job; this attempt does not count", shard)
            return None
        return commit

    def _check(self, columns: Mapping[str, Array], num_samples: int) -> None:
        names = {column.name for column in self.manifest.columns}
        if set(columns) != names:
            raise UsageError(f"a shard takes the columns {sorted(names)}, not {sorted(columns)}.")
        for column in self.manifest.columns:
            column.check_rows(columns[column.name], num_rows(column, columns, num_samples))
            if columns[column.name].nbytes > MAX_DECODED_BYTES:
                raise UsageError(
                    f"column {column.name!r} of one shard has {columns[column.name].nbytes:,} "
                    f"bytes, at most {MAX_DECODED_BYTES:,} are allowed. Ask for fewer samples per "
                    "shard."
                )

    def finish(self) -> bool:
        """Gather the commits into the index once every shard has one; True if that is so."""
        if self.pending():
            return False
        if not (self.folder / INDEX_FILE).exists():
            write_index(self.folder, self.manifest, read_commits(self.folder, self.manifest))
        return True
