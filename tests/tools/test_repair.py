"""verify --repair: damage becomes absence, the next dump fills it, and nothing is deleted."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from kdcache.cli import main
from kdcache.errors import CacheCorruptedError, CacheError, CacheIncompleteError
from kdcache.store import UNKNOWN_LENGTH, View, ViewWriter, open_cache, table_digest
from kdcache.store.care.repair import repair_view
from kdcache.tools.verify import verify_cache
from tests.data import toys
from tests.store.synthetic import (
    edit_json,
    edit_record,
    equal_bits,
    files_below,
    make_shards,
    manifest,
    stored_object,
    write_view,
)

TABLE = np.arange(6, dtype=np.float32)
WANTED = manifest(tables={"mean": table_digest(TABLE)})
SHARDS = make_shards(WANTED)


def dump(cache, wanted=WANTED, shards=SHARDS, tables=None):
    """Join the view and do what is pending; which shards that were."""
    view_writer = ViewWriter.create(cache, wanted, {"mean": TABLE} if tables is None else tables)
    pending = view_writer.pending()
    for shard in pending:
        assert view_writer.write_shard(shard, shards[shard], {"positions": 1.0}) is not None
    assert view_writer.finish()
    return pending


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    path = tmp_path_factory.mktemp("repair") / "cache.zarr"
    dump(path)
    return path


@pytest.fixture
def cache(original, tmp_path):
    return shutil.copytree(original, tmp_path / "cache.zarr")


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def remove(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def into_folder(path):
    path.unlink()
    path.mkdir()


def record(shard):
    return lambda view: view.folder / "commits" / f"shard-{shard:06d}.json"


def attempt(view):
    return view.folder / f"shard-000001.{view.commits[1].attempt}"


PLACES = {
    "object": lambda view: stored_object(view, 1, "values"),
    "array metadata": lambda view: attempt(view) / "ids" / "zarr.json",
    "attempt metadata": lambda view: attempt(view) / "zarr.json",
    "attempt": attempt,
    "record": record(1),
    "index": lambda view: view.folder / "index.json",
}
DAMAGES = [
    ("object", flip, (1,)),
    ("object", remove, (1,)),
    ("object", into_folder, (1,)),
    ("array metadata", flip, (1,)),
    ("array metadata", remove, (1,)),
    ("attempt metadata", flip, (1,)),
    ("attempt", remove, (1,)),
    ("record", flip, (1,)),
    ("record", into_folder, (1,)),
    ("index", flip, ()),
    ("index", into_folder, ()),
]


@pytest.mark.parametrize("has_index", [True, False])
@pytest.mark.parametrize(("place", "damage", "redone"), DAMAGES)
def test_any_damage_to_a_shard(cache, place, damage, redone, has_index):
    view = open_cache(cache)["train"]
    digest, attempts = view.digest, [commit.attempt for commit in view.commits]
    path = PLACES[place](view)
    if not has_index:
        if place == "index":
            return
        (view.folder / "index.json").unlink()
    damage(path)
    before = files_below(cache)
    found = verify_cache(cache, repair=True)
    assert not found.is_sound
    assert [(d.split, d.shard, d.start, d.stop) for d in found.damaged] == [
        ("train", shard, 4, 8) for shard in redone
    ]
    # What the index knows of a lost record needs no teacher.
    redone = () if place == "record" and has_index else redone
    assert found.pending == {"train": redone}
    contents = set(files_below(cache).values())
    assert set(before.values()) <= contents | ({b""} if redone == () else set())

    if redone:
        with pytest.raises(CacheIncompleteError):
            open_cache(cache)["train"].check_complete()
    else:
        assert verify_cache(cache).is_sound
    assert dump(cache) == redone
    assert verify_cache(cache).problems == ()
    again = open_cache(cache)["train"]
    assert again.digest == digest
    for shard, commit in enumerate(again.commits):
        assert (commit.attempt == attempts[shard]) == (shard not in redone)
        assert equal_bits(again.read_shard(commit), SHARDS[shard])


def test_two_flipped_shards_from_the_command_line(tmp_path, capsys):
    """Verify names both; after a repair the same dump redoes those two and no other."""
    cache = tmp_path / "teacher.zarr"
    view = toys.dump(cache, toys.labelled(40))["train"]
    digest, before = view.digest, {commit.shard: commit.attempt for commit in view.commits}
    assert len(before) == 5
    for shard in (1, 3):
        flip(stored_object(view, shard, "values"))
    times = {path: path.stat().st_mtime_ns for path in view.folder.glob("shard-*/**/*")}

    assert main(["verify", str(cache)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("- train: shard 1 (samples 8 to 15): ")
    assert lines[1].startswith("- train: shard 3 (samples 24 to 31): ")
    assert "--repair marks damaged shards as pending" in lines[2]
    assert len(lines) == 3
    assert main(["verify", str(cache), "--repair"]) == 1
    assert (
        "train: shards 1, 3 pending. Run the same kdcache dump-teacher command again; it redoes "
        "those and no other."
    ) in capsys.readouterr().out
    assert open_cache(cache)["train"].pending == (1, 3)

    again = toys.dump(cache, toys.labelled(40))["train"]
    assert main(["verify", str(cache)]) == 0
    assert again.digest == digest
    changed = {c.shard for c in again.commits if before[c.shard] != c.attempt}
    assert changed == {1, 3}
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_a_sound_cache_is_left_alone(cache):
    before = files_below(cache)
    found = verify_cache(cache, repair=True)
    assert found.is_sound
    assert (found.repairs, found.pending) == ((), {})
    assert files_below(cache) == before


def test_records_that_only_the_index_has(cache):
    """One shard is damaged and all records are lost: the other shards are not done again."""
    view = open_cache(cache)["train"]
    flip(stored_object(view, 0, "values"))
    shutil.rmtree(view.folder / "commits")
    assert verify_cache(cache, repair=True).pending == {"train": (0,)}
    assert dump(cache) == (0,)
    assert verify_cache(cache).is_sound


def test_a_record_that_is_newer_than_the_index_stands(cache):
    """Somebody removed a record by hand, dumped again, and that was killed before its end."""
    view = open_cache(cache)["train"]
    flip(stored_object(view, 1, "values"))
    record(1)(view).unlink()
    writer = ViewWriter.create(cache, WANTED, {})
    repaired = writer.write_shard(1, SHARDS[1], {"positions": 1.0})
    found = verify_cache(cache, repair=True)
    assert [damaged.shard for damaged in found.damaged] == [1]
    assert found.pending == {"train": ()}
    assert verify_cache(cache).is_sound
    assert open_cache(cache)["train"].commits[1] == repaired


def test_a_record_of_a_shard_that_cannot_be(cache):
    view = open_cache(cache)["train"]
    shutil.copy(record(2)(view), record(3)(view))
    found = verify_cache(cache, repair=True)
    assert "records of shards that it cannot have, the first of shard 3" in found.problems[0]
    assert verify_cache(cache).is_sound


def test_damage_in_every_shard(cache):
    view = open_cache(cache)["train"]
    for shard in range(3):
        flip(stored_object(view, shard, "ids"))
    assert verify_cache(cache, repair=True).pending == {"train": (0, 1, 2)}
    assert dump(cache) == (0, 1, 2)
    assert open_cache(cache)["train"].digest == view.digest


class TestTables:
    def stored(self, cache):
        return next((cache / "tables" / table_digest(TABLE)).rglob("c/0"))

    @pytest.mark.parametrize("damage", [flip, remove])
    def test_are_written_anew_by_the_next_dump(self, cache, damage):
        damage(self.stored(cache))
        found = verify_cache(cache, repair=True)
        assert "the next dump writes table 'mean' if its codec comes to" in found.repairs[0]
        view = open_cache(cache)["train"]
        assert not view.is_complete
        with pytest.raises(CacheIncompleteError, match="table 'mean' is not there"):
            view.check_complete()
        assert dump(cache) == ()
        assert verify_cache(cache).is_sound
        assert np.array_equal(open_cache(cache)["train"].read_tables()["mean"], TABLE)

    def test_also_without_a_repair(self, cache):
        flip(self.stored(cache))
        assert dump(cache) == ()
        assert verify_cache(cache).is_sound

    def test_another_table_does_not_take_its_place(self, cache):
        flip(self.stored(cache))
        dump(cache, tables={"mean": TABLE + 1})
        with pytest.raises(CacheCorruptedError, match=r"tables.*has a wrong checksum"):
            open_cache(cache)["train"].read_tables()

    def test_sound_ones_are_not_touched(self, cache):
        before = files_below(cache / "tables")
        dump(cache)
        assert files_below(cache / "tables") == before


class TestManifest:
    @pytest.mark.parametrize("damage", [flip, lambda path: path.write_text("{")])
    def test_cannot_be_repaired(self, cache, damage):
        damage(cache / "train" / "view-000" / "zarr.json")
        flip(next((cache / "train" / "view-000").glob("shard-000001.*/values/zarr.json")))
        before = files_below(cache)
        found = verify_cache(cache, repair=True)
        assert not found.is_sound
        assert "train: nothing was changed, this cannot be repaired: " in found.repairs[-1]
        assert files_below(cache) == before

    def test_is_not_covered_up_by_a_new_index(self, cache):
        """One letter of a class name: the records agree with either."""
        named = manifest(class_names=("cat", "dog", "eel"))
        other = cache.with_name("named")
        view = write_view(other, named, SHARDS)
        marker = view.folder / "zarr.json"
        marker.write_text(marker.read_text().replace('"dog"', '"dig"'))
        found = verify_cache(other, repair=True)
        assert "zarr.json was changed after the dump. Restore that" in found.problems[0]
        assert "this cannot be repaired" in found.repairs[-1]
        assert not verify_cache(other).is_sound

    def test_what_is_only_for_people_is_looked_at_too(self, cache):
        marker = cache / "train" / "view-000" / "zarr.json"

        def later(value):
            value["attributes"]["kdcache"]["created"] = {"kdcache": "9"}
            return value

        edit_json(marker, later)
        (problem,) = verify_cache(cache).problems
        assert "was changed after the dump in what is only for people" in problem

    def test_missing(self, cache):
        (cache / "train" / "view-000" / "zarr.json").unlink()
        (problem, _) = verify_cache(cache, repair=True).problems
        assert "has no manifest (zarr.json), which nothing can repair" in problem


class TestGroups:
    @pytest.mark.parametrize("place", ["train", "tables"])
    @pytest.mark.parametrize("damage", [flip, remove, into_folder])
    def test_of_splits_and_tables_are_written_anew(self, cache, original, place, damage):
        damage(cache / place / "zarr.json")
        assert not verify_cache(cache, repair=True).is_sound
        assert verify_cache(cache).is_sound
        good = (original / place / "zarr.json").read_bytes()
        assert (cache / place / "zarr.json").read_bytes() == good

    def test_of_the_cache_itself(self, cache, original):
        (cache / "zarr.json").write_text("{")
        with pytest.raises(CacheCorruptedError):
            verify_cache(cache)
        found = verify_cache(cache, repair=True)
        assert not found.is_sound
        assert found.repairs == (f"{cache / 'zarr.json'} was written anew",)
        assert verify_cache(cache).is_sound
        assert (cache / "zarr.json").read_bytes() == (original / "zarr.json").read_bytes()

    def test_of_nothing_like_a_cache(self, tmp_path):
        (tmp_path / "zarr.json").write_text("{")
        with pytest.raises(CacheCorruptedError, match="Nothing was changed"):
            verify_cache(tmp_path, repair=True)
        assert files_below(tmp_path) == {"zarr.json": b"{"}


class TestStreams:
    STREAM = manifest(num_samples=UNKNOWN_LENGTH)

    @pytest.fixture
    def view(self, tmp_path):
        view_writer = ViewWriter.create(tmp_path / "stream", self.STREAM, {})
        for shard in (0, 1):
            view_writer.write_shard(shard, SHARDS[shard])
        view_writer.end(10)
        view_writer.write_shard(2, SHARDS[2])
        assert view_writer.finish()
        return open_cache(tmp_path / "stream")["train"]

    def dump_again(self, view):
        """As stage one does it: to the stream's end, then what is pending."""
        view_writer = ViewWriter.create(view.cache, self.STREAM, {})
        view_writer.end(10)
        for shard in view_writer.pending():
            view_writer.write_shard(shard, SHARDS[shard])
        assert view_writer.finish()

    @pytest.mark.parametrize("text", ["{", "[]", '{"num_samples": -1}', '{"num_samples": null}'])
    def test_an_end_that_cannot_be_read(self, view, text):
        digest = view.digest
        (view.folder / "end.json").write_text(text)
        assert "end.json" in verify_cache(view.cache).problems[0]
        assert verify_cache(view.cache, repair=True).repairs
        assert not open_cache(view.cache)["train"].is_complete
        self.dump_again(view)
        assert verify_cache(view.cache).is_sound
        assert open_cache(view.cache)["train"].digest == digest

    @pytest.mark.parametrize("length", [4, 9, 11, 12, 13, 1 << 20])
    @pytest.mark.parametrize("has_index", [True, False])
    def test_an_end_that_is_wrong(self, view, length, has_index):
        digest = view.digest
        (view.folder / "end.json").write_text(f'{{"num_samples": {length}}}')
        if not has_index:
            (view.folder / "index.json").unlink()
        assert not verify_cache(view.cache, repair=True).is_sound
        # The index knows the right one.
        assert verify_cache(view.cache).is_sound == has_index
        self.dump_again(view)
        assert verify_cache(view.cache).is_sound
        assert open_cache(view.cache)["train"].digest == digest

    def test_a_damaged_shard_keeps_the_end(self, view):
        flip(stored_object(view, 1, "values"))
        assert verify_cache(view.cache, repair=True).pending == {"train": (1,)}
        assert open_cache(view.cache)["train"].manifest.num_samples == 10
        self.dump_again(view)
        assert verify_cache(view.cache).is_sound

    def test_a_damaged_manifest_is_not_taken_for_an_end(self, view):
        marker = view.folder / "zarr.json"
        marker.write_text(marker.read_text().replace("91c4", "91c5"))
        before = files_below(view.cache)
        assert "this cannot be repaired" in verify_cache(view.cache, repair=True).repairs[-1]
        assert files_below(view.cache) == before

    def test_one_that_goes_on_is_not_complete_but_not_damaged(self, tmp_path):
        view_writer = ViewWriter.create(tmp_path / "open", self.STREAM, {})
        view_writer.write_shard(0, SHARDS[0])
        found = verify_cache(tmp_path / "open", repair=True)
        assert found.problems == ("train: the end of the stream was not reached",)
        assert found.repairs == ()
        assert open_cache(tmp_path / "open")["train"].pending == (1,)


