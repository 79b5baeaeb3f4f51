"""Commit records: the proof that a shard is there, and which attempt at it counts.

A record is written last, once its attempt is durable; the first record of a shard stands, so a
second job on the same range can do no harm. The gathered index is a copy that can be rebuilt.
Both carry a checksum of themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from kdcache.columns import Per
from kdcache.errors import CacheCorruptedError
from kdcache.store.format.arrays import MAX_DECODED_BYTES, StoredArray, check_stored
from kdcache.store.format.fields import Fields
from kdcache.store.format.files import MAX_JSON_BYTES, json_text, read_json, write_json
from kdcache.store.format.layout import (
    COMMIT_NAME,
    COMMITS_FOLDER,
    GROUP_FILE,
    INDEX_FILE,
    commit_file,
)
from kdcache.store.format.manifest import Manifest
from kdcache.store.format.origins import MAX_TEXT, foreign_parts

MAX_SHARD_BYTES = 2 * MAX_DECODED_BYTES
"""Largest decoded shard, all columns together."""

_CHECKSUM = "checksum"
_MAX_RECORD_BYTES = 1 << 20
_MAX_INDEX_BYTES = 1 << 30
_REMEDY = "kdcache verify CACHE --repair puts that right as far as it can."


class ManifestChangedError(CacheCorruptedError):
    """A record or an index is whole, but of another manifest than the one beside it."""


class ForeignShardError(CacheCorruptedError):
    """A shard is whole, but of another dump than the one that the manifest is of."""


@dataclass(frozen=True, kw_only=True)
class Commit:
    """The record of one shard.

    Attributes:
        shard: its number.
        attempt: the attempt that counts.
        start: first sample.
        stop: one past the last sample.
        arrays: column name -> what was stored.
        origin: which dump the shard is of, part by part; see :mod:`kdcache.store.format.origins`.
        statistics: sums over the shard's positions (entropy, cross-entropy, ...), for reports.
        labels: digests of the labels of some samples; see
            :mod:`kdcache.data.samples.label_digests`.
    """

    shard: int
    attempt: str
    start: int
    stop: int
    arrays: Mapping[str, StoredArray]
    origin: Mapping[str, str]
    statistics: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, Any] = field(default_factory=dict)

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
        # First: of another dump, columns and ranges may be others too.
        check_origin(manifest, at.texts("origin"), at.integer("stop"), where)
        names, found = {column.name for column in manifest.columns}, at.mapping("arrays")
        if set(found) != names:
            raise CacheCorruptedError(
                f"{where} has columns {str(sorted(found))[:200]}, not {sorted(names)}."
            )
        arrays: dict[str, StoredArray] = {}
        for name, stored in found.items():
            column = Fields(stored, f"{where}, column {name!r}")
            arrays[name] = StoredArray(
                rows=column.integer("rows", at_most=1 << 40),
                stored_bytes=column.integer("stored_bytes", at_most=1 << 40),
                checksum=column.text("checksum", at_most=16),
                digest=column.text("digest", at_most=32),
                metadata=column.text("metadata", at_most=16),
            )
        commit = cls(
            shard=at.integer("shard"),
            attempt=at.text("attempt", at_most=64),
            start=at.integer("start"),
            stop=at.integer("stop"),
            arrays=arrays,
            origin=at.texts("origin"),
            statistics=at.numbers("statistics"),
            labels=at.mapping("labels"),
        )
        expected = (shard, *manifest.shard_range(shard))
        if (commit.shard, commit.start, commit.stop) != expected:
            raise CacheCorruptedError(
                f"{where} says shard {commit.shard}, samples {commit.start} to {commit.stop}; the "
                f"manifest gives shard {shard} the range {expected[1:]}."
            )
        commit._check_rows(manifest, where)
        return commit

    def _check_rows(self, manifest: Manifest, where: str) -> None:
        """Columns side by side have equally many rows, and no more than a shard holds."""
        rows: dict[Per, int] = {"sample": self.stop - self.start}
        total = 0
        for column in manifest.columns:
            stored = self.arrays[column.name]
            total += stored.rows * column.row_bytes
            check_stored(column, stored, f"{where}, column {column.name!r}")
            if stored.rows != rows.setdefault(column.per, stored.rows):
                raise CacheCorruptedError(
                    f"{where}: column {column.name!r} has {stored.rows:,} rows, others per "
                    f"{column.per} have {rows[column.per]:,}."
                )
        if total > MAX_SHARD_BYTES:
            raise CacheCorruptedError(f"{where} claims {total:,} bytes: more than a shard holds.")


def check_origin(manifest: Manifest, origin: Mapping[str, str], stop: int, where: str) -> None:
    """Raise ForeignShardError unless a shard is of the dump that a manifest is of.

    Args:
        manifest: of the view.
        origin: of the shard.
        stop: one past its last sample.
        where: names the shard in the error.
    """
    found = foreign_parts(manifest.origin, origin, manifest.data_before(stop))
    if found:
        parts = "; ".join(
            f"{part} {theirs[:MAX_TEXT]!r}, and {ours!r} in the manifest"
            for part, (theirs, ours) in found.items()
        )
        raise ForeignShardError(
            f"{where} is of another dump than the manifest of the view: {parts}. Its targets were "
            "not read."
        )


def signed(content: Mapping[str, Any]) -> dict[str, Any]:
    """A record with a checksum of itself, so that no flipped digit in it goes unseen."""
    checksum = xxhash.xxh3_64_hexdigest(json_text(content, "a record").encode())
    return {**content, _CHECKSUM: checksum}


def check_signed(value: Mapping[str, Any], where: Path) -> None:
    """Raise CacheCorruptedError unless a record's checksum is that of its other fields."""
    content = {name: field for name, field in value.items() if name != _CHECKSUM}
    if value.get(_CHECKSUM) != signed(content)[_CHECKSUM]:
        raise CacheCorruptedError(f"{where} is damaged: its checksum is wrong. {_REMEDY}")


