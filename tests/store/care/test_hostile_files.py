"""More of what somebody else may have put into a cache: swaps, newer fields, tables, sizes.

As in ``test_hostile.py``, nothing but a KdcacheError comes out, and memory stays bounded.
"""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from kdcache.columns import Column
from kdcache.errors import CacheCorruptedError, UsageError
from kdcache.store import UNKNOWN_LENGTH, ViewWriter, open_cache, open_local_copy, table_digest
from kdcache.store.format import tables as store_tables
from kdcache.store.format.manifest import MAX_SHARDS
from kdcache.tools.verify import verify_cache
from tests.store.hostile import PLACES, in_time, survives
from tests.store.synthetic import (
    COUNTS,
    edit_json,
    edit_record,
    make_shards,
    manifest,
    relabel,
    stored_object,
    write_view,
)

HUGE = 1 << 53


@pytest.fixture
def view(view_with_table):
    return view_with_table


class TestSwaps:
    """Everything is whole, but in another's place."""

    def test_objects_of_two_shards(self, view):
        for name in ("values", "fingerprint", "ids"):
            one, other = (stored_object(view, shard, name) for shard in (0, 1))
            first, second = one.read_bytes(), other.read_bytes()
            one.write_bytes(second)
            other.write_bytes(first)
            found = verify_cache(view.cache)
            assert [damaged.shard for damaged in found.damaged] == [0, 1]
            one.write_bytes(first)
            other.write_bytes(second)
        assert verify_cache(view.cache).is_sound

    def test_attempts_of_two_shards(self, view):
        """The folders, by their names; the records still say what was in them."""
        names = [f"shard-{n:06d}.{view.commits[n].attempt}" for n in (0, 1)]
        (view.folder / names[0]).rename(view.folder / "aside")
        (view.folder / names[1]).rename(view.folder / names[0])
        (view.folder / "aside").rename(view.folder / names[1])
        assert [damaged.shard for damaged in verify_cache(view.cache).damaged] == [0, 1]
        assert not survives(view.cache)

    @pytest.mark.parametrize("signs", [False, True])
    def test_records_of_two_shards(self, view, signs):
        (view.folder / "index.json").unlink()
        records = [view.folder / "commits" / f"shard-{n:06d}.json" for n in (0, 1)]
        contents = [record.read_text() for record in records]
        for shard, record in enumerate(records):
            record.write_text(contents[1 - shard])
            if signs:  # with the number and range that the place asks for
                start, stop = view.manifest.shard_range(shard)
                moved = {"shard": shard, "start": start, "stop": stop}
                edit_record(record, lambda value, moved=moved: {**value, **moved})
        assert not survives(view.cache)
        assert not verify_cache(view.cache).is_sound

    def test_a_shard_of_another_split(self, view):
        """Its objects, its record, and both: none has the content that is recorded."""
        wanted = manifest(split="other")
        other = write_view(view.cache, wanted, make_shards(wanted, seed=50))
        theirs = other.folder / f"shard-000001.{other.commits[1].attempt}"
        ours = view.folder / f"shard-000001.{view.commits[1].attempt}"
        shutil.rmtree(ours)
        shutil.copytree(theirs, ours)
        (damaged,) = verify_cache(view.cache).damaged
        assert (damaged.split, damaged.shard) == ("train", 1)
        record = "commits/shard-000001.json"
        shutil.copy(other.folder / record, view.folder / record)
        shutil.copytree(theirs, view.folder / theirs.name)
        # A record that contradicts the index, whose digest is the view's.
        found = verify_cache(view.cache)
        assert [(d.split, d.shard) for d in found.damaged] == [("train", 1)]
        digest = open_cache(view.cache)["train"].digest
        assert digest == view.digest
        # Without an index it is still a record of another dump.
        (view.folder / "index.json").unlink()
        assert not survives(view.cache)
        # Nothing is left to contradict it where it lies about that, but it is another digest: no
        # local copy, and no run that recorded the digest, takes one for the other.
        relabel(view)
        assert open_cache(view.cache)["train"].digest != digest

    def test_an_index_of_another_split(self, view):
        wanted = manifest(split="other")
        other = write_view(view.cache, wanted, make_shards(wanted, seed=50))
        shutil.copy(other.folder / "index.json", view.folder / "index.json")
        assert not survives(view.cache)
        assert "index.json, shard 0 is of another dump" in verify_cache(view.cache).problems[0]


def set_manifest(view, **changes):
    def change(value):
        value["attributes"]["kdcache"] |= changes
        return value

    edit_json(view.folder / "zarr.json", change)


