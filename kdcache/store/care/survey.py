"""What a view says of its shards, read from index and records without stopping at damage.

Readers stop at the first thing that is wrong; ``verify`` and repair must see all of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kdcache.errors import CacheCorruptedError
from kdcache.store.format.arrays import check_metadata
from kdcache.store.format.commits import (
    Commit,
    ForeignShardError,
    ManifestChangedError,
    read_commit,
    read_index,
    recorded_shards,
)
from kdcache.store.format.files import check_group
from kdcache.store.format.layout import COMMITS_FOLDER, GROUP_FILE, INDEX_FILE, attempt_folder
from kdcache.store.view import View


@dataclass(frozen=True, kw_only=True)
class Survey:
    """The commits of a view, from both places where they stand.

    Attributes:
        index: shard -> commit of the gathered index; empty where there is none that can be used.
        index_problem: what is wrong with the index; empty where it is sound or absent.
        manifest_problem: what is wrong with the manifest, as index or records have it.
        records: shard -> commit of the records that can be read.
        record_problems: shard -> what is wrong with its record.
        beyond: records of shards that the view cannot have.
    """

    index: Mapping[int, Commit]
    index_problem: str
    manifest_problem: str
    records: Mapping[int, Commit]
    record_problems: Mapping[int, str]
    beyond: tuple[int, ...]

    @property
    def commits(self) -> tuple[Commit, ...]:
        """What readers go by, in shard order: the index, or else the records."""
        return tuple(commit for _, commit in sorted((self.index or self.records).items()))


def survey(view: View) -> Survey:
    """Read all that a view says of its shards; CacheCorruptedError only for its manifest."""
    manifest = view.manifest
    index: tuple[Commit, ...] | None = None
    index_problem, manifest_problem, foreign = "", "", None
    try:
        index = read_index(view.folder, manifest)
    except ForeignShardError as error:
        foreign = error
    except ManifestChangedError as error:
        manifest_problem = str(error)
    except CacheCorruptedError as error:
        index_problem = str(error)
    recorded = sorted(recorded_shards(view.folder))
    found = _Records()
    for shard in recorded:
        if shard < manifest.num_shards:
            found.read(view, shard, is_last=shard == recorded[-1])
    manifest_problem = manifest_problem or found.manifest_problem
    if foreign is not None and found.sound:
        index_problem = str(foreign)
    elif foreign is not None or (len(found.foreign) > 1 and not (found.sound or index)):
        # Nothing in it belongs to the manifest: more likely that was changed than all the rest.
        one = foreign or next(iter(found.foreign.values()))
        manifest_problem = manifest_problem or _exchanged(view, one)
        found.foreign.clear()
    return Survey(
        index={commit.shard: commit for commit in index or ()},
        index_problem=index_problem,
        manifest_problem=manifest_problem,
        records=found.sound,
        record_problems=found.problems | {n: str(error) for n, error in found.foreign.items()},
        beyond=tuple(shard for shard in recorded if shard >= manifest.num_shards),
    )


class _Records:
    """The commit records of a view, sorted by what they are."""

    def __init__(self) -> None:
        self.sound: dict[int, Commit] = {}
        self.problems: dict[int, str] = {}
        self.foreign: dict[int, ForeignShardError] = {}
        self.manifest_problem = ""

    def read(self, view: View, shard: int, *, is_last: bool) -> None:
        """Read one; ``is_last`` where none is of a later shard."""
        try:
            self.sound[shard] = read_commit(view.folder, view.manifest, shard)
        except ForeignShardError as error:
            self.foreign[shard] = error
        except ManifestChangedError as error:
            # The last block of a stream is shorter, but how long, only its end tells.
            if view.manifest.is_open and is_last:
                self.problems[shard] = str(error)
            else:
                self.manifest_problem = self.manifest_problem or str(error)
        except CacheCorruptedError as error:
            self.problems[shard] = str(error)


def _exchanged(view: View, error: ForeignShardError) -> str:
    return (
        f"{view.folder / GROUP_FILE} is of another dump than everything beside it: "
        f"{error.__cause__} Restore the one that was here; or, where all shards were copied here, "
        f"move {COMMITS_FOLDER} and {INDEX_FILE} out of {view.folder}, and run the same kdcache "
        "dump-teacher command again."
    )


def shard_problem(view: View, commit: Commit) -> str:
    """What is wrong with a shard's metadata or rows; empty where all of it is as committed."""
    try:
        view.read_shard(commit)
        check_shard_metadata(view, commit)
    except CacheCorruptedError as error:
        return str(error)
    return ""


def check_shard_metadata(view: View, commit: Commit) -> None:
    """Raise CacheCorruptedError unless other Zarr readers find a shard's groups and arrays."""
    group = attempt_folder(view.folder, commit.shard, commit.attempt)
    check_group(group / GROUP_FILE, is_bare=True)
    for column in view.manifest.columns:
        check_metadata(group, column, commit.arrays[column.name])
