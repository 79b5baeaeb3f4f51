"""What ``kdcache clean`` may remove: nothing that counts, is young, is foreign, or lies outside."""

from __future__ import annotations

import os
import shutil
import time

import numpy as np
import pytest

from kdcache.errors import CacheError
from kdcache.store import ViewWriter, open_cache, table_digest, writer
from kdcache.store.care import leftovers
from kdcache.store.care.leftovers import find_leftovers, remove_leftover
from kdcache.tools.verify import verify_cache
from tests.store.synthetic import (
    edit_record,
    equal_bits,
    files_below,
    make_shards,
    manifest,
    stored_object,
    write_view,
)

HOUR_S = 3600.0
SHARDS = make_shards(manifest())
ATTEMPT = "0123456789ab"


@pytest.fixture
def view(tmp_path, stored):
    return stored(tmp_path / "cache.zarr", manifest())


def age(path, hours=2.0):
    """Make a file, or a folder with all that is in it, older."""
    for inner in (path, *path.rglob("*")):
        if not inner.is_symlink():
            os.utime(inner, (time.time() - hours * HOUR_S,) * 2)
    return path


def lost_attempt(view, shard=0, name=ATTEMPT, hours=2.0):
    """An attempt that another one was faster than."""
    source = view.folder / f"shard-{shard:06d}.{view.commits[shard].attempt}"
    return age(shutil.copytree(source, view.folder / f"shard-{shard:06d}.{name}"), hours)


def found_in(view, hours=1.0, **options):
    return find_leftovers(open_cache(view.cache), older_than_s=hours * HOUR_S, **options)


def paths(found):
    return [leftover.path for leftover in found]


def clear(view, hours=1.0):
    """Remove what is old; the view must be what it was."""
    before = open_cache(view.cache)["train"].digest
    for leftover in found_in(view, hours).old:
        assert remove_leftover(open_cache(view.cache), leftover)
    assert verify_cache(view.cache).is_sound
    assert open_cache(view.cache)["train"].digest == before


def test_nothing_to_find(view):
    age(view.cache)
    found = found_in(view)
    assert (found.old, found.recent, found.foreign, found.unclear) == ((), (), (), ())


def test_attempts_that_no_commit_names(view):
    first, second = lost_attempt(view, 0), lost_attempt(view, 2, "f" * 12)
    (second / "ids" / "zarr.json").unlink()
    age(second)
    before = files_below(view.cache)
    found = found_in(view)
    assert paths(found.old) == [first, second]
    assert {leftover.kind for leftover in found.old} == {"attempt"}
    assert found.old[0].num_bytes == sum(p.stat().st_size for p in first.rglob("*") if p.is_file())
    assert files_below(view.cache) == before, "looking changed something"
    clear(view)
    assert not first.exists()
    assert not second.exists()
    assert found_in(view).old == ()


def test_temporary_names_of_ours(view, tmp_path):
    token = "0123456789ab"
    (view.cache / "tables").mkdir()
    places = [
        view.cache / f".zarr.json.{token}",
        view.cache / "train" / f".zarr.json.{token}",
        view.folder / f".index.json.{token}",
        view.folder / f".end.json.{token}.aside",
        view.folder / "commits" / f".shard-000001.json.{token}",
        view.folder / "commits" / f".shard-000002.json.{token}.aside",
        view.cache / "tables" / f".{'a' * 32}.{token}",
    ]
    for place in places[:-1]:
        place.write_text("{")
    (places[-1] / "c").mkdir(parents=True)
    (places[-1] / "c" / f"0.{'b' * 32}.partial").write_bytes(b"half")
    for place in places:
        age(place)
    found = found_in(view)
    assert set(paths(found.old)) == set(places)
    assert {leftover.kind for leftover in found.old} == {"temporary", "put aside"}
    clear(view)
    assert not any(place.exists() for place in places)


def test_what_a_repair_put_aside(view):
    file = stored_object(view, 1, "values")
    file.write_bytes(b"damaged")
    verify_cache(view.cache, repair=True)
    view_writer = ViewWriter.create(view.cache, manifest(), {})
    view_writer.write_shard(1, SHARDS[1])
    view_writer.finish()
    age(view.cache)
    names = sorted(leftover.path.name for leftover in found_in(view).old)
    assert len(names) == 3  # the record, the index, and the attempt that the record named
    assert names[0].startswith(".index.json.")
    assert names[1].startswith(".shard-000001.json.")
    assert names[2].startswith("shard-000001.")
    clear(view)


def test_tables_that_no_split_names(tmp_path):
    used, unused = np.arange(4, dtype=np.float32), np.arange(5, dtype=np.float32)
    cache = tmp_path / "cache.zarr"
    for split, table in (("train", used), ("gone", unused)):
        wanted = manifest(split=split, tables={"mean": table_digest(table)})
        view_writer = ViewWriter.create(cache, wanted, {"mean": table})
        for shard, columns in SHARDS.items():
            view_writer.write_shard(shard, columns)
        view_writer.finish()
    age(cache)
    view = open_cache(cache)["train"]
    assert found_in(view).old == ()
    marker = cache / "gone" / "view-000" / "zarr.json"
    good = marker.read_text()
    marker.write_text("{")
    found = found_in(view)
    assert found.old == ()  # who knows what that split names
    assert "not valid JSON" in found.unclear[0]
    marker.write_text(good)
    shutil.rmtree(cache / "gone")
    (leftover,) = found_in(view).old
    assert (leftover.kind, leftover.path.name) == ("table", table_digest(unused))
    clear(view)
    assert open_cache(cache)["train"].read_tables().keys() == {"mean"}


