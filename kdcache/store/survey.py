"""What a view says of its shards, read from index and records without stopping at damage.

Readers stop at the first thing that is wrong; ``verify`` and repair must see all of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kdcache.errors import CacheCorruptedError
from kdcache.store.arrays import check_metadata
from kdcache.store.cache import View
from kdcache.store.commits import (
    Commit,
    ForeignShardError,
    ManifestChangedError,
    read_commit,
    read_index,
    recorded_shards,
)
from kdcache.store.files import check_group
from kdcache.store.layout import COMMITS_FOLDER, GROUP_FILE, INDEX_FILE, attempt_folder


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
    index_problem = manifest_problem = foreign_index = ""
    try:
        index = read_index(view.folder, manifest)
    except ForeignShardError as error:
        foreign_index = str(error)
    except ManifestChangedError as error:
        manifest_problem = str(error)
    except CacheCorruptedError as error:
        index_problem = str(error)
    records: dict[int, Commit] = {}
    record_problems: dict[int, str] = {}
    foreign: list[int] = []
    most, recorded = manifest.num_shards, sorted(recorded_shards(view.folder))
    for shard in recorded:
        if shard >= most:
            continue
        try:
            records[shard] = read_commit(view.folder, manifest, shard)
        except ForeignShardError as error:
            record_problems[shard] = str(error)
            foreign.append(shard)
        except ManifestChangedError as error:
            # The last block of a stream is shorter, but how long, only its end tells.
            if manifest.is_open and shard == recorded[-1]:
                record_problems[shard] = str(error)
            else:
                manifest_problem = manifest_problem or str(error)
        except CacheCorruptedError as error:
            record_problems[shard] = str(error)
    if foreign_index and records:
        index_problem = foreign_index
    elif foreign_index or (len(foreign) > 1 and not (records or index)):
        # Nothing in it belongs to the manifest: more likely that was changed than all the rest.
        manifest_problem = manifest_problem or (
            f"{view.folder / GROUP_FILE} is of another dump than everything beside it. Restore it; "
            f"or, where the shards were copied here, move {view.folder / COMMITS_FOLDER} and "
            f"{INDEX_FILE} away, and run the same kdcache dump-teacher command again. "
            f"{foreign_index or record_problems[foreign[0]]}"
        )
    return Survey(
        index={commit.shard: commit for commit in index or ()},
        index_problem=index_problem,
        manifest_problem=manifest_problem,
        records=records,
        record_problems=record_problems,
        beyond=tuple(shard for shard in recorded if shard >= most),
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
