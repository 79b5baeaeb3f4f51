"""The copy that training reads: a view decoded once into flat records, at memmap speed.

Small copies live in memory; larger ones in a folder named by the view's digest, built once under
a lock and shared by all students and DataLoader workers on the machine.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdcache.columns import NUM_POSITIONS, Array, Per
from kdcache.errors import CacheCorruptedError, CacheError, UsageError
from kdcache.paths import local_path
from kdcache.store.format.fields import Fields
from kdcache.store.format.files import FULL, is_as_written, read_json, size_of
from kdcache.store.format.manifest import Manifest
from kdcache.store.local.build import META_FILE, Progress, build, file_crc, fill
from kdcache.store.local.locks import taking_turns
from kdcache.store.local.records import TABLES, RecordTypes, Tables, take_records
from kdcache.store.view import View

IN_MEMORY_BYTES = 64 << 20
"""Copies up to this size are decoded into memory and leave nothing on disk."""

_LAYOUT = 0
"""Version of the copy's files; part of its name, so that an older copy is never misread."""

_MAX_META_BYTES = 1 << 20


class LocalCopy:
    """Random access to a decoded view; made by :func:`open_local_copy`.

    Attributes:
        manifest: of the view.
        location: folder of the mapped files, None where the copy lives in memory.
    """

    def __init__(
        self, manifest: Manifest, types: RecordTypes, tables: Tables, location: Path | None
    ) -> None:
        self.manifest = manifest
        self.location = location
        self._types = types
        self._tables = tables

    def __len__(self) -> int:
        return self.manifest.num_samples

    def __getstate__(self) -> dict[str, Any]:
        """Mapped files travel to a spawned worker by name, not by content."""
        if self.location is None:
            return self.__dict__
        # A spawned worker maps the files itself: pickled tables would be a copy in each worker.
        lengths = {per: len(table) for per, table in self._tables.items()}
        return {**self.__dict__, "_tables": lengths}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.location is not None:
            self._tables = _map_tables(self._types, state["_tables"], self.location)

    def column(self, name: str) -> Array:
        """A whole column per sample, (N, *shape), such as the fingerprints."""
        if name == NUM_POSITIONS and self._types.num_positions is not None:
            return np.full(len(self), self._types.num_positions, np.int32)
        if not any(c.name == name and c.per == "sample" for c in self.manifest.columns):
            raise UsageError(f"{name!r} is no column per sample.")
        return self._tables["sample"][name]

    def take(self, samples: Sequence[int] | Array) -> dict[str, Array]:
        """Rows of some samples, in the order asked for.

        Args:
            samples: (B,) sample numbers, any order, repeats allowed.

        Returns:
            Column name -> rows: (B, ...) per sample, (sum P, ...) per position flat over the
            samples, (sum E, ...) per entry flat over the positions. ``num_positions`` is
            always among them.

        Raises:
            IndexError: a number below 0 (no counting from the end here) or beyond the last sample.
        """
        wanted = np.asarray(samples, np.int64)
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < len(self)):
            raise IndexError(f"samples are numbered 0 to {len(self) - 1}.")
        return take_records(self.manifest.columns, self._types, self._tables, wanted)

    def check(self) -> None:
        """Re-read the copy and compare its checksums; CacheCorruptedError where one is wrong."""
        if self.location is None:
            return
        recorded = _read_meta(self.location).mapping("crc32c")
        try:
            found = {per: file_crc(self.location / per) for per in self._tables}
        except OSError as error:
            raise _damaged(self.location) from error
        if dict(recorded) != found or not is_as_written(self.location / META_FILE):
            raise _damaged(self.location)


def default_folder() -> Path:
    """``$KDCACHE_LOCAL``, or a folder of the user's cache directory."""
    chosen = os.environ.get("KDCACHE_LOCAL")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return local_path(chosen, "KDCACHE_LOCAL") if chosen else base / "kdcache"