class TestYoung:
    def test_the_newest_file_counts(self, view):
        attempt = lost_attempt(view)
        os.utime(attempt / "values" / "zarr.json")
        found = found_in(view)
        assert found.old == ()
        assert paths(found.recent) == [attempt]
        assert paths(found_in(view, hours=0).old) == [attempt]

    def test_a_clock_that_is_ahead(self, view):
        attempt = age(lost_attempt(view), hours=-5)
        assert paths(found_in(view).recent) == [attempt]

    def test_a_second_writer_in_the_middle_of_a_shard(self, view, monkeypatch):
        """Its attempt is older than an hour but for the column that it writes now."""
        old = lost_attempt(view, 1)
        (view.folder / "commits" / "shard-000001.json").unlink()
        (view.folder / "index.json").unlink()
        view_writer = ViewWriter.create(view.cache, manifest(), {})
        real, seen = writer.write_array, []

        def cleaned_meanwhile(group, column, rows):
            stored = real(group, column, rows)
            if column.name == "values":
                age(group)
                os.utime(group / "values" / "zarr.json")
                seen.append((group, found_in(view)))
                for leftover in seen[0][1].old:
                    remove_leftover(open_cache(view.cache), leftover)
            return stored

        monkeypatch.setattr(writer, "write_array", cleaned_meanwhile)
        assert view_writer.write_shard(1, SHARDS[1]) is not None
        ((group, found),) = seen
        assert group in paths(found.recent)
        assert old in paths(found.old)
        assert not old.exists()
        assert view_writer.finish()
        assert verify_cache(view.cache).is_sound

    def test_one_that_is_committed_while_it_is_removed(self, view, monkeypatch):
        """It slept, and wakes up between the look and the removal."""
        attempt = lost_attempt(view, 1)
        (leftover,) = found_in(view).old
        record = view.folder / "commits" / "shard-000001.json"
        (view.folder / "index.json").unlink()
        real = leftovers.set_aside

        def committed_meanwhile(path):
            aside = real(path)
            edit_record(record, lambda value: {**value, "attempt": ATTEMPT})
            return aside

        monkeypatch.setattr(leftovers, "set_aside", committed_meanwhile)
        assert not remove_leftover(open_cache(view.cache), leftover)
        assert attempt.is_dir()
        found = open_cache(view.cache)["train"]
        assert found.commits[1].attempt == ATTEMPT
        assert equal_bits(found.read_shard(found.commits[1]), SHARDS[1])

    def test_one_that_was_committed_since_it_was_listed(self, view):
        attempt = lost_attempt(view, 1)
        (leftover,) = found_in(view).old
        record = view.folder / "commits" / "shard-000001.json"
        (view.folder / "index.json").unlink()
        edit_record(record, lambda value: {**value, "attempt": ATTEMPT})
        assert not remove_leftover(open_cache(view.cache), leftover)
        assert attempt.is_dir()


class TestUnclear:
    """What cannot be judged stays."""

    def test_attempts_of_a_shard_whose_record_is_damaged(self, view):
        attempt = lost_attempt(view, 1)
        (view.folder / "index.json").unlink()
        (view.folder / "commits" / "shard-000001.json").write_text("{")
        age(view.cache)
        found = found_in(view)
        assert found.old == ()
        assert len(found.unclear) == 1
        assert attempt.is_dir()

    def test_attempts_that_only_a_damaged_index_may_name(self, view):
        shutil.rmtree(view.folder / "commits")
        index = view.folder / "index.json"
        index.write_text(index.read_text().replace('"rows":4', '"rows":5', 1))
        age(view.cache)
        found = found_in(view)
        assert found.old == ()
        assert "its checksum is wrong" in found.unclear[0]

    def test_a_view_without_its_manifest(self, view):
        lost_attempt(view)
        (view.folder / "zarr.json").unlink()
        age(view.cache)
        assert found_in(view).old == ()

    def test_attempts_that_index_or_record_name_stay_both(self, view):
        """The index is older than a record: until it is gathered again, readers go by it."""
        lost_attempt(view, 1)
        record = view.folder / "commits" / "shard-000001.json"
        edit_record(record, lambda value: {**value, "attempt": ATTEMPT})
        age(view.cache)
        assert found_in(view).old == ()


