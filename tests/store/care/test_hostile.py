"""Caches made by an attacker: nothing but KdcacheError comes out, and memory stays bounded.

Unlike damaged ones, these agree with themselves: every checksum fits what it covers.
"""

from __future__ import annotations

import contextlib
import json
import struct
import tracemalloc

import google_crc32c
import numcodecs.blosc
import numcodecs.zstd
import numpy as np
import pytest

from kdcache.columns import Column
from kdcache.errors import CacheCorruptedError, KdcacheError
from kdcache.store import open_cache, open_local_copy
from kdcache.store.format.arrays import CHUNK_BYTES, chunk_rows, object_checksum, read_array
from kdcache.store.format.layout import attempt_folder
from tests.store.synthetic import (
    COUNTS,
    edit_json,
    edit_record,
    make_shards,
    manifest,
    relabel,
    replace_object,
    stored_object,
    write_view,
)

MEMORY_BYTES = 64 << 20
HUGE = 1 << 53
ABSENT = object()
BAD = [
    *(ABSENT, None, True, -1, 0, 1, HUGE, 1 << 64, 10**400, 1.5, 1e308, "", "7", "x" * 5000),
    *("../../etc", "\ud800", [], [[]], [{}], ["a"], [10**9] * 4, [0], {}, {"a": 1}, {"a": {}}),
]
SHARD = (Column(name="v", per="sample", dtype="uint8", shape=(3,)), COUNTS)
FLOATS = (Column(name="v", per="sample", dtype="float16", shape=(3,)), COUNTS)


def use_everything(cache):
    """All that a reader does with a cache: open, count, decode, copy."""
    opened = open_cache(cache)
    for split in opened:
        view = opened[split]
        _ = (view.manifest, view.pending, view.commits)
        view.check_complete()
        for commit in view.commits:
            view.read_shard(commit)
        copy = open_local_copy(view, cache.parent / "local")
        copy.take([0, 0])
        _ = (view.digest, view.stored_bytes, view.read_tables())


def reads(view):
    return [view.read_shard(commit) for commit in view.commits]


def survives(cache):
    """Whether a cache is readable; anything but a KdcacheError, or much memory, fails the test."""
    tracemalloc.start()
    try:
        use_everything(cache)
    except KdcacheError:
        return False
    finally:
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak_bytes < MEMORY_BYTES
    return True


def set_field(value, path, bad):
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    if bad is ABSENT:
        del inner[path[-1]]
    else:
        inner[path[-1]] = bad
    return value


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    path = tmp_path_factory.mktemp("hostile") / "cache.zarr"
    wanted = manifest(num_samples=4)
    view = write_view(path, wanted, make_shards(wanted))
    (view.folder / "index.json").unlink()
    return path


MANIFEST_FIELDS = [(name,) for name in manifest().to_json()]
COLUMN_FIELDS = [("columns", n, key) for n in (1, 2) for key in ("name", "per", "dtype", "shape")]


@pytest.mark.parametrize("field", MANIFEST_FIELDS + COLUMN_FIELDS, ids=str)
def test_any_value_in_the_manifest(cache, field):
    marker = cache / "train" / "view-000" / "zarr.json"
    good = marker.read_text()
    for bad in BAD:
        edit_json(marker, lambda v, b=bad: set_field(v, ("attributes", "kdcache", *field), b))
        with contextlib.suppress(CacheCorruptedError):  # so that other checks see it, too
            relabel(open_cache(cache)["train"])
        survives(cache)
        marker.write_text(good)
    relabel(open_cache(cache)["train"])
    assert survives(cache)


COMMIT_FIELDS = [(n,) for n in ("shard", "attempt", "start", "stop", "arrays", "statistics")]
ARRAY_FIELDS = [
    ("arrays", name, key)
    for name in ("values", "num_positions")
    for key in ("rows", "stored_bytes", "checksum", "digest", "metadata")
]


