"""A shard says which dump it is of: what fits in shape alone is refused, what belongs is not."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest

from kdcache.errors import CacheCorruptedError, MismatchError
from kdcache.store import UNKNOWN_LENGTH, ViewWriter, open_cache, table_digest
from kdcache.store.care.adopt import adopt_shard
from kdcache.store.format.commits import ForeignShardError
from kdcache.store.format.origins import MAX_TEXT
from kdcache.tools.merge import merge_caches
from kdcache.tools.verify import verify_cache
from tests.store.synthetic import COLUMNS, equal_bits, make_shards, manifest, write_view

IDENTITY = {
    "teacher.class": "my.Teacher",
    "teacher.weights": "xxh3:91c4",
    "precision": "32-true",
    "batch": "inputs=['x']",
    "dataset.probe": "xxh3:07ee",
    "torch": "2.8",
}
WANTED = manifest(identity=IDENTITY, key="content")
SHARDS, THEIRS = make_shards(WANTED), make_shards(WANTED, seed=50)
TABLE = np.arange(6, dtype=np.float32)
OTHERS = {
    "teacher.class": {"identity": {**IDENTITY, "teacher.class": "my.Other"}},
    "teacher.weights": {"identity": {**IDENTITY, "teacher.weights": "xxh3:07ee"}},
    "precision": {"identity": {**IDENTITY, "precision": "bf16-true"}},
    "batch": {"identity": {**IDENTITY, "batch": "inputs=['y']"}},
    "batch, size": {"batch_size": 4},
    "codec, settings": {"codec": {"name": "synthetic", "levels": [1, 3]}},
    "codec, classes": {"num_classes": 4},
    "codec, tables": {"tables": {"mean": table_digest(TABLE)}},
    "codec, columns": {"columns": (*COLUMNS[:2], replace(COLUMNS[2], dtype="int16"), *COLUMNS[3:])},
    "data, order": {"identity": {**IDENTITY, "dataset.probe": "xxh3:91c4"}},
    "data, key": {"key": "index"},
    "data, fingerprint": {"fingerprint": {"source": "sample"}},
    "other settings": {"identity": {**IDENTITY, "torch": "2.9"}},
}


def put(source, target, shards, *, index=False):
    """Copy shards with their records, as ``cp -r`` does."""
    for shard in shards:
        name = f"shard-{shard:06d}"
        shutil.copy(source.folder / "commits" / f"{name}.json", target.folder / "commits")
        for attempt in source.folder.glob(f"{name}.*"):
            shutil.copytree(attempt, target.folder / attempt.name, dirs_exist_ok=True)
    if index:
        shutil.copy(source.folder / "index.json", target.folder)


def reopened(view):
    return open_cache(view.cache)[view.folder.parent.name]


def dumped_again(view, wanted=WANTED, shards=SHARDS):
    """Go on with a dump; the shards that were pending."""
    writer = ViewWriter.create(view.cache, wanted, {})
    pending = writer.pending()
    for shard in pending:
        writer.write_shard(shard, shards[shard], {"positions": 1.0})
    assert writer.finish()
    return pending


@pytest.fixture
def view(tmp_path):
    return write_view(tmp_path / "cache.zarr", WANTED, SHARDS)


class TestForeign:
    @pytest.fixture(params=OTHERS)
    def part(self, request):
        return request.param

    @pytest.fixture
    def other(self, tmp_path, part):
        """The same samples and shapes, dumped with one thing different."""
        wanted = manifest(**{"identity": IDENTITY, "key": "content", **OTHERS[part]})
        path, tables = tmp_path / "donor.zarr", {"mean": TABLE} if wanted.tables else {}
        writer = ViewWriter.create(path, wanted, tables)
        for shard, columns in make_shards(wanted, seed=50).items():
            writer.write_shard(shard, columns)
        assert writer.finish()
        return open_cache(path)["train"]

    def test_by_hand_and_mended(self, view, other, part):
        put(other, view, [1])
        found = verify_cache(view.cache)
        assert [damaged.shard for damaged in found.damaged] == [1]
        assert f"{part.split(',')[0]} " in found.problems[0]
        (view.folder / "index.json").unlink()
        for use in (
            lambda: reopened(view).commits,
            lambda: ViewWriter.create(view.cache, WANTED, {}),
            lambda: merge_caches([view.cache, view.cache], view.cache.with_name("merged")),
        ):
            with pytest.raises(ForeignShardError, match=r"shard-000001.json is of another dump"):
                use()
        assert verify_cache(view.cache, repair=True).pending == {"train": (1,)}
        assert dumped_again(view) == (1,)
        assert verify_cache(view.cache).is_sound
        assert equal_bits(reopened(view).read_shard(reopened(view).commits[1]), SHARDS[1])

    def test_with_a_sound_index_what_was_here_is_read_and_repaired(self, view, other):
        put(other, view, [0, 1, 2])
        for commit in reopened(view).commits:
            assert equal_bits(view.read_shard(commit), SHARDS[commit.shard])
        assert verify_cache(view.cache, repair=True).pending == {"train": ()}
        assert verify_cache(view.cache).is_sound
        assert reopened(view).digest == view.digest

    def test_a_foreign_index(self, view, other):
        put(other, view, [], index=True)
        with pytest.raises(ForeignShardError, match="index was copied here"):
            _ = reopened(view).commits
        assert not verify_cache(view.cache, repair=True).is_sound
        assert verify_cache(view.cache).is_sound
        assert reopened(view).digest == view.digest

    @pytest.mark.parametrize("index", [False, True])
    def test_everything_but_the_manifest(self, view, other, index):
        """What nothing in the view belongs to is more likely the one that was exchanged."""
        (view.folder / "index.json").unlink()
        put(other, view, [0, 1, 2], index=index)
        found = verify_cache(view.cache, repair=True)
        assert "zarr.json is of another dump than everything beside it" in found.problems[0]
        assert "this cannot be repaired" in found.repairs[-1]
        shutil.copy(other.folder / "zarr.json", view.folder)
        assert [c.attempt for c in reopened(view).commits] == [c.attempt for c in other.commits]

    def test_into_a_dump_that_goes_on(self, view, other):
        """A shard that was not there yet is not taken for this dump's."""
        (view.folder / "index.json").unlink()
        (view.folder / "commits" / "shard-000001.json").unlink()
        writer = ViewWriter.create(view.cache, WANTED, {})
        put(other, view, [1])
        assert writer.write_shard(1, SHARDS[1]) is None
        with pytest.raises(ForeignShardError, match="shard-000001"):
            writer.finish()

    def test_adopted(self, view, other, tmp_path):
        """A commit from elsewhere is held against the view that it is said to be of."""
        writer = ViewWriter.create(tmp_path / "new.zarr", WANTED, {})
        with pytest.raises(ForeignShardError):
            adopt_shard(writer, 1, view, other.commits[1])
        assert adopt_shard(writer, 1, view, view.commits[1]) is not None