class TestLinks:
    @pytest.mark.parametrize("place", ["train", "train/view-000", "train/view-000/commits"])
    def test_nothing_is_changed_behind_them(self, cache, tmp_path, place):
        flip(stored_object(open_cache(cache)["train"], 1, "values"))
        elsewhere = shutil.move(cache / place, tmp_path / "elsewhere")
        (cache / place).symlink_to(elsewhere)
        before = files_below(tmp_path)
        found = verify_cache(cache, repair=True)
        assert "is a symbolic link. Nothing was changed" in found.repairs[0]
        assert files_below(tmp_path) == before

    def test_a_record_that_is_one(self, cache, tmp_path):
        """The link is put aside; what it leads to stays as it is."""
        view = open_cache(cache)["train"]
        (view.folder / "index.json").unlink()
        target = tmp_path / "outside.json"
        target.write_text("{}")
        record(1)(view).unlink()
        record(1)(view).symlink_to(target)
        assert verify_cache(cache, repair=True).pending == {"train": (1,)}
        assert target.read_text() == "{}"


def test_repair_needs_no_help_to_see_what_contradicts(cache):
    view = open_cache(cache)["train"]
    edit_record(record(1)(view), lambda value: {**value, "statistics": {"entropy": 5.0}})
    assert repair_view(View(cache=cache, folder=view.folder), []).pending == ()
    assert verify_cache(cache).is_sound
    assert open_cache(cache)["train"].commits[1].statistics == {"entropy": 5.0}


def test_a_folder_that_cannot_be_written(cache, monkeypatch):
    flip(stored_object(open_cache(cache)["train"], 1, "values"))

    def refuse(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("os.rename", refuse)
    found = verify_cache(cache, repair=True)
    assert "cannot be written (Read-only file system)" in found.repairs[-1]
    assert not found.is_sound
    monkeypatch.undo()
    with pytest.raises(CacheError, match="is damaged"):
        open_cache(cache)["train"].read_shard(open_cache(cache)["train"].commits[1])
