"""Reading everything in a cache and holding it against its checksums, counts and commits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kdcache.columns import KEY, Array
from kdcache.errors import CacheCorruptedError, CacheError, CacheMissingError
from kdcache.store import View, find_local_copy, open_cache
from kdcache.store.care.repair import repair_marker, repair_view
from kdcache.store.care.survey import Survey, check_shard_metadata, survey
from kdcache.store.format.commits import Commit, manifest_checksum, recorded_manifest
from kdcache.store.format.files import check_group
from kdcache.store.format.layout import GROUP_FILE, TABLES_FOLDER, view_name
from kdcache.tools.fidelity import fidelity_notes

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class DamagedShard:
    """A shard that a verification found wrong.

    Attributes:
        split: its split.
        shard: its number.
        start: first sample.
        stop: one past the last sample.
        problem: what is wrong with it.
    """

    split: str
    shard: int
    start: int
    stop: int
    problem: str

    def __str__(self) -> str:
        samples = f"samples {self.start} to {self.stop - 1}"
        return f"{self.split}: shard {self.shard} ({samples}): {self.problem}"


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What a verification found.

    Attributes:
        path: of the cache.
        shards: that were read.
        samples: that have sound targets.
        problems: one line each, those of damaged shards too; empty for a cache that is whole.
        notes: what is worth knowing and does not make the cache unsound, one line each.
        damaged: the shards that something is wrong with.
        local_copies: folders of the local copies that were checked.
        local_problems: what is wrong with local copies, one line each.
        repairs: what a repair changed, one line each.
        pending: split -> shards that the next dump has to do; only of splits that were repaired.
    """

    path: str
    shards: int
    samples: int
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()
    damaged: tuple[DamagedShard, ...] = ()
    local_copies: tuple[str, ...] = ()
    local_problems: tuple[str, ...] = ()
    repairs: tuple[str, ...] = ()
    pending: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def is_sound(self) -> bool:
        """Whether every split is complete, and every checksum right, also of local copies."""
        return not (self.problems or self.local_problems)


def verify_cache(
    path: str | Path,
    *,
    progress: Progress | None = None,
    local_copies: bool = False,
    repair: bool = False,
) -> Verification:
    """Check every split of a cache: checksums, counts, commits, coverage.

    Beside what kdcache reads itself, the ``zarr.json`` files that other Zarr readers need are
    looked at. Commit records that the index has made unnecessary may be absent, but not
    contradict it.

    Args:
        path: folder of the teacher cache.
        progress: called with (split, shards done, shards in all).
        local_copies: check this machine's local copies of the splits, too.
        repair: mark what is damaged as pending; see :func:`kdcache.store.care.repair.repair_view`.
            What was found is reported as it was before.

    Raises:
        CacheError: there is no cache, or what makes it one is damaged and cannot be repaired.
    """
    check = _Check(progress)
    try:
        cache = open_cache(path)
    except CacheMissingError:
        raise
    except CacheCorruptedError as error:
        if not repair:
            raise
        check.repairs.append(repair_marker(Path(path)))
        check.problems.append(str(error))
        cache = open_cache(path)
    for split in cache:
        view = cache[split]
        is_sound = check.view(split, view)
        if local_copies:
            check.local_copy(split, view)
        if repair and not is_sound:
            check.repair(split, view)
    for folder in sorted(cache.path.glob(f"*/{view_name(0)}")):
        if folder.parent.name not in cache:
            check.problems.append(
                f"{folder.parent.name}: {folder} has no manifest ({GROUP_FILE}), which nothing can "
                "repair: restore it, or dump this split again"
            )
    if not cache.splits:
        check.problems.append(f"{path} has no split: nothing was dumped into it.")
    return check.result(str(path))