@pytest.mark.parametrize(
    "field",
    [*COMMIT_FIELDS, *ARRAY_FIELDS, ("arrays", "ids"), ("statistics", "positions")],
    ids=str,
)
def test_any_value_in_a_commit(cache, field):
    record = cache / "train" / "view-000" / "commits" / "shard-000000.json"
    good = record.read_text()
    for bad in BAD:
        edit_record(record, lambda value, bad=bad: set_field(value, field, bad))
        is_same = json.loads(record.read_text()) == json.loads(good)
        is_unread = field[0] == "statistics" or field[-1] == "metadata"
        assert not survives(cache) or is_unread or is_same
        record.write_text(good)
    assert survives(cache)


@pytest.mark.parametrize("bad", [None, 5, [], {}, {"digest": 5}, {"commits": HUGE}])
def test_any_value_in_the_index(cache, bad):
    index = cache / "train" / "view-000" / "index.json"
    index.write_text("null")
    edit_json(index, lambda _: bad)
    assert not survives(cache)
    index.unlink()
    assert survives(cache)


@pytest.mark.parametrize("name", ["..", "../x", "a/b", "/etc", "zarr.json", ".x", "a\0b", "c" * 99])
def test_names_that_leave_the_folder(cache, name):
    folder = cache / "train" / "view-000"
    edits = {folder / "zarr.json": ("attributes", "kdcache", "columns", 0, "name")}
    edits[folder / "commits" / "shard-000000.json"] = ("attempt",)
    for file, path in edits.items():
        good = file.read_text()
        edit = edit_record if path == ("attempt",) else edit_json
        edit(file, lambda value, path=path: set_field(value, path, name))
        with pytest.raises(CacheCorruptedError):
            use_everything(cache)
        file.write_text(good)


def test_many_samples_in_tiny_shards_do_not_hang(cache):
    """2**53 shards would take forever to count."""
    marker = cache / "train" / "view-000" / "zarr.json"
    good = marker.read_text()
    for key, number in {"num_samples": HUGE, "samples_per_shard": 1}.items():
        edit_json(marker, lambda v, k=key, n=number: set_field(v, ("attributes", "kdcache", k), n))
    with pytest.raises(CacheCorruptedError, match="more samples per shard"):
        use_everything(cache)
    marker.write_text(good)


def test_records_that_agree_on_a_terabyte(tmp_path):
    """One shard of 2**40 samples, in the manifest and in the commit alike."""
    wanted = manifest(num_samples=4, columns=SHARD)
    view = write_view(tmp_path / "cache.zarr", wanted, make_shards(wanted))
    (view.folder / "index.json").unlink()
    many = 1 << 40

    def grow(value):
        value["attributes"]["kdcache"] |= {"num_samples": many, "samples_per_shard": many}
        return value

    def grow_record(value):
        value["stop"] = many
        for stored in value["arrays"].values():
            stored |= {"rows": many, "stored_bytes": 1 << 40}
        return value

    edit_json(view.folder / "zarr.json", grow)
    edit_record(view.folder / "commits" / "shard-000000.json", grow_record)
    assert not survives(view.cache)


@pytest.mark.parametrize(
    ("column", "rows", "says"),
    [
        ("values", 7, "others per position have 7"),
        ("fingerprint", 5, "others per sample have 4"),
        ("ids", 1 << 30, "more than a shard holds"),
    ],
)
def test_rows_are_checked_before_anything_is_decoded(cache, column, rows, says):
    record = cache / "train" / "view-000" / "commits" / "shard-000000.json"
    good = record.read_text()
    edit_record(record, lambda value: set_field(value, ("arrays", column, "rows"), rows))
    with pytest.raises(CacheCorruptedError, match=says):
        _ = open_cache(cache)["train"].commits
    record.write_text(good)


