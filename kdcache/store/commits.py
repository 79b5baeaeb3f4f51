"""Commit records: the proof that a shard is there, and which attempt at it counts.

A record is written last, once its attempt is durable; the first record of a shard stands, so a
second job on the same range can do no harm. The gathered index is a copy that can be rebuilt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from kdcache.columns import Per
from kdcache.errors import CacheCorruptedError
from kdcache.store.arrays import StoredArray, check_stored
from kdcache.store.fields import Fields
from kdcache.store.files import json_text, read_json, write_json
from kdcache.store.layout import COMMIT_NAME, COMMITS_FOLDER, INDEX_FILE, commit_file
from kdcache.store.manifest import Manifest


@dataclass(frozen=True, kw_only=True)
class Commit:
    """The record of one shard.

    Attributes:
        shard: its number.
        attempt: the attempt that counts.
        start: first sample.
        stop: one past the last sample.
        arrays: column name -> what was stored.
        statistics: sums over the shard's positions (entropy, cross-entropy, ...), for reports.
    """

    shard: int
    attempt: str
    start: int
    stop: int
    arrays: Mapping[str, StoredArray]
    statistics: Mapping[str, float] = field(default_factory=dict)

    @property
    def stored_bytes(self) -> int:
        """Bytes of the shard's stored objects (without metadata files)."""
        return sum(array.stored_bytes for array in self.arrays.values())

    def to_json(self) -> dict[str, Any]:
        """As it stands on disk."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: object, where: str, manifest: Manifest, shard: int) -> Commit:
        """Read a record and hold it against the manifest."""
        at = Fields(value, where)
        arrays: dict[str, StoredArray] = {}
        for name, stored in at.mapping("arrays").items():
            column = Fields(stored, f"{where}, column {name!r}")
            arrays[name] = StoredArray(
                rows=column.integer("rows", at_most=1 << 40),
                stored_bytes=column.integer("stored_bytes", at_most=1 << 40),
                checksum=column.text("checksum", at_most=16),
                digest=column.text("digest", at_most=32),
            )
        commit = cls(
            shard=at.integer("shard"),
            attempt=at.text("attempt", at_most=64),
            start=at.integer("start"),
            stop=at.integer("stop"),
            arrays=arrays,
            statistics=at.numbers("statistics"),
        )
        names = {column.name for column in manifest.columns}
        if (commit.shard, commit.start, commit.stop) != (shard, *manifest.shard_range(shard)):
            raise CacheCorruptedError(
                f"{where} says shard {commit.shard}, samples {commit.start} to {commit.stop}; the "
                f"manifest gives shard {shard} the range {manifest.shard_range(shard)}."
            )
        if set(arrays) != names:
            raise CacheCorruptedError(f"{where} has columns {sorted(arrays)}, not {sorted(names)}.")
        commit._check_rows(manifest, where)
        return commit

    def _check_rows(self, manifest: Manifest, where: str) -> None:
        """Columns side by side have equally many rows, and no more than a shard holds."""
        rows: dict[Per, int] = {"sample": self.stop - self.start}
        for column in manifest.columns:
            stored = self.arrays[column.name]
            check_stored(column, stored, f"{where}, column {column.name!r}")
            if stored.rows != rows.setdefault(column.per, stored.rows):
                raise CacheCorruptedError(
                    f"{where}: column {column.name!r} has {stored.rows:,} rows, others per "
                    f"{column.per} have {rows[column.per]:,}."
                )


def write_commit(view: Path, commit: Commit) -> bool:
    """Make an attempt count. False: another attempt at this shard was first."""
    return write_json(commit_file(view, commit.shard), commit.to_json(), replace=False)


def committed_shards(view: Path, manifest: Manifest) -> frozenset[int]:
    """Numbers of the shards that have a commit record, without reading the records."""
    names = (path.name for path in (view / COMMITS_FOLDER).glob("shard-*.json"))
    shards = (int(found[1]) for name in names if (found := COMMIT_NAME.fullmatch(name)))
    return frozenset(shard for shard in shards if shard < manifest.num_shards)


def read_commits(view: Path, manifest: Manifest) -> tuple[Commit, ...]:
    """All commit records that are there, in shard order, from the records themselves."""
    commits = []
    for shard in sorted(committed_shards(view, manifest)):
        path = commit_file(view, shard)
        commits.append(Commit.from_json(read_json(path), str(path), manifest, shard))
    return tuple(commits)


def write_index(view: Path, manifest: Manifest, commits: Sequence[Commit]) -> None:
    """Gather the commits of a complete view into one file, for fast opening."""
    records = [commit.to_json() for commit in commits]
    content = {"digest": view_digest(manifest, commits), "commits": records}
    write_json(view / INDEX_FILE, content, replace=True)


def read_index(view: Path, manifest: Manifest) -> tuple[Commit, ...] | None:
    """The gathered commits of a complete view; None where they must be read one by one."""
    path = view / INDEX_FILE
    try:
        at = Fields(read_json(path), str(path))
    except FileNotFoundError:
        return None
    records = at.items("commits")
    if len(records) != manifest.num_shards:
        return None
    commits = tuple(
        Commit.from_json(record, f"{path}, shard {shard}", manifest, shard)
        for shard, record in enumerate(records)
    )
    if at.text("digest") != view_digest(manifest, commits):
        raise CacheCorruptedError(
            f"{path} does not belong to the manifest beside it: one of the two was changed after "
            "the dump. Where the manifest is right, remove the index; it can be rebuilt."
        )
    return commits


def view_digest(manifest: Manifest, commits: Sequence[Commit]) -> str:
    """xxh3-128 over the manifest's identity and every shard's decoded content.

    Equal decoded targets of the same manifest have the same digest, whichever process, attempt or
    compression wrote them.
    """
    state = xxhash.xxh3_128()
    names_left_out = {"created", "references", "pilot"}
    identity = {k: v for k, v in manifest.to_json().items() if k not in names_left_out}
    state.update(json_text(identity, "the manifest").encode())
    for commit in commits:
        digests = {name: [array.rows, array.digest] for name, array in commit.arrays.items()}
        state.update(json_text([commit.start, commit.stop, digests], "a commit").encode())
    return state.hexdigest()
