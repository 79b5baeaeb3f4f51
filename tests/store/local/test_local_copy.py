"""The local copy: where it lies, when it is refused, and what is found to be damaged."""

from __future__ import annotations

import os
import pickle
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from kdcache.columns import Column
from kdcache.errors import CacheCorruptedError, CacheError, CacheIncompleteError, UsageError
from kdcache.store import ViewWriter, open_cache, open_local_copy
from kdcache.store.local.copy import default_folder
from tests.store.synthetic import (
    COLUMNS,
    COUNTS,
    concatenated,
    edit_json,
    equal_bits,
    expected_take,
    make_shards,
    manifest,
    stored_object,
    write_view,
)

UNIFORM = (COUNTS, Column(name="values", per="position", dtype="float16", shape=(3,)))
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(params=["uneven", "uniform", "counts only", "no positions at all"])
def view(request, tmp_path, stored):
    """The four ways in which records are laid out."""
    columns = {"uneven": COLUMNS, "counts only": (COUNTS,)}.get(request.param, UNIFORM)
    counts = {"uniform": [2], "no positions at all": [0]}.get(request.param, [2, 0, 3, 1])
    wanted = manifest(columns=columns)
    view = stored(tmp_path / "cache.zarr", wanted, counts)
    view.__dict__["whole"] = concatenated(make_shards(wanted, counts=counts))
    return view


def takes_right(view, copy):
    samples = [9, 0, 0, 4, 9, 3]
    expected = expected_take(view.manifest.columns, view.__dict__["whole"], samples)
    return equal_bits(copy.take(samples), expected) and equal_bits(
        copy.take([]), expected_take(view.manifest.columns, view.__dict__["whole"], [])
    )


def test_small_one_lives_in_memory(view, tmp_path):
    copy = open_local_copy(view, tmp_path / "local")
    assert copy.location is None
    assert not (tmp_path / "local").exists()
    assert takes_right(view, copy)
    copy.check()