class TestForeign:
    def test_names_that_are_not_ours(self, view):
        attempt = view.folder / f"shard-000000.{ATTEMPT}"
        places = [
            view.cache / "notes.txt",
            view.cache / ".DS_Store",
            view.cache / "folder" / "inner.txt",
            view.cache / "train" / "readme.md",
            view.folder / "extra.json",
            view.folder / "commits" / "shard-x.json",
            view.folder / "commits" / ".shard-000000.json.swp",
            view.folder / "shard-000000.backup" / "zarr.json",
        ]
        for place in places:
            place.parent.mkdir(exist_ok=True)
            place.write_text("mine")
        age(view.cache)
        found = found_in(view)
        assert found.old == ()
        assert set(found.foreign) == {
            *(place for place in places if place.name not in ("inner.txt", "zarr.json")),
            view.cache / "folder",
            view.folder / "shard-000000.backup",
        }
        assert not attempt.exists()
        clear(view, hours=0)
        assert all(place.read_text() == "mine" for place in places)

    @pytest.mark.parametrize("inner", ["notes.txt", "values/notes.txt", "values/c/1", "other/c/0"])
    def test_an_attempt_with_somebody_elses_file_in_it(self, view, inner):
        attempt = lost_attempt(view)
        (attempt / inner).parent.mkdir(exist_ok=True, parents=True)
        (attempt / inner).write_text("mine")
        age(attempt)
        found = found_in(view)
        assert found.old == ()
        assert found.foreign[0].is_relative_to(attempt)

    def test_a_file_by_the_name_of_a_column(self, view):
        attempt = lost_attempt(view)
        shutil.rmtree(attempt / "ids")
        (attempt / "ids").write_text("mine")
        assert found_in(view, hours=0).foreign == (attempt / "ids",)


class TestLinks:
    @pytest.fixture
    def outside(self, tmp_path):
        folder = tmp_path / "outside"
        folder.mkdir()
        (folder / "precious.txt").write_text("mine")
        yield folder
        assert files_below(folder) == {"precious.txt": b"mine"}

    def test_as_an_attempt_or_a_temporary_file(self, view, outside):
        links = [
            view.folder / f"shard-000000.{ATTEMPT}",
            view.folder / f".zarr.json.{ATTEMPT}",
            view.folder / "commits" / f".shard-000000.json.{ATTEMPT}.aside",
        ]
        for link in links:
            link.symlink_to(outside)
        found = found_in(view, hours=0)
        assert found.old == ()
        assert set(found.foreign) == set(links)
        clear(view, hours=0)
        assert all(link.is_symlink() for link in links)

    def test_within_an_attempt(self, view, outside):
        attempt = lost_attempt(view)
        shutil.rmtree(attempt / "values" / "c")
        (attempt / "values" / "c").symlink_to(outside)
        assert found_in(view, hours=0).old == ()
        assert found_in(view, hours=0).foreign == (attempt / "values" / "c",)

    @pytest.mark.parametrize("place", ["train", "train/view-000", "train/view-000/commits"])
    def test_in_place_of_a_folder(self, view, tmp_path, place):
        """Nothing behind it is looked at: it lies outside of the cache."""
        lost_attempt(view)
        moved = shutil.move(view.cache / place, tmp_path / "moved")
        (view.cache / place).symlink_to(moved)
        (tmp_path / "moved" / f".zarr.json.{ATTEMPT}").write_text("x")
        found = found_in(view, hours=0)
        assert view.cache / place in found.foreign
        for leftover in found.old:
            assert remove_leftover(open_cache(view.cache), leftover)
        assert (tmp_path / "moved" / f".zarr.json.{ATTEMPT}").exists()
        if place != "train/view-000/commits":
            assert found.old == ()

    def test_that_takes_an_attempts_place_after_the_look(self, view, outside):
        attempt = lost_attempt(view)
        (leftover,) = found_in(view).old
        shutil.rmtree(attempt)
        attempt.symlink_to(outside)
        remove_leftover(open_cache(view.cache), leftover)
        assert outside.is_dir()

    def test_that_takes_a_folders_place_after_the_look(self, view, tmp_path):
        attempt = lost_attempt(view)
        (leftover,) = found_in(view).old
        moved = shutil.move(view.folder, tmp_path / "moved")
        view.folder.symlink_to(moved)
        with pytest.raises(CacheError, match="symbolic link"):
            remove_leftover(open_cache(view.cache), leftover)
        assert attempt.is_dir()


def test_what_cannot_be_removed(view, monkeypatch):
    lost_attempt(view)
    (leftover,) = found_in(view).old

    def refuse(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("os.rename", refuse)
    with pytest.raises(CacheError, match=r"cannot be removed \(Read-only file system\)"):
        remove_leftover(open_cache(view.cache), leftover)


def test_streams_and_later_views(tmp_path):
    """All views of a split are looked through, and an end record is no foreign file."""
    view = write_view(tmp_path / "cache.zarr", manifest(), SHARDS)
    (view.folder / "end.json").write_text('{"num_samples": 10}')
    second = manifest(view=1)
    view_writer = ViewWriter.create(view.cache, second, {})
    view_writer.write_shard(0, SHARDS[0])
    assert view_writer.write_shard(0, SHARDS[0]) is None
    age(view.cache)
    found = found_in(view)
    assert found.foreign == ()
    (leftover,) = found.old
    assert leftover.path.parent == view_writer.folder