def write_commit(view: Path, commit: Commit) -> bool:
    """Make an attempt count. False: another attempt at this shard was first."""
    return write_json(commit_file(view, commit.shard), signed(commit.to_json()), replace=False)


def committed_shards(view: Path, manifest: Manifest) -> frozenset[int]:
    """Numbers of the shards that have a commit record, without reading the records."""
    most = manifest.num_shards
    return frozenset(shard for shard in recorded_shards(view) if shard < most)


def recorded_shards(view: Path) -> frozenset[int]:
    """Numbers of all commit records, also of shards that the view cannot have."""
    folder = view / COMMITS_FOLDER
    try:
        names = [path.name for path in folder.iterdir()]
    except FileNotFoundError:
        return frozenset()
    except OSError as error:
        raise CacheCorruptedError(f"{folder} cannot be listed ({error.strerror}).") from error
    return frozenset(int(found[1]) for name in names if (found := COMMIT_NAME.fullmatch(name)))


def read_commit(view: Path, manifest: Manifest, shard: int) -> Commit:
    """One commit record, checked.

    Raises:
        CacheCorruptedError: it is missing, damaged, or of another shard.
        ForeignShardError: it is of another dump.
        ManifestChangedError: it is whole and contradicts the manifest.
    """
    path = commit_file(view, shard)
    try:
        value = read_json(path, _MAX_RECORD_BYTES)
    except FileNotFoundError as error:
        raise CacheCorruptedError(f"{path} is missing, or leads nowhere. {_REMEDY}") from error
    check_signed(value, path)
    try:
        return Commit.from_json(value, str(path), manifest, shard)
    except ForeignShardError as error:
        raise ForeignShardError(
            f"{error} The shard was copied here from another cache, or {view / GROUP_FILE} was "
            "changed after the dump. Put back what was here before; or kdcache verify CACHE "
            "--repair marks the shard as pending, and the same kdcache dump-teacher command dumps "
            "it anew."
        ) from error
    except CacheCorruptedError as error:
        if value.get("shard") != shard:
            raise
        raise ManifestChangedError(
            f"{error} The record is whole, so {view / GROUP_FILE} was changed after it was "
            "written. Restore that; or remove the record, if it was put there from another cache."
        ) from error


def read_commits(view: Path, manifest: Manifest) -> tuple[Commit, ...]:
    """All commit records that are there, in shard order, from the records themselves."""
    shards = sorted(committed_shards(view, manifest))
    return tuple(read_commit(view, manifest, shard) for shard in shards)