def test_the_error_names_the_shard_both_teachers_and_the_way_out(view, tmp_path):
    changed = {**IDENTITY, "teacher.class": "my.Other", "teacher.weights": "xxh3:07ee"}
    other = write_view(tmp_path / "b.zarr", replace(WANTED, identity=changed), THEIRS)
    (view.folder / "index.json").unlink()
    put(other, view, [2])
    with pytest.raises(CacheCorruptedError) as raised:
        ViewWriter.create(view.cache, WANTED, {})
    for text in (
        "commits/shard-000002.json",
        "teacher.class 'my.Other', and 'my.Teacher' in the manifest",
        "teacher.weights 'xxh3:07ee', and 'xxh3:91c4' in the manifest",
        "verify CACHE --repair marks the shard as pending",
    ):
        assert text in str(raised.value)
    assert "precision" not in str(raised.value)


class TestWhatBelongs:
    def test_parts_of_one_job_brought_together(self, tmp_path):
        """Each has its own idea of when it was made, of the pilot and of the references."""
        views = []
        for number, shards in enumerate(((0, 2), (1,))):
            wanted = replace(
                WANTED,
                created={"time": str(number)},
                pilot={"divergence": float(number)},
                references=({"sample": number},),
            )
            writer = ViewWriter.create(tmp_path / f"{number}.zarr", wanted, {})
            for shard in shards:
                writer.write_shard(shard, SHARDS[shard])
            assert not writer.finish()
            views.append(open_cache(tmp_path / f"{number}.zarr")["train"])
        put(views[1], views[0], [1])
        assert dumped_again(views[0]) == ()
        assert verify_cache(views[0].cache).is_sound
        for commit in reopened(views[0]).commits:
            assert equal_bits(views[0].read_shard(commit), SHARDS[commit.shard])

    def grown(self, number, probe):
        return replace(
            WANTED, num_samples=number, identity={**IDENTITY, "dataset.probe": f"xxh3:{probe}"}
        )

    def test_shards_from_before_the_dataset_grew(self, tmp_path):
        path = tmp_path / "cache.zarr"
        first, second, third = (self.grown(n, p) for n, p in ((10, "a"), (13, "b"), (21, "c")))
        old = ViewWriter.create(path, first, {})
        old.write_shard(0, SHARDS[0])
        ViewWriter.extend(path, second, first)
        ViewWriter.extend(path, third, second)
        # A job that began before it grew goes on, and one that began after it has another data.
        old.write_shard(1, SHARDS[1])
        writer = ViewWriter.create(path, replace(open_cache(path)["train"].manifest), {})
        every = make_shards(writer.manifest)
        for shard in writer.pending():
            assert writer.write_shard(shard, {**every, 2: SHARDS[2]}[shard])
        assert writer.finish()
        assert verify_cache(path).is_sound
        data = [commit.origin["data"] for commit in open_cache(path)["train"].commits]
        assert data == [first.origin["data"]] * 2 + [third.origin["data"]] * 4

    def test_data_of_before_it_grew_are_no_excuse_for_what_came_later(self, tmp_path):
        path = tmp_path / "cache.zarr"
        first, second = self.grown(12, "a"), self.grown(20, "b")
        writer = ViewWriter.create(path, first, {})
        for shard, columns in make_shards(first).items():
            writer.write_shard(shard, columns)
        writer = ViewWriter.extend(path, second, first)
        elsewhere = self.grown(20, "a")
        other = write_view(tmp_path / "b.zarr", elsewhere, make_shards(elsewhere, seed=50))
        put(other, open_cache(path)["train"], [3])
        with pytest.raises(ForeignShardError, match="shard-000003"):
            _ = open_cache(path)["train"].commits
        put(other, open_cache(path)["train"], [4])
        with pytest.raises(ForeignShardError):
            ViewWriter.extend(path, self.grown(30, "c"), second)

    def test_streams_before_and_after_their_end(self, tmp_path):
        wanted = replace(WANTED, num_samples=UNKNOWN_LENGTH)
        writer = ViewWriter.create(tmp_path / "cache.zarr", wanted, {})
        writer.write_shard(0, SHARDS[0])
        late = ViewWriter.create(tmp_path / "cache.zarr", wanted, {})
        late.end(10)
        for shard in (1, 2):
            late.write_shard(shard, SHARDS[shard])
        assert late.finish()
        assert verify_cache(tmp_path / "cache.zarr").is_sound

    def test_texts_of_any_length(self, tmp_path):
        wanted = replace(WANTED, identity={**IDENTITY, "teacher.class": "x" * 5000})
        view = write_view(tmp_path / "long.zarr", wanted, SHARDS)
        assert max(map(len, view.commits[0].origin.values())) <= MAX_TEXT
        end = replace(wanted, identity={**IDENTITY, "teacher.class": "x" * 4999 + "y"})
        assert end.origin["teacher.class"] != wanted.origin["teacher.class"]


def test_another_teacher_is_still_told_field_by_field(view):
    with pytest.raises(MismatchError, match="begun with other settings"):
        ViewWriter.create(view.cache, manifest(identity={**IDENTITY, "teacher.weights": "x"}), {})
