"""Creating views and writing shards: write-once, refused where it cannot be right."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
import zarr

from kdcache.columns import Column
from kdcache.errors import (
    CacheCorruptedError,
    CacheError,
    CacheIncompleteError,
    CacheMissingError,
    MismatchError,
    UsageError,
)
from kdcache.store import ViewWriter, check_cache_path, open_cache
from tests.store.synthetic import (
    COLUMNS,
    COUNTS,
    ENTRY_COUNTS,
    equal_bits,
    files_below,
    make_shards,
    manifest,
    random_columns,
    write_view,
)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "deep" / "cache.zarr"


def test_second_attempt_never_changes_what_is_read(cache):
    shards = make_shards(manifest())
    view = write_view(cache, manifest(), shards)
    digest, commits = view.digest, view.commits
    writer = ViewWriter.create(cache, manifest(), {})
    others = make_shards(manifest(), seed=77)
    for shard, columns in others.items():
        assert writer.write_shard(shard, columns) is None
    assert writer.finish()
    again = open_cache(cache)["train"]
    assert again.digest == digest
    assert again.commits == commits
    for commit in again.commits:
        assert equal_bits(again.read_shard(commit), shards[commit.shard])


def test_incomplete_view_says_how_far_it_is(cache):
    writer = ViewWriter.create(cache, manifest(), {})
    shards = make_shards(manifest())
    writer.write_shard(0, shards[0])
    writer.write_shard(2, shards[2])
    assert writer.pending() == (1,)
    assert not writer.finish()
    view = open_cache(cache)["train"]
    assert view.pending == (1,)
    with pytest.raises(CacheIncompleteError, match=r"2 of 3 shards .* samples 4 to 7\."):
        view.check_complete()
    with pytest.raises(CacheIncompleteError):
        _ = view.digest


def test_digest_is_of_the_decoded_content(tmp_path):
    shards = make_shards(manifest())
    one = write_view(tmp_path / "one", manifest(), shards)
    backwards = {shard: shards[shard] for shard in reversed(shards)}
    other = write_view(tmp_path / "other", manifest(created={"kdcache": "later"}), backwards)
    assert one.commits[0].attempt != other.commits[0].attempt
    assert one.digest == other.digest

    for name in ("fingerprint", "values", "ids"):
        changed = {shard: dict(columns) for shard, columns in shards.items()}
        rows = changed[1][name].copy()
        rows.view(np.uint8).reshape(-1)[-1] ^= 1
        changed[1][name] = rows
        assert write_view(tmp_path / name, manifest(), changed).digest != one.digest
    named = manifest(identity={"teacher.weights": "blake2b:0000"})
    assert write_view(tmp_path / "named", named, shards).digest != one.digest


def test_mismatch_names_every_field_and_writes_nothing(cache):
    write_view(cache, manifest(), make_shards(manifest()))
    before = files_below(cache)
    changed = manifest(
        num_samples=11,
        codec={"name": "synthetic", "levels": [1, 3], "tail": True},
        identity={"teacher.weights": "blake2b:07ee", "data": "xxh3:07ee"},
        columns=(*COLUMNS, Column(name="more", per="sample", dtype="uint8")),
    )
    table = np.ones(3, np.float32)
    with pytest.raises(MismatchError) as caught:
        ViewWriter.create(cache, changed, {"mean": table})
    text = str(caught.value)
    assert "begun with other settings" in text
    lines = {line.split()[0]: line.split(maxsplit=1)[1] for line in text.splitlines()[1:-1]}
    assert set(lines) == {
        "codec.levels",
        "codec.tail",
        "columns.more",
        "identity.teacher.weights",
        "num_samples",
    }
    assert lines["num_samples"].split() == ["cache", "10", "this", "run", "11"]
    assert lines["identity.teacher.weights"].split()[1::3] == ["blake2b:91c4", "blake2b:07ee"]
    assert "Nothing was written" in text
    assert files_below(cache) == before


def test_same_settings_in_other_words_join(cache):
    """What JSON turns into lists, and what is informative only, is no difference."""
    write_view(cache, manifest(), make_shards(manifest()))
    same = manifest(
        codec={"levels": (1, 2), "name": "synthetic"},
        created={"kdcache": "9"},
        samples_per_shard=3,
    )
    assert ViewWriter.create(cache, same, {}).manifest.samples_per_shard == 4


def test_a_column_per_something_else_is_a_mismatch(cache):
    of_sample = (COUNTS, Column(name="v", per="sample", dtype="uint8"))
    of_position = (COUNTS, Column(name="v", per="position", dtype="uint8"))
    ViewWriter.create(cache, manifest(columns=of_sample), {})
    with pytest.raises(MismatchError, match=r"columns\.v .*per sample.*per position"):
        ViewWriter.create(cache, manifest(columns=of_position), {})


def test_splits_are_independent(cache):
    train = write_view(cache, manifest(), make_shards(manifest()))
    before = files_below(train.folder)
    wanted = manifest(split="val", num_samples=3)
    val = write_view(cache, wanted, make_shards(wanted, seed=5))
    assert files_below(train.folder) == before
    assert list(open_cache(cache)) == ["train", "val"]
    assert val.digest != train.digest
    with pytest.raises(CacheMissingError, match=r"no split 'vall'\. Did you mean 'val'"):
        open_cache(cache)["vall"]
    with pytest.raises(CacheMissingError, match="no view 1"):
        open_cache(cache).view("val", 1)


def test_split_copied_by_hand_is_refused(cache):
    write_view(cache, manifest(), make_shards(manifest()))
    shutil.copytree(cache / "train", cache / "val")
    with pytest.raises(CacheCorruptedError, match="renamed or copied"):
        _ = open_cache(cache)["val"].manifest


@pytest.mark.parametrize("split", ["", "..", "a/b", "tables", "Tables", "zarr.json", ".hidden"])
def test_bad_split_names(cache, split):
    with pytest.raises(UsageError, match="a split cannot be called"):
        ViewWriter.create(cache, manifest(split=split), {})
    assert not cache.exists()


@pytest.mark.parametrize("name", ["zarr.json", "a..b", "a/b", "", ".a", "a.", "é"])
def test_bad_column_names(name):
    with pytest.raises(UsageError, match="cannot be called"):
        Column(name=name, per="sample", dtype="uint8")


def test_column_sets_that_do_not_fit_together():
    ids = Column(name="ids", per="entry", dtype="uint8")
    with pytest.raises(UsageError, match="num_positions"):
        manifest(columns=())
    with pytest.raises(UsageError, match="num_entries"):
        manifest(columns=(COUNTS, ids))
    other_case = Column(name="IDS", per="entry", dtype="uint8")
    with pytest.raises(UsageError, match="same name"):
        manifest(columns=(COUNTS, ENTRY_COUNTS, ids, other_case))


def test_too_many_shards_are_refused():
    with pytest.raises(UsageError, match="more samples per shard"):
        manifest(num_samples=1 << 30, samples_per_shard=1)


class TestRefusedShards:
    """Nothing that the reader would refuse later may be committed."""

    @pytest.fixture
    def writer(self, cache):
        return ViewWriter.create(cache, manifest(), {})

    @pytest.fixture
    def columns(self):
        return random_columns(COLUMNS, 4, seed=1)

    def refused(self, writer, columns, match, shard=0, statistics=None):
        before = files_below(writer.folder)
        with pytest.raises(UsageError, match=match):
            writer.write_shard(shard, columns, statistics)
        assert files_below(writer.folder) == before
        assert writer.pending() == (0, 1, 2)

    def test_missing_or_unknown_column(self, writer, columns):
        without = {name: rows for name, rows in columns.items() if name != "ids"}
        self.refused(writer, without, "takes the columns")
        self.refused(writer, {**columns, "more": columns["ids"]}, "takes the columns")

    def test_wrong_dtype_shape_or_length(self, writer, columns):
        values = columns["values"]
        for wrong in (values.astype(np.float32), values[:-1], values[:, :2], values[:, 0]):
            self.refused(writer, {**columns, "values": wrong}, "'values' takes float16 rows")
        swapped = values.astype(values.dtype.newbyteorder())
        self.refused(writer, {**columns, "values": swapped}, "'values' takes float16 rows")

    @pytest.mark.parametrize("name", ["num_positions", "num_entries"])
    def test_negative_count_with_the_right_sum(self, writer, columns, name):
        counts = columns[name].copy()
        counts[0] += 1 + counts[1]
        counts[1] = -1
        assert counts.sum() == columns[name].sum()
        self.refused(writer, {**columns, name: counts}, "negative count")

    def test_counts_of_another_type(self, writer, columns):
        counts = columns["num_positions"].astype(np.float64)
        self.refused(writer, {**columns, "num_positions": counts}, "takes int32 rows")

    @pytest.mark.parametrize("shard", [-1, 3])
    def test_no_such_shard(self, writer, columns, shard):
        self.refused(writer, columns, "has 3 shards", shard=shard)

    @pytest.mark.parametrize("number", [float("nan"), float("inf")])
    def test_statistics_that_are_no_numbers(self, writer, columns, number):
        self.refused(writer, columns, "not all finite", statistics={"entropy": number})

    def test_too_large_for_any_reader(self, writer, columns, monkeypatch):
        monkeypatch.setattr("kdcache.store.writer.MAX_DECODED_BYTES", 8)
        self.refused(writer, columns, "fewer samples per shard")


def test_statistics_may_be_numpy_numbers(cache):
    writer = ViewWriter.create(cache, manifest(), {})
    columns = random_columns(COLUMNS, 4, seed=1)
    writer.write_shard(0, columns, {"entropy": np.float32(0.5), "positions": np.int64(6)})
    commit = open_cache(cache)["train"].commits[0]
    assert commit.statistics == {"entropy": 0.5, "positions": 6.0}


def test_manifest_that_json_cannot_say(cache):
    with pytest.raises(UsageError, match="as JSON"):
        ViewWriter.create(cache, manifest(references=({"mean": float("nan")},)), {})
    with pytest.raises(CacheMissingError):
        open_cache(cache)["train"]
    assert ViewWriter.create(cache, manifest(), {}).pending() == (0, 1, 2)


class TestIndex:
    def test_reading_with_and_without_is_the_same(self, cache):
        view = write_view(cache, manifest(), make_shards(manifest()))
        with_index = (view.commits, view.digest)
        (view.folder / "index.json").unlink()
        view = open_cache(cache)["train"]
        assert (view.commits, view.digest) == with_index

    def test_repaired_shard_replaces_it(self, cache):
        """The remedy in our error texts: remove the commit record, run the dump again."""
        shards = make_shards(manifest())
        view = write_view(cache, manifest(), shards)
        first = view.commits[1]
        (view.folder / "commits" / "shard-000001.json").unlink()
        writer = ViewWriter.create(cache, manifest(), {})
        assert writer.pending() == (1,)
        repaired = writer.write_shard(1, shards[1])
        assert writer.finish()
        again = open_cache(cache)["train"]
        assert again.commits[1] == repaired != first
        assert again.digest == view.digest

    def test_damaged_one_is_found_and_rebuilt(self, cache):
        view = write_view(cache, manifest(), make_shards(manifest()))
        index = view.folder / "index.json"
        good = index.read_text()
        index.write_text(good.replace(view.digest, "0" * 32))
        with pytest.raises(CacheCorruptedError, match=r"index\.json is damaged: its checksum"):
            _ = open_cache(cache)["train"].commits
        assert ViewWriter.create(cache, manifest(), {}).finish()
        assert index.read_text() == good

    def test_changed_manifest_is_found(self, cache):
        view = write_view(cache, manifest(), make_shards(manifest()))
        marker = view.folder / "zarr.json"
        marker.write_text(marker.read_text().replace("blake2b:91c4", "blake2b:91c5"))
        with pytest.raises(CacheCorruptedError, match="changed after the dump"):
            _ = open_cache(cache)["train"].commits
        # A dump that goes on must not gather an index that covers it up.
        with pytest.raises(CacheCorruptedError, match="changed after the dump"):
            ViewWriter(view.folder, open_cache(cache)["train"].manifest).finish()


def test_files_that_are_no_commit_records_are_ignored(cache):
    """Records of shards that the view does not have, and what other programs leave behind."""
    view = write_view(cache, manifest(), make_shards(manifest()))
    (view.folder / "index.json").unlink()
    for name in ("shard-000003.json", "shard-1.json", "shard-x.json", ".DS_Store", "Thumbs.db"):
        (view.folder / "commits" / name).write_text("{}")
    again = open_cache(cache)["train"]
    assert again.commits == view.commits
    assert not again.pending


class TestCachePath:
    def test_new_empty_and_existing(self, cache):
        check_cache_path(cache)
        cache.mkdir(parents=True)
        check_cache_path(cache)
        ViewWriter.create(cache, manifest(), {})
        check_cache_path(cache)

    def test_file(self, tmp_path):
        (tmp_path / "cache.zarr").write_text("x")
        with pytest.raises(CacheError, match="Nothing was written"):
            check_cache_path(tmp_path / "cache.zarr")

    def test_folder_with_other_things(self, tmp_path):
        (tmp_path / "notes.txt").write_text("x")
        with pytest.raises(CacheError, match="is no teacher cache"):
            ViewWriter.create(tmp_path, manifest(), {})
        assert files_below(tmp_path) == {"notes.txt": b"x"}

    def test_foreign_zarr_group(self, cache):
        zarr.open_group(cache, mode="w")
        with pytest.raises(CacheError, match="is no teacher cache"):
            check_cache_path(cache)
        with pytest.raises(CacheMissingError, match="a Zarr group, but no teacher cache"):
            open_cache(cache)

    def test_killed_or_racing_creation_is_no_foreign_folder(self, cache):
        """Between mkdir and the marker there is only the marker's temporary name."""
        cache.mkdir(parents=True)
        (cache / ".zarr.json.0123456789ab").write_text('{"zarr')
        assert ViewWriter.create(cache, manifest(), {}).pending() == (0, 1, 2)

    def test_nothing_to_open(self, cache, tmp_path):
        with pytest.raises(CacheMissingError, match="does not exist"):
            open_cache(cache)
        with pytest.raises(CacheMissingError, match="is no teacher cache"):
            open_cache(tmp_path)


def test_file_system_without_hard_links(cache, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    shards = make_shards(manifest())
    view = write_view(cache, manifest(), shards)
    writer = ViewWriter.create(cache, manifest(), {})
    assert writer.write_shard(0, make_shards(manifest(), seed=3)[0]) is None
    assert all(equal_bits(view.read_shard(c), shards[c.shard]) for c in view.commits)
    assert not list(cache.rglob(".*"))