def open_local_copy(
    view: View,
    folder: Path | None = None,
    *,
    in_memory_bytes: int = IN_MEMORY_BYTES,
    progress: Progress | None = None,
) -> LocalCopy:
    """Open the local copy of a complete view, building it on first use.

    Args:
        view: the view; every checksum in it is verified while the copy is built.
        folder: where copies live; ``default_folder()`` if None.
        in_memory_bytes: a copy up to this size lives in memory instead.
        progress: called with (shards done, shards in all) while it is built.

    Raises:
        CacheIncompleteError: shards are missing.
        CacheCorruptedError: something in the cache or in an existing copy is damaged.
        CacheError: the disk has too little room for the copy.
    """
    target = _location(view, folder)
    if size_of(target) is not None:
        return _open(view, target)
    rows = _num_rows(view)
    types = RecordTypes.of(view.manifest.columns, _fewest_and_most(view, rows["position"]))
    if types.num_bytes(rows) <= in_memory_bytes:
        tables = types.allocate(rows, lambda _, dtype, length: np.zeros(length, dtype))
        fill(view, types, tables, progress)
        return LocalCopy(view.manifest, types, tables, None)
    base = target.parent
    try:
        base.mkdir(parents=True, exist_ok=True)
        with taking_turns(target.with_name(f"{target.name}.lock"), target.is_dir):
            # Another process may have built it while this one waited for its turn.
            if not target.is_dir():
                build(view, types, rows, target, progress)
    except OSError as error:
        is_full = error.errno in FULL
        mend = "Make room there and run the same command again" if is_full else "Mend that"
        raise CacheError(
            f"the local copy of {view.folder} cannot be made in {base} ({error.strerror}). {mend}, "
            "or point KDCACHE_LOCAL (or local_copy:) at a folder of your own, on a disk with room "
            "for it. The cache itself is as it was."
        ) from error
    return _open(view, target)


def find_local_copy(view: View, folder: Path | None = None) -> LocalCopy | None:
    """The local copy of a complete view where there is one in a folder; it is not made here.

    Args:
        view: the view.
        folder: where copies live; ``default_folder()`` if None.

    Raises:
        CacheIncompleteError: shards are missing.
        CacheCorruptedError: the copy is damaged.
    """
    target = _location(view, folder)
    return None if size_of(target) is None else _open(view, target)


def _location(view: View, folder: Path | None) -> Path:
    return (folder or default_folder()) / f"{view.digest}.{_LAYOUT}"


def _fewest_and_most(view: View, num_positions: int) -> Array:
    """(2,) the fewest and the most positions of a sample, reading one shard's counts at a time."""
    fewest, most, total = np.iinfo(np.int32).max, 0, 0
    for commit in view.commits:
        counts = view.read_column(commit, NUM_POSITIONS)
        fewest, most = min(fewest, int(counts.min())), max(most, int(counts.max()))
        total += int(counts.sum(dtype=np.int64))
    if num_positions and num_positions != total:
        raise CacheCorruptedError(f"{view.folder}: counts and columns per position disagree.")
    return np.asarray([fewest, most])


def _num_rows(view: View) -> dict[Per, int]:
    """Rows of all columns of a kind, from the commits (which agree on it)."""
    rows: dict[Per, int] = dict.fromkeys(TABLES, 0)
    for column in view.manifest.columns:
        rows[column.per] = sum(commit.arrays[column.name].rows for commit in view.commits)
    return rows


def _damaged(target: Path) -> CacheCorruptedError:
    return CacheCorruptedError(
        f"the local copy {target} is damaged. Remove that folder; it is rebuilt from the cache."
    )


def _read_meta(target: Path) -> Fields:
    try:
        return Fields(read_json(target / META_FILE, _MAX_META_BYTES), str(target / META_FILE))
    except FileNotFoundError as error:
        raise _damaged(target) from error


def _open(view: View, target: Path) -> LocalCopy:
    at = _read_meta(target)
    rows = _num_rows(view)
    uniform = at.optional_integer("num_positions")
    # Any two counts that differ stand for samples of different lengths.
    types = RecordTypes.of(
        view.manifest.columns, np.asarray([0, 1] if uniform is None else [uniform])
    )
    sizes = {per: rows[per] * dtype.itemsize for per, dtype in types.tables.items()}
    try:
        is_whole = all((target / per).stat().st_size == sizes[per] for per in TABLES if sizes[per])
    except OSError as error:
        raise _damaged(target) from error
    if at.mapping("rows") != rows or types.num_positions != uniform or not is_whole:
        raise _damaged(target)
    return LocalCopy(view.manifest, types, _map_tables(types, rows, target), target)


def _map_tables(types: RecordTypes, rows: Mapping[Per, int], target: Path) -> Tables:
    def mapped(per: Per, dtype: np.dtype[Any], length: int) -> Array:
        return np.memmap(target / per, dtype, "r", shape=(length,))

    return types.allocate(rows, mapped)