@pytest.mark.parametrize("counts", [[-1, 3], [1 << 31, 0], [(1 << 31) - 1] * 2, [1, 2]])
def test_counts_that_do_not_fit_the_columns(tmp_path, counts):
    """All checksums fit; num_positions itself is wrong."""
    column = Column(name="v", per="position", dtype="uint8", shape=(3,))
    wanted = manifest(num_samples=2, columns=(COUNTS, column))
    view = write_view(tmp_path / "cache.zarr", wanted, make_shards(wanted, counts=[1, 1]))
    liar = manifest(num_samples=2, columns=(COUNTS,))
    lies = {0: {"num_positions": np.asarray(counts, np.int64).astype(np.int32)}}
    other = tmp_path / "liar.zarr"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdcache.store.writer.ViewWriter._check", lambda *_: None)
        lying = write_view(other, liar, lies)
    commit = lying.commits[0]
    content = stored_object(lying, 0, "num_positions").read_bytes()
    stored_object(view, 0, "num_positions").write_bytes(content)

    def lie(record):
        stored = commit.arrays["num_positions"]
        record["arrays"]["num_positions"] |= {
            "stored_bytes": len(content),
            "checksum": object_checksum(content),
            "digest": stored.digest,
        }
        return record

    edit_record(view.folder / "commits" / "shard-000000.json", lie)
    (view.folder / "index.json").unlink()
    assert not survives(view.cache)
    view = open_cache(view.cache)["train"]
    is_negative = min(np.asarray(counts).astype(np.int32)) < 0
    with pytest.raises(CacheCorruptedError, match="negative" if is_negative else "counts and"):
        open_local_copy(view)
    with pytest.raises(CacheCorruptedError, match=r"counts beside it say|negative count"):
        view.read_shard(view.commits[0])
    if is_negative:
        with pytest.raises(CacheCorruptedError, match="negative count"):
            view.read_num_positions()


def zarr_shard(frames, index=None):
    """A Zarr shard of some frames with right checksums; ``index`` replaces (offset, size)."""
    body, entries = b"", []
    for frame in frames:
        chunk = frame + google_crc32c.value(frame).to_bytes(4, "little")
        entries.append((len(body), len(chunk)))
        body += chunk
    packed = b"".join(struct.pack("<QQ", *entry) for entry in index or entries)
    return body + packed + google_crc32c.value(packed).to_bytes(4, "little")


