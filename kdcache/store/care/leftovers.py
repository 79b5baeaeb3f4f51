"""What interrupted dumps and repairs leave behind in a cache: found, weighed, removed on request.

Nothing here follows a symbolic link or leaves the cache's folder, and a name that is not ours is
never touched. Whatever may still be needed, or may belong to a job that is running, stays.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kdcache.columns import is_name
from kdcache.errors import CacheCorruptedError, CacheError
from kdcache.store.cache import Cache
from kdcache.store.care.survey import Survey, survey
from kdcache.store.format.files import set_aside
from kdcache.store.format.layout import (
    COMMIT_NAME,
    COMMITS_FOLDER,
    END_FILE,
    GROUP_FILE,
    INDEX_FILE,
    TABLES_FOLDER,
)
from kdcache.store.local.build import abandoned_builds
from kdcache.store.view import View

Kind = Literal["attempt", "temporary", "put aside", "table", "local copy"]

_OURS = r"(?:zarr|index|end)\.json|shard-\d{6,12}\.(?:json|[0-9a-f]{12})|[0-9a-f]{32}"
_TEMPORARY = re.compile(rf"\.(?:{_OURS})\.[0-9a-f]{{12}}")
_ASIDE = re.compile(rf"\.(?:{_OURS})\.[0-9a-f]{{12}}\.aside")
_ATTEMPT = re.compile(r"shard-(\d{6,12})\.([0-9a-f]{12})")
_TABLE = re.compile(r"[0-9a-f]{32}")
_VIEW = re.compile(r"view-\d{3,6}")
_IN_AN_ARRAY = re.compile(
    r"zarr\.json|\.zarr\.json\.[0-9a-f]{12}|c(?:/0)*"
    r"|(?:zarr|c(?:/0)*)\.[0-9a-f]{32}\.partial"  # zarr-python's temporary names
)


@dataclass(frozen=True, kw_only=True)
class Leftover:
    """Something of ours that no reader needs.

    Attributes:
        path: the file or folder.
        kind: what it is.
        num_bytes: of all files in it.
        newest_s: when anything in it was last changed, in seconds since 1970.
    """

    path: Path
    kind: Kind
    num_bytes: int
    newest_s: float


@dataclass(frozen=True, kw_only=True)
class Leftovers:
    """What was found in a cache.

    Attributes:
        old: may be removed.
        recent: changed so lately that a running job may still need it; stays.
        foreign: not ours, or with something in it that is not; stays.
        unclear: what keeps attempts from being judged, one line each.
    """

    old: tuple[Leftover, ...]
    recent: tuple[Leftover, ...]
    foreign: tuple[Path, ...]
    unclear: tuple[str, ...]


def find_leftovers(
    cache: Cache, *, older_than_s: float, local_copies: Path | None = None
) -> Leftovers:
    """Look through a cache; metadata only.

    Args:
        cache: opened.
        older_than_s: seconds since the newest change in what may be removed.
        local_copies: a folder of local copies, whose abandoned builds are looked for, too.

    Raises:
        CacheError: a folder cannot be looked through.
    """
    walk = _Walk()
    since_s = time.time() - older_than_s
    try:
        walk.cache(cache)
        for folder in abandoned_builds(local_copies, older_than_s) if local_copies else ():
            walk.add(folder, "local copy")
    except OSError as error:
        raise CacheError(f"{error.filename} cannot be looked at ({error.strerror}).") from error
    found = sorted(walk.found, key=lambda leftover: leftover.path)
    return Leftovers(
        old=tuple(leftover for leftover in found if leftover.newest_s <= since_s),
        recent=tuple(leftover for leftover in found if leftover.newest_s > since_s),
        foreign=tuple(sorted(walk.foreign)),
        unclear=tuple(walk.unclear),
    )


def remove_leftover(cache: Cache, leftover: Leftover) -> bool:
    """Remove a leftover of a cache; False where it turned out to be needed.

    Raises:
        CacheError: it cannot be removed, or has been moved out of the cache.
    """
    path = leftover.path
    if leftover.kind != "local copy":
        for folder in path.parents[: len(path.relative_to(cache.path).parts) - 1]:
            if folder.is_symlink():
                raise CacheError(f"{folder} is a symbolic link now. {path} was not removed.")
    try:
        if leftover.kind == "attempt":
            # Out of the way first: a job that was asleep, and commits it now, finds out; see
            # ViewWriter.write_shard.
            if _is_needed(path):
                return False
            aside = set_aside(path)
            if _is_needed(path):
                aside.rename(path)
                return False
            path = aside
        if stat.S_ISDIR(path.lstat().st_mode):
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError as error:
        raise CacheError(f"{path} cannot be removed ({error.strerror}).") from error
    return True


def _is_needed(attempt: Path) -> bool:
    """Whether a commit names an attempt, or that cannot be told."""
    found = survey(View(cache=attempt.parents[2], folder=attempt.parent))
    return _may_count(found, attempt.name)


def _may_count(found: Survey, name: str) -> bool:
    parts = _ATTEMPT.fullmatch(name)
    if parts is None:
        return True
    shard, attempt = int(parts[1]), parts[2]
    commits = [c for c in (found.records.get(shard), found.index.get(shard)) if c is not None]
    if found.index_problem or found.manifest_problem:
        return not commits or any(commit.attempt == attempt for commit in commits)
    is_doubtful = shard in found.record_problems or shard in found.beyond
    return is_doubtful or any(commit.attempt == attempt for commit in commits)


class _Walk:
    """What was found so far."""

    def __init__(self) -> None:
        self.found: list[Leftover] = []
        self.foreign: list[Path] = []
        self.unclear: list[str] = []
        self._tables: set[str] | None = set()  # that a manifest names; None where one is damaged

    def cache(self, cache: Cache) -> None:
        """The cache's own folder, every split, and the tables."""
        for path in self._names(cache.path):
            if path.name == TABLES_FOLDER and _is_folder(path):
                continue
            if is_name(path.name) and _is_folder(path) and _is_split(path):
                self._split(path)
            elif path.name != GROUP_FILE:
                self.foreign.append(path)
        if _is_folder(cache.path / TABLES_FOLDER):
            self._table_folder(cache.path / TABLES_FOLDER)

    def add(self, path: Path, kind: Kind, columns: Collection[str] | None = None) -> None:
        """Note a leftover, unless something in it is not ours.

        Args:
            path: the file or folder.
            kind: what it is.
            columns: names of the arrays in it; None where its name says enough.
        """
        num_bytes, newest_s = 0, 0.0
        for inner in (path, *_below(path)):
            try:
                status = inner.lstat()
            except FileNotFoundError:  # a job is at work on it
                return
            is_folder = stat.S_ISDIR(status.st_mode)
            parts = inner.relative_to(path).parts
            is_known = columns is None or _is_in_array(parts, is_folder, columns)
            if not (is_folder or stat.S_ISREG(status.st_mode)) or not is_known:
                self.foreign.append(inner)
                return
            num_bytes += 0 if is_folder else status.st_size
            newest_s = max(newest_s, status.st_mtime)
        self.found.append(Leftover(path=path, kind=kind, num_bytes=num_bytes, newest_s=newest_s))

    def _names(self, folder: Path, columns: Collection[str] = ()) -> Iterator[Path]:
        """What lies in a folder and is not temporary; what is, is noted."""
        for path in sorted(folder.iterdir()):
            if _ASIDE.fullmatch(path.name):
                self.add(path, "put aside", columns)
            elif _TEMPORARY.fullmatch(path.name):
                self.add(path, "temporary", columns)
            else:
                yield path

    def _split(self, folder: Path) -> None:
        for path in self._names(folder):
            if _VIEW.fullmatch(path.name) and _is_folder(path):
                self._view(View(cache=folder.parent, folder=path))
            elif path.name != GROUP_FILE:
                self.foreign.append(path)

    def _view(self, view: View) -> None:
        try:
            found = survey(view)
        except FileNotFoundError:  # its creation was interrupted
            return
        except CacheCorruptedError as error:
            self._tables = None
            self.unclear.append(str(error))
            return
        if self._tables is not None:
            self._tables |= set(view.manifest.tables.values())
        columns = {column.name for column in view.manifest.columns}
        commits = view.folder / COMMITS_FOLDER
        known = {view.folder / name for name in (GROUP_FILE, INDEX_FILE, END_FILE)}
        for path in self._names(view.folder, columns):
            if _ATTEMPT.fullmatch(path.name) and _is_folder(path):
                if not _may_count(found, path.name):
                    self.add(path, "attempt", columns)
            elif path not in known and not (path == commits and _is_folder(path)):
                self.foreign.append(path)
        if _is_folder(commits):
            self.foreign += [p for p in self._names(commits) if not COMMIT_NAME.fullmatch(p.name)]
        problems = [found.manifest_problem, found.index_problem, *found.record_problems.values()]
        self.unclear += [problem for problem in problems if problem]

    def _table_folder(self, folder: Path) -> None:
        for path in self._names(folder):
            if _TABLE.fullmatch(path.name) and _is_folder(path):
                if self._tables is not None and path.name not in self._tables:
                    self.add(path, "table", ())
            elif path.name != GROUP_FILE:
                self.foreign.append(path)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _is_split(folder: Path) -> bool:
    return any(_VIEW.fullmatch(path.name) for path in folder.iterdir())


def _below(path: Path) -> Iterator[Path]:
    """Everything below a folder, without following links; nothing for a file."""
    if path.is_symlink():
        return
    for root, folders, names in os.walk(path):
        yield from (Path(root) / name for name in (*folders, *names))


def _is_in_array(parts: tuple[str, ...], is_folder: bool, columns: Collection[str]) -> bool:
    """Whether a path in an attempt or a table is one that zarr-python or we write there."""
    if parts and parts[0] in columns:
        parts = parts[1:]
        if not parts:
            return is_folder
    return not parts or _IN_AN_ARRAY.fullmatch("/".join(parts)) is not None