class _Check:
    """What was read, found and done so far."""

    def __init__(self, progress: Progress | None) -> None:
        self.shards = self.samples = 0
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.damaged: list[DamagedShard] = []
        self.local_copies: list[str] = []
        self.local_problems: list[str] = []
        self.repairs: list[str] = []
        self.pending: dict[str, tuple[int, ...]] = {}
        self._progress = progress

    def result(self, path: str) -> Verification:
        """All of it."""
        return Verification(
            path=path,
            shards=self.shards,
            samples=self.samples,
            problems=tuple(self.problems),
            notes=tuple(self.notes),
            damaged=tuple(self.damaged),
            local_copies=tuple(self.local_copies),
            local_problems=tuple(self.local_problems),
            repairs=tuple(self.repairs),
            pending=self.pending,
        )

    def view(self, split: str, view: View) -> bool:
        """Check one split; whether all of it is sound."""
        before = len(self.problems)
        try:
            found = survey(view)
        except CacheError as error:
            self.problems.append(f"{split}: {error}")
            return False
        self._coverage(split, view, found)
        self._metadata(split, view, found)
        try:
            view.read_tables()
        except CacheError as error:
            self.problems.append(f"{split}: {error}")
        self._shards(split, view, found)
        self.notes += fidelity_notes(view.manifest, found.commits)
        return len(self.problems) == before

    def _coverage(self, split: str, view: View, found: Survey) -> None:
        """Shards that are not there, and what is wrong with the index."""
        manifest = view.manifest
        if manifest.is_open:
            self.problems.append(f"{split}: the end of the stream was not reached")
        elif (
            missing := manifest.missing({*found.index, *found.records, *found.record_problems})
        ) and not found.manifest_problem:
            first, last = manifest.shard_range(missing[0])
            self.problems.append(
                f"{split}: {len(missing)} of {manifest.num_shards} shards are not there; the first "
                f"is shard {missing[0]} (samples {first} to {last - 1})"
            )
        for problem in (found.manifest_problem, found.index_problem):
            if problem:
                self.problems.append(f"{split}: {problem}")
        if found.beyond:
            self.problems.append(
                f"{split}: there are records of shards that it cannot have, the first of shard "
                f"{found.beyond[0]}"
            )

    def _metadata(self, split: str, view: View, found: Survey) -> None:
        """What no student reads: groups, for other Zarr readers, and the manifest's own story."""
        folders = [view.cache, view.folder.parent, view.folder]
        if view.manifest.tables:
            folders.append(view.cache / TABLES_FOLDER)
        for folder in folders:
            try:
                check_group(folder / GROUP_FILE, is_bare=False)
            except CacheCorruptedError as error:
                self.problems.append(f"{split}: {error}")
        if found.index and recorded_manifest(view.folder) != manifest_checksum(view.manifest):
            self.problems.append(
                f"{split}: {view.folder / GROUP_FILE} was changed after the dump in what is only "
                "for people (created, references, pilot). Restore it; where the change was meant, "
                "remove the index beside it, which the next dump-teacher gathers again"
            )

    def _shards(self, split: str, view: View, found: Survey) -> None:
        """Every shard that has a commit: its record, its metadata, its rows, its keys."""
        wrong = dict(found.record_problems)
        for shard, commit in found.index.items():
            if found.records.get(shard, commit) != commit:
                wrong[shard] = "its commit record is not what the index says"
        keys = [rows[KEY] for rows in self._read(split, view, found, wrong) if KEY in rows]
        for shard, problem in sorted(wrong.items()):
            start, stop = view.manifest.shard_range(shard)
            damaged = DamagedShard(
                split=split, shard=shard, start=start, stop=stop, problem=problem
            )
            self.damaged.append(damaged)
            self.problems.append(str(damaged))
        every = np.concatenate(keys) if keys else np.zeros(0)
        repeated = len(every) - len(np.unique(every))
        if repeated:
            self.problems.append(f"{split}: {repeated} keys stand there more than once")

    def _read(
        self, split: str, view: View, found: Survey, wrong: dict[int, str]
    ) -> Iterator[dict[str, Array]]:
        """The columns of every sound shard; what is wrong with the others goes into ``wrong``."""
        for number, commit in enumerate(found.commits, start=1):
            self.shards += 1
            try:
                columns = view.read_shard(commit)
            except CacheError as error:
                wrong[commit.shard] = str(error)
            else:
                self.samples += commit.stop - commit.start
                yield columns
                _check_metadata(view, commit, wrong)
            if self._progress is not None:
                self._progress(split, number, len(found.commits))

    def local_copy(self, split: str, view: View) -> None:
        """Check the local copy of a split on this machine, if there is one."""
        try:
            _ = view.digest
        except CacheError:  # nobody can use a copy of it
            return
        try:
            copy = find_local_copy(view)
            if copy is not None:
                self.local_copies.append(str(copy.location))
                copy.check()
        except CacheError as error:
            self.local_problems.append(f"{split}: {error}")

    def repair(self, split: str, view: View) -> None:
        """Mark what is damaged in a split as pending."""
        try:
            done = repair_view(
                view, [found.shard for found in self.damaged if found.split == split]
            )
        except CacheError as error:
            self.repairs.append(f"{split}: nothing was changed, this cannot be repaired: {error}")
            return
        self.repairs += [f"{split}: {line}" for line in done.done]
        self.pending[split] = done.pending


def _check_metadata(view: View, commit: Commit, wrong: dict[int, str]) -> None:
    try:
        check_shard_metadata(view, commit)
    except CacheError as error:
        wrong.setdefault(commit.shard, str(error))