def test_large_one_is_built_once_and_mapped(view, tmp_path):
    steps = []
    copy = open_local_copy(
        view,
        tmp_path / "local",
        in_memory_bytes=0,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert copy.location.parent == tmp_path / "local"
    assert takes_right(view, copy)
    copy.check()

    # The second student needs the metadata only.
    for folder in view.folder.glob("shard-*"):
        shutil.rmtree(folder)
    again = open_local_copy(open_cache(view.cache)["train"], tmp_path / "local", in_memory_bytes=0)
    assert again.location == copy.location
    assert takes_right(view, again)


def test_whole_columns(view, tmp_path):
    for in_memory_bytes in (0, 1 << 20):
        copy = open_local_copy(view, tmp_path / "local", in_memory_bytes=in_memory_bytes)
        for column in view.manifest.columns:
            if column.per == "sample":
                assert np.array_equal(copy.column(column.name), view.__dict__["whole"][column.name])
            else:
                with pytest.raises(UsageError, match="no column per sample"):
                    copy.column(column.name)
        with pytest.raises(UsageError):
            copy.column("__first")


def test_one_row_has_strides_of_its_own(view, tmp_path):
    """PyTorch refuses the strides of a record; NumPy calls one row contiguous whatever they are."""
    copy = open_local_copy(view, tmp_path)
    for sample in range(10):
        for name, rows in copy.take([sample]).items():
            assert all(stride % rows.itemsize == 0 for stride in rows.strides), name


@pytest.mark.parametrize("samples", [[-1], [0, 10], [1 << 40]])
def test_samples_out_of_range(view, samples):
    with pytest.raises(IndexError, match="0 to 9"):
        open_local_copy(view).take(samples)


def test_travels_to_a_spawned_worker(view, tmp_path):
    """DataLoader workers get the copy pickled: mapped files by name, not by content."""
    for in_memory_bytes in (0, 1 << 20):
        copy = open_local_copy(view, tmp_path / "local", in_memory_bytes=in_memory_bytes)
        assert takes_right(view, pickle.loads(pickle.dumps(copy)))
    big = manifest(columns=UNIFORM, num_samples=20_000, samples_per_shard=20_000)
    big_view = write_view(tmp_path / "big.zarr", big, make_shards(big, counts=[5]))
    copy = open_local_copy(big_view, tmp_path / "local", in_memory_bytes=0)
    assert len(pickle.dumps(copy)) < 10_000


def test_incomplete_view_has_no_copy(tmp_path):
    ViewWriter.create(tmp_path / "cache.zarr", manifest(), {})
    with pytest.raises(CacheIncompleteError):
        open_local_copy(open_cache(tmp_path / "cache.zarr")["train"], tmp_path / "local")


def test_too_little_disk(view, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(100, 90, 10))
    with pytest.raises(CacheError, match="KDCACHE_LOCAL"):
        open_local_copy(view, tmp_path / "local", in_memory_bytes=0)
    assert not [path for path in (tmp_path / "local").iterdir() if path.suffix != ".lock"]


def test_disk_full_while_building(view, tmp_path, monkeypatch):
    """Blocks are reserved first: a mapped write to a full disk would kill the process."""

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(CacheError, match=r"No space left on device.*KDCACHE_LOCAL"):
        open_local_copy(view, tmp_path / "local", in_memory_bytes=0)
    assert not [path for path in (tmp_path / "local").iterdir() if path.suffix != ".lock"]


def test_folder_that_cannot_be(view, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(CacheError, match="cannot be made"):
        open_local_copy(view, tmp_path / "file" / "local", in_memory_bytes=0)


def test_damaged_cache_leaves_no_copy(view, tmp_path):
    file = stored_object(view, 2, "num_positions")
    content = bytearray(file.read_bytes())
    content[3] ^= 1
    file.write_bytes(content)
    with pytest.raises(CacheCorruptedError, match="is damaged"):
        open_local_copy(view, tmp_path / "local", in_memory_bytes=0)
    assert not (tmp_path / "local").exists()


class TestDamagedCopy:
    @pytest.fixture
    def copy(self, view, tmp_path):
        return open_local_copy(view, tmp_path / "local", in_memory_bytes=0)

    def test_flipped_bit_is_found_by_check(self, view, copy, tmp_path):
        for file in copy.location.iterdir():
            if file.name == "copy.json":
                continue
            good = file.read_bytes()
            for position in (0, len(good) // 2, len(good) - 1):
                damaged = bytearray(good)
                damaged[position] ^= 4
                file.write_bytes(damaged)
                again = open_local_copy(view, tmp_path / "local", in_memory_bytes=0)
                with pytest.raises(CacheCorruptedError, match="Remove that folder"):
                    again.check()
            file.write_bytes(good)
        copy.check()

    @pytest.mark.parametrize("replace", [lambda _: None, Path.mkdir])
    def test_lost_table_is_found_by_check(self, copy, replace):
        """Also while it is still mapped: what counts is the file."""
        table = next(path for path in copy.location.iterdir() if path.name != "copy.json")
        table.unlink()
        replace(table)
        with pytest.raises(CacheCorruptedError, match="Remove that folder"):
            copy.check()

    def test_size_is_found_at_open(self, view, copy, tmp_path):
        for file in copy.location.iterdir():
            good = file.read_bytes()
            for content in (good[:-2], good + b"\0", None):
                file.unlink()
                if content is not None:
                    file.write_bytes(content)
                with pytest.raises(CacheCorruptedError, match=r"copy\.json|Remove that folder"):
                    open_local_copy(view, tmp_path / "local", in_memory_bytes=0)
            file.write_bytes(good)
        assert takes_right(view, open_local_copy(view, tmp_path / "local", in_memory_bytes=0))

    @pytest.mark.parametrize(
        "change", [{"num_positions": 1 << 40}, {"num_positions": -1}, {"rows": {}}]
    )
    def test_other_metadata(self, view, copy, tmp_path, change):
        edit_json(copy.location / "copy.json", lambda value: value | change)
        with pytest.raises(CacheCorruptedError):
            open_local_copy(view, tmp_path / "local", in_memory_bytes=0)


def test_environment_says_where(view, tmp_path, monkeypatch):
    monkeypatch.setenv("KDCACHE_LOCAL", str(tmp_path / "chosen"))
    assert open_local_copy(view, in_memory_bytes=0).location.parent == tmp_path / "chosen"
    monkeypatch.setenv("KDCACHE_LOCAL", "~/copies")
    assert default_folder() == Path.home() / "copies"
    monkeypatch.delenv("KDCACHE_LOCAL")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_folder() == tmp_path / "xdg" / "kdcache"


def test_the_folder_of_copies_is_a_file(view, tmp_path, monkeypatch):
    taken = tmp_path / "taken"
    taken.write_text("")
    monkeypatch.setenv("KDCACHE_LOCAL", str(taken))
    with pytest.raises(CacheError, match="cannot be made in") as error:
        open_local_copy(view, in_memory_bytes=0)
    assert "Mend that, or point KDCACHE_LOCAL" in str(error.value)
    assert "Make room" not in str(error.value)