class TestFrames:
    """Frames in a chunk whose checksums are all right."""

    @pytest.fixture(params=["zstd", "blosc"])
    def kind(self, request):
        return request.param

    @pytest.fixture
    def view(self, tmp_path, kind, stored):
        wanted = manifest(num_samples=4, columns=SHARD if kind == "zstd" else FLOATS)
        return stored(tmp_path / "cache.zarr", wanted)

    @pytest.fixture
    def no_decompression(self, monkeypatch):
        def never(*_):
            pytest.fail("decompressed before the claimed size was checked")

        monkeypatch.setattr(numcodecs.zstd, "decompress", never)
        monkeypatch.setattr(numcodecs.blosc, "decompress", never)

    def compress(self, kind, content):
        if kind == "zstd":
            return numcodecs.zstd.compress(content, 5)
        return numcodecs.blosc.compress(content, b"zstd", 5, numcodecs.blosc.SHUFFLE)

    def read(self, view, frames, index=None):
        changed = replace_object(view, 0, "v", zarr_shard(frames, index))
        commit = changed.commits[0]
        group = attempt_folder(changed.folder, 0, commit.attempt)
        column = next(c for c in changed.manifest.columns if c.name == "v")
        return read_array(group, column, commit.arrays["v"])

    def frame(self, view):
        content = stored_object(view, 0, "v").read_bytes()
        return content[: -(16 + 4) - 4]

    def test_the_builder_builds_what_zarr_wrote(self, view):
        content = stored_object(view, 0, "v").read_bytes()
        assert zarr_shard([self.frame(view)]) == content

    @pytest.mark.parametrize("size", [0, 1, 60_000, CHUNK_BYTES + 1, 64 << 20])
    def test_another_size_is_refused_before_decompressing(self, view, kind, size, no_decompression):
        with pytest.raises(CacheCorruptedError, match="refused before decompressing"):
            self.read(view, [self.compress(kind, bytes(size))])

    @pytest.mark.parametrize("claimed", [0xFFFFFFFF, 0x7FFFFFFF, 0])
    def test_a_claim_in_the_header(self, view, kind, claimed, no_decompression):
        frame = bytearray(self.frame(view))
        if kind == "zstd":
            frame = bytearray(b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", claimed)) + frame[9:]
        else:
            struct.pack_into("<I", frame, 4, claimed)
        with pytest.raises(CacheCorruptedError, match="refused before decompressing"):
            self.read(view, [bytes(frame)])

    def test_more_inside_than_the_header_says(self, view, kind):
        """The header claims a chunk, the blocks hold 64 MiB of zeros."""
        bomb = bytearray(self.compress(kind, bytes(64 << 20)))
        column = next(c for c in view.manifest.columns if c.name == "v")
        chunk_bytes = chunk_rows(column) * column.row_bytes
        if kind == "zstd":
            descriptor = bomb[4]
            assert descriptor >> 6 == 2  # four bytes of content size
            start = 5 + (not descriptor & 0x20)
            struct.pack_into("<I", bomb, start, chunk_bytes)
        else:
            struct.pack_into("<I", bomb, 4, chunk_bytes)
        tracemalloc.start()
        with pytest.raises(CacheCorruptedError):
            self.read(view, [bytes(bomb)])
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
        tracemalloc.stop()

    @pytest.mark.parametrize("frame", [b"", b"\x28\xb5\x2f\xfd", b"\x02\x01", bytes(16), bytes(99)])
    def test_what_is_no_frame(self, view, frame, no_decompression):
        with pytest.raises(CacheCorruptedError, match="refused before decompressing"):
            self.read(view, [frame])

    def test_frame_without_a_size(self, view, kind, no_decompression):
        """What a streaming compressor writes: magic, no size, one empty last block."""
        with pytest.raises(CacheCorruptedError, match="refused before decompressing"):
            self.read(view, [b"\x28\xb5\x2f\xfd\x00\x58\x01\x00\x00"])

    def test_something_behind_the_frame(self, view, kind):
        with pytest.raises(CacheCorruptedError):
            self.read(view, [self.frame(view) + self.compress(kind, bytes(100))])

    @pytest.mark.parametrize(
        ("entry", "says"),
        [
            ((0, 1 << 40), "lies outside"),
            ((1 << 63, 1 << 63), "lies outside"),
            (((1 << 64) - 1, (1 << 64) - 1), "lies outside"),  # Zarr's mark for a missing chunk
            ((0, 0), "wrong checksum"),
            ((0, 3), "wrong checksum"),
            ((5, 20), "wrong checksum"),
        ],
    )
    def test_index_that_points_elsewhere(self, view, entry, says, no_decompression):
        with pytest.raises(CacheCorruptedError, match=f"chunk 0 .*{says}"):
            self.read(view, [self.frame(view)], [entry])

    @pytest.mark.parametrize("size", range(0, 24, 3))
    def test_shard_without_room_for_its_index(self, view, size):
        replaced = replace_object(view, 0, "v", bytes(size))
        with pytest.raises(CacheCorruptedError):
            reads(replaced)

    def test_any_bits_in_a_frame(self, view):
        """Mutated frames with right checksums end in an error, or in the rows that were dumped."""
        good = self.frame(view)
        rng = np.random.default_rng(3)
        for _ in range(150):
            frame = bytearray(good)
            for position in rng.integers(4, len(frame), rng.integers(1, 4)):
                frame[position] = rng.integers(256)
            try:
                self.read(view, [bytes(frame)])
            except CacheCorruptedError:
                continue