def check_origins(view: Path, manifest: Manifest) -> None:
    """Raise ForeignShardError where a record is of another dump; damaged ones are not looked at."""
    for shard in sorted(committed_shards(view, manifest)):
        try:
            read_commit(view, manifest, shard)
        except ForeignShardError:
            raise
        except CacheCorruptedError:  # said when the view is finished, or read
            continue


def write_index(view: Path, manifest: Manifest, commits: Sequence[Commit]) -> None:
    """Gather the commits of a complete view into one file, for fast opening.

    A view with so many shards that readers would refuse the file keeps its records only.
    """
    content = {
        "digest": view_digest(manifest, commits),
        "manifest": manifest_checksum(manifest),
        "commits": [commit.to_json() for commit in commits],
    }
    if len(json_text(content, "the index")) < _index_bytes(manifest) // 2:
        write_json(view / INDEX_FILE, signed(content), replace=True)


def _index_bytes(manifest: Manifest) -> int:
    """The largest index that is read: a view of very many shards may have a large one."""
    wanted = manifest.num_shards * (2048 + 512 * len(manifest.columns))
    return min(max(MAX_JSON_BYTES, wanted), _MAX_INDEX_BYTES)


def read_index(view: Path, manifest: Manifest) -> tuple[Commit, ...] | None:
    """The gathered commits of a complete view; None where they must be read one by one.

    Raises:
        CacheCorruptedError: it is damaged.
        ForeignShardError: it is of another dump.
        ManifestChangedError: it is whole and contradicts the manifest.
    """
    path = view / INDEX_FILE
    try:
        value = read_json(path, _index_bytes(manifest))
    except FileNotFoundError:
        return None
    check_signed(value, path)
    at = Fields(value, str(path))
    records = at.items("commits")
    # The index of a view that was extended since is of fewer shards, and no damage.
    is_grown = manifest.extended_from and len(records) < manifest.num_shards
    if manifest.is_open or is_grown:
        return None
    try:
        commits = tuple(
            Commit.from_json(record, f"{path}, shard {shard}", manifest, shard)
            for shard, record in enumerate(records[: manifest.num_shards])
        )
        at.text("manifest", at_most=16)
        if at.text("digest") != view_digest(manifest, commits) or len(commits) < len(records):
            raise CacheCorruptedError(f"{path} does not belong to the manifest beside it.")
    except ForeignShardError as error:
        raise ForeignShardError(
            f"{error} The index was copied here from another cache, or {view / GROUP_FILE} was "
            "changed after the dump. Restore that; where the index was copied, kdcache verify "
            "CACHE --repair gathers it anew."
        ) from error
    except CacheCorruptedError as error:
        raise ManifestChangedError(
            f"{error} The index is whole, so {view / GROUP_FILE} was changed after the dump. "
            "Restore that; where the change was meant, remove the index, which can be rebuilt."
        ) from error
    return commits


def recorded_manifest(view: Path) -> str:
    """The checksum of the manifest that the index was gathered for; it has been read before."""
    path = view / INDEX_FILE
    return Fields(read_json(path, _MAX_INDEX_BYTES), str(path)).text("manifest", at_most=16)


def manifest_checksum(manifest: Manifest) -> str:
    """xxh3-64 over all of a manifest, also over what the digest leaves out."""
    return xxhash.xxh3_64_hexdigest(json_text(manifest.to_json(), "the manifest").encode())


def view_digest(manifest: Manifest, commits: Sequence[Commit]) -> str:
    """xxh3-128 over the manifest's identity and every shard's decoded content.

    Equal decoded targets of the same manifest have the same digest, whichever process, attempt or
    compression wrote them.
    """
    state = xxhash.xxh3_128()
    # When it was dumped and what was measured then: equal targets have equal digests without.
    names_left_out = {"created", "references", "pilot"}
    identity = {k: v for k, v in manifest.to_json().items() if k not in names_left_out}
    state.update(json_text(identity, "the manifest").encode())
    for commit in commits:
        digests = {name: [array.rows, array.digest] for name, array in commit.arrays.items()}
        state.update(json_text([commit.start, commit.stop, digests], "a commit").encode())
    return state.hexdigest()