@pytest.mark.parametrize(
    "earlier",
    [
        [10], [11], [0], [-1], [5, 5], [6, 5], [HUGE], [1 << 200], [1.5], ["5"], [None], [True],
        [[5]], {"5": 5}, "5", 5, None, list(range(1, 10)), list(range(1, 1 << 17)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("has_index", [True, False])
def test_extended_from(view, earlier, has_index):
    """No value of it makes other shards of these, or takes long."""
    if not has_index:
        (view.folder / "index.json").unlink()
    set_manifest(view, extended_from=earlier)
    assert not in_time(survives, view.cache)


def test_extended_from_many_times_and_very_large(view):
    """65,536 stretches, 2**20 shards in each of which a range has to be looked up."""
    (view.folder / "index.json").unlink()
    ends = list(range(1 << 10, (1 << 16) << 10, 1 << 10))
    set_manifest(view, extended_from=ends, num_samples=ends[-1] + 1, samples_per_shard=1 << 6)
    assert not in_time(survives, view.cache)


@pytest.mark.parametrize("pilot", [{"a": "1"}, {"a": 1e200}, {"a": 10**400}, {"a": None}, [], 5])
def test_pilot(view, pilot):
    set_manifest(view, pilot=pilot)
    assert not survives(view.cache)


class TestOpenStreams:
    @pytest.fixture
    def stream(self, tmp_path):
        wanted = manifest(num_samples=UNKNOWN_LENGTH)
        writer = ViewWriter.create(tmp_path / "stream", wanted, {})
        writer.write_shard(0, make_shards(manifest())[0])
        return open_cache(tmp_path / "stream")["train"]

    def test_a_record_far_out_does_not_make_a_list_of_everything(self, stream):
        """The gaps before it are pending, no more than a view may have shards."""
        for name in (
            "shard-999999.json",
            f"shard-{MAX_SHARDS - 1}.json",
            "shard-999999999999.json",
        ):
            (stream.folder / "commits" / name).write_text("{}")
            assert not in_time(survives, stream.cache)
        writer = ViewWriter(stream.folder, stream.manifest)
        assert len(writer.pending()) <= MAX_SHARDS

    @pytest.mark.parametrize(
        "end",
        [None, 0, -1, 3, 5, HUGE, HUGE + 1, HUGE + 2, 1 << 64, 10**400, 4.0, "4", True, [], {}],
    )
    def test_an_end_that_cannot_be(self, stream, end):
        (stream.folder / "end.json").write_text(json.dumps({"num_samples": end}))
        assert not in_time(survives, stream.cache)

    def test_the_end_that_fits(self, stream):
        (stream.folder / "end.json").write_text('{"num_samples": 4}')
        assert survives(stream.cache)

    @pytest.mark.parametrize("text", ["", "{", "[]", "4", '{"length": 4}', "\ufeff{}"])
    def test_an_end_that_is_no_record(self, stream, text):
        (stream.folder / "end.json").write_text(text)
        assert not survives(stream.cache)

    def test_a_numbered_view_ignores_an_end(self, view):
        (view.folder / "end.json").write_text('{"num_samples": 4}')
        assert survives(view.cache)
        assert open_cache(view.cache)["train"].manifest.num_samples == 10


class TestTables:
    @pytest.mark.parametrize("number", [np.nan, -np.nan])
    def test_nan_is_refused_before_it_is_written(self, tmp_path, number):
        table = np.asarray([1.0, number], np.float32)
        wanted = manifest(tables={"mean": table_digest(table)})
        with pytest.raises(UsageError, match="'mean' has NaN in it"):
            ViewWriter.create(tmp_path / "cache.zarr", wanted, {"mean": table})
        assert not (tmp_path / "cache.zarr").exists()

    @pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
    def test_nan_that_somebody_else_wrote(self, tmp_path, monkeypatch, dtype):
        table = np.asarray([[1.0, np.nan], [-np.inf, 2.0]], dtype)
        monkeypatch.setattr(store_tables, "_has_nan", lambda _: False)
        wanted = manifest(tables={"mean": table_digest(table)})
        view = write_view(tmp_path / "cache.zarr", manifest(), make_shards(manifest()))
        store_tables.write_tables(view.cache, {"mean": table})
        (view.folder / "index.json").unlink()
        set_manifest(view, tables=dict(wanted.tables))
        relabel(view)
        assert survives(view.cache)
        monkeypatch.undo()
        assert not survives(view.cache)
        assert "has NaN in it" in verify_cache(view.cache).problems[0]

    def test_infinity_is_a_number(self, tmp_path):
        table = np.asarray([-np.inf, 0.0], np.float32)
        wanted = manifest(tables={"mean": table_digest(table)})
        ViewWriter.create(tmp_path / "cache.zarr", wanted, {"mean": table})
        assert open_cache(tmp_path / "cache.zarr")["train"].read_tables()["mean"][0] == -np.inf

    @pytest.mark.parametrize("shape", [[1] * 9, [1] * 100, [2**31, 2**31], [6, 0], [-6], [6.0], []])
    def test_other_shapes(self, view, shape):
        marker = PLACES["table metadata"](view)
        edit_json(marker, lambda value: {**value, "shape": shape})
        assert not survives(view.cache)


class TestSizes:
    """Every claim fits every other; only its size is wrong."""

    def test_many_columns_of_a_gigabyte(self, tmp_path):
        """A shard as a whole is bounded, too: 200 columns of 1 GiB would be asked for at once."""
        columns = [Column(name=f"v{n}", per="sample", dtype="uint8", shape=(1 << 22,)) for n in
                   range(200)]  # fmt: skip
        wanted = manifest(num_samples=200, samples_per_shard=200, columns=(COUNTS, *columns))
        writer = ViewWriter.create(tmp_path / "cache.zarr", wanted, {})
        zeros = {column.name: np.zeros((200, 1), np.uint8) for column in columns}
        counts = {"num_positions": np.zeros(200, np.int32)}
        wide = {name: np.broadcast_to(rows, (200, 1 << 22)) for name, rows in zeros.items()}
        with pytest.raises(UsageError, match="all columns together of one shard"):
            writer.write_shard(0, {**counts, **wide})

        array = {"checksum": "0" * 16, "digest": "0" * 32, "metadata": "0" * 16}
        arrays = {c.name: {**array, "rows": 200, "stored_bytes": 200 << 20} for c in columns}
        arrays["num_positions"] = {**array, "rows": 200, "stored_bytes": 100}
        record = {"shard": 0, "attempt": "0" * 12, "start": 0, "stop": 200, "statistics": {}}
        record |= {"origin": wanted.origin, "labels": {}}
        path = writer.folder / "commits" / "shard-000000.json"
        path.write_text(json.dumps({**record, "arrays": arrays, "checksum": ""}))
        edit_record(path, lambda value: value)
        with pytest.raises(CacheCorruptedError, match=r"more than a shard holds|claims"):
            _ = open_cache(tmp_path / "cache.zarr")["train"].commits
        assert not survives(tmp_path / "cache.zarr")

    def test_records_too_wide_for_a_table_in_memory(self, tmp_path):
        """32 columns of 32 MiB a row: a record of a GiB."""
        columns = [
            Column(name=f"v{n}", per="position", dtype="float64", shape=(1 << 22,))
            for n in range(100)
        ]
        wanted = manifest(num_samples=2, columns=(COUNTS, *columns))
        counts = {"num_positions": np.asarray([0, 0], np.int32)}
        none = {column.name: np.zeros((0, 1 << 22)) for column in columns}
        view = write_view(tmp_path / "cache.zarr", wanted, {0: {**counts, **none}})
        assert survives(view.cache)

    def test_a_hole_of_a_gigabyte_in_place_of_an_object(self, view):
        """A sparse file costs nothing; the record that agrees with it is refused first."""
        file = stored_object(view, 1, "values")
        with file.open("r+b") as stream:
            stream.truncate(1 << 30)
        (view.folder / "index.json").unlink()

        def agree(value):
            value["arrays"]["values"]["stored_bytes"] = 1 << 30
            return value

        edit_record(view.folder / "commits" / "shard-000001.json", agree)
        assert not survives(view.cache)

    @pytest.mark.parametrize("place", ["manifest", "record", "index"])
    def test_metadata_of_a_gigabyte(self, view, place):
        path = PLACES[place](view)
        if place == "record":
            (view.folder / "index.json").unlink()
        with path.open("r+b") as stream:
            stream.truncate(1 << 30)
        assert not survives(view.cache)

    @pytest.mark.parametrize("place", ["manifest", "record"])
    def test_metadata_of_many_values(self, view, place):
        """3 bytes in the file, 64 in memory: 60 MB would be more than a gigabyte."""
        path = PLACES[place](view)
        if place == "record":
            (view.folder / "index.json").unlink()
        path.write_bytes(b'{"a":[' + b"[]," * (20 << 20) + b"[]]}")
        assert not survives(view.cache)


def test_columns_of_another_type(view):
    """The bytes fit, so that it is a view of other numbers: it has another digest."""
    digest = view.digest
    (view.folder / "index.json").unlink()

    def change(value):
        for column in value["attributes"]["kdcache"]["columns"]:
            if column["name"] == "values":
                column["dtype"] = "int16"
        return value

    edit_json(view.folder / "zarr.json", change)
    assert not survives(view.cache)
    relabel(view)
    assert open_cache(view.cache)["train"].digest != digest
    rows = open_local_copy(open_cache(view.cache)["train"]).take([0])
    assert rows["values"].dtype == np.int16


@pytest.mark.parametrize("shape", [[], [1], [4], [3, 1], [1, 3], [1, 1, 3], [3, 2]])
def test_columns_of_other_shapes(view, shape):
    (view.folder / "index.json").unlink()

    def change(value):
        for column in value["attributes"]["kdcache"]["columns"]:
            if column["name"] == "values":
                column["shape"] = shape
        return value

    edit_json(view.folder / "zarr.json", change)
    relabel(view)
    # The object lies where its rank says, and has the size of rows of its shape.
    assert not survives(view.cache)
