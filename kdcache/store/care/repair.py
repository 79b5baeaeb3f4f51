"""Making a damaged view one that a dump can complete: what is wrong is marked as not there.

Nothing is deleted. Records, indexes and tables that are damaged get a dot name, which means
nothing to readers; the same ``dump-teacher`` command then redoes what is missing, and no more.
What the index still knows of a lost record is written down again.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from kdcache.columns import is_name
from kdcache.errors import CacheCorruptedError, CacheError, UsageError
from kdcache.store.care.survey import shard_problem, survey
from kdcache.store.format.commits import (
    Commit,
    committed_shards,
    read_commit,
    read_commits,
    read_index,
    recorded_shards,
    write_commit,
    write_index,
)
from kdcache.store.format.fields import Fields
from kdcache.store.format.files import (
    check_group,
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
    INDEX_FILE,
    TABLES_FOLDER,
    commit_file,
)
from kdcache.store.format.manifest import UNKNOWN_LENGTH, Manifest, read_manifest
from kdcache.store.format.tables import read_table
from kdcache.store.view import View


@dataclass(frozen=True, kw_only=True)
class Repair:
    """What a repair did to a view.

    Attributes:
        split: its name.
        pending: shards that the next dump has to do, ascending.
        done: what was changed, one sentence each; empty where nothing had to be.
    """

    split: str
    pending: tuple[int, ...]
    done: tuple[str, ...]


def repair_view(view: View, damaged: Collection[int]) -> Repair:
    """Mark what is damaged in a view as pending, and put right what needs no teacher.

    Args:
        view: as it was opened for the verification.
        damaged: shards with a problem of any kind.

    Raises:
        CacheCorruptedError: the manifest is damaged, which nothing can repair.
        CacheError: a folder is a symbolic link, or cannot be written.
    """
    _check_folders(view)
    with writing_into(view.folder):
        work = _Work(view)
        work.groups()
        work.tables()
        work.shards(damaged)
        return work.finish()


def repair_marker(cache: Path) -> str:
    """Write the cache's own ``zarr.json`` anew where views lie below it; what was done.

    It says the format's version and nothing else, so nothing is lost with it.

    Raises:
        CacheCorruptedError: there is no view whose manifest can be read.
    """
    marker = cache / GROUP_FILE
    if not any(_is_manifest(path) for path in cache.glob(f"*/view-000/{GROUP_FILE}")):
        raise CacheCorruptedError(
            f"{marker} is damaged, and nothing below it is a view of a teacher cache that can be "
            "read. Nothing was changed. Restore it from a copy."
        )
    with writing_into(cache):
        set_aside(marker)
        write_group(cache, {ATTRIBUTE: {"format": FORMAT_VERSION}})
    return f"{marker} was written anew"


def _is_manifest(marker: Path) -> bool:
    try:
        read_manifest(marker.parent)
    except (CacheCorruptedError, OSError):
        return False
    return True


def _check_folders(view: View) -> None:
    """Raise CacheError where a change would be made outside the cache."""
    for folder in (view.folder.parent, view.folder, view.folder / COMMITS_FOLDER):
        if folder.is_symlink():
            raise CacheError(
                f"{folder} is a symbolic link. Nothing was changed: a repair stays within the "
                "cache's own folders. Put the folder in the link's place, and repair then."
            )


class _Work:
    """A view under repair, and what was done to it so far."""

    def __init__(self, view: View) -> None:
        self._done: list[str] = []
        self._folder = view.folder
        self._mend_end()
        self._view = View(cache=view.cache, folder=view.folder)
        self._found = survey(self._view)
        if self._found.manifest_problem:
            raise CacheCorruptedError(self._found.manifest_problem)

    def _aside(self, path: Path, what: str) -> None:
        if path.is_symlink() or path.exists():
            set_aside(path)
            self._done.append(f"{path} was put aside: {what}")

    def _mend_end(self) -> None:
        """A wrong end record goes; the index may know the right one, a stream says it again."""
        record = self._folder / END_FILE
        if not record.exists():
            return
        is_wrong, length = _wrong_end(self._folder)
        if is_wrong:
            self._aside(record, "the next dump asks the stream for its end")
        if length is not None:
            write_json(record, {"num_samples": length}, replace=False)
            self._done.append(f"{record} was written from the index")

    def groups(self) -> None:
        """Groups above the view hold nothing; a damaged one is written anew."""
        for folder in (self._view.cache / TABLES_FOLDER, self._folder.parent):
            if not folder.is_dir() or folder.is_symlink():
                continue
            try:
                check_group(folder / GROUP_FILE, is_bare=False)
            except CacheCorruptedError:
                self._aside(folder / GROUP_FILE, "it was written anew")
                write_group(folder, {})

    def tables(self) -> None:
        """A damaged table is not there; the next dump writes it, if its codec comes to it."""
        folder = self._view.cache / TABLES_FOLDER
        for name, digest in self._view.manifest.tables.items():
            try:
                read_table(self._view.cache, digest)
            except CacheCorruptedError:
                if is_name(digest) and not folder.is_symlink():
                    what = f"the next dump writes table {name!r} if its codec comes to the same one"
                    self._aside(folder / digest, what)

    def shards(self, damaged: Collection[int]) -> None:
        """Records that do not hold are put aside; what the index knows better is written down."""
        found = self._found
        doubtful = {*damaged, *found.record_problems, *found.beyond}
        doubtful |= {n for n, c in found.records.items() if found.index.get(n, c) != c}
        for shard in sorted({*doubtful, *found.records, *found.index}):
            record, gathered = found.records.get(shard), found.index.get(shard)
            if record is not None and (shard not in doubtful or self._is_sound(record)):
                continue
            self._aside(commit_file(self._folder, shard), "the shard is pending")
            if gathered not in (None, record) and self._is_sound(gathered):
                (self._folder / COMMITS_FOLDER).mkdir(exist_ok=True)
                write_commit(self._folder, gathered)
                self._done.append(f"the commit record of shard {shard} was written from the index")

    def _is_sound(self, commit: Commit) -> bool:
        return not shard_problem(self._view, commit)

    def finish(self) -> Repair:
        """Bring the index in line with the records, which decide."""
        manifest, index = self._view.manifest, self._folder / INDEX_FILE
        pending = manifest.missing(committed_shards(self._folder, manifest))
        commits = () if pending else read_commits(self._folder, manifest)
        if manifest.is_open or pending or tuple(self._found.index.values()) != commits:
            self._aside(index, "it is gathered anew")
        if not (manifest.is_open or pending or index.exists()):
            write_index(self._folder, manifest, commits)
        return Repair(split=manifest.split, pending=pending, done=tuple(self._done))


def _wrong_end(folder: Path) -> tuple[bool, int | None]:
    """Whether a stream's end record is wrong, and the right length where the index knows it."""
    try:
        manifest = read_manifest(folder)
    except CacheCorruptedError:
        if not _without_end(folder).is_open:  # raises where the manifest itself is damaged
            raise
        return True, None
    found = survey(View(cache=folder.parents[1], folder=folder))
    if found.index or not (found.manifest_problem or found.beyond):
        return False, None
    if (folder / INDEX_FILE).exists() and not found.index_problem:  # it is whole
        length = _indexed_length(folder, manifest)
        return length is not None, length
    # Where the manifest is right and the end alone is wrong, all blocks but the last fit.
    last = max(recorded_shards(folder), default=0)
    try:
        for shard in recorded_shards(folder) - {last, *found.record_problems}:
            read_commit(folder, replace(manifest, num_samples=UNKNOWN_LENGTH), shard)
    except CacheCorruptedError:
        return False, None
    return True, None


def _indexed_length(folder: Path, manifest: Manifest) -> int | None:
    """The length that makes the manifest the one that the index was gathered for."""
    path = folder / INDEX_FILE
    try:
        last = Fields(read_json(path), str(path)).items("commits")[-1]
        length = Fields(last, str(path)).integer("stop", at_least=1)
        read_index(folder, replace(manifest, num_samples=length))
    except (CacheCorruptedError, UsageError, OSError, IndexError):
        return None
    return length


def _without_end(folder: Path) -> Manifest:
    attributes = read_json(folder / GROUP_FILE).get("attributes")
    content = attributes.get(ATTRIBUTE) if isinstance(attributes, dict) else None
    return Manifest.from_json(content, str(folder / GROUP_FILE))
