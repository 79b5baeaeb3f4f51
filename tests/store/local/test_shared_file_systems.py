"""What FORMAT.md assumes of shared file systems, and what happens beyond it: never damage."""

from __future__ import annotations

import os

import pytest

from kdcache.errors import CacheCorruptedError, CacheError, CacheIncompleteError
from kdcache.store import ViewWriter, open_cache, writer
from kdcache.store.format import commits
from kdcache.tools.verify import verify_cache
from tests.store.synthetic import equal_bits, make_shards, manifest, write_view

SHARDS = make_shards(manifest())


def whole(cache):
    """The view, sound and with the rows of the first writers."""
    assert verify_cache(cache).problems == ()
    view = open_cache(cache)["train"]
    for commit in view.commits:
        assert equal_bits(view.read_shard(commit), SHARDS[commit.shard])
    return view


@pytest.fixture
def hiding(monkeypatch):
    """``hiding(shards)``: this host's listings do not show those shards' records yet."""
    real = commits.recorded_shards

    def install(shards):
        def stale(view):
            return real(view) - set(shards)

        monkeypatch.setattr(commits, "recorded_shards", stale)
        monkeypatch.setattr(writer, "recorded_shards", stale)

    return install


def test_a_commit_that_appears_late_needs_a_later_finish_only(tmp_path, hiding):
    cache = tmp_path / "cache.zarr"
    first, second = (ViewWriter.create(cache, manifest(), {}) for _ in range(2))
    first.write_shard(0, SHARDS[0])
    first.write_shard(1, SHARDS[1])
    hiding([1])
    assert second.pending() == (1, 2)
    # Its own work is done for nothing where the other was first, and does not count.
    assert second.write_shard(1, make_shards(manifest(), seed=9)[1]) is None
    second.write_shard(2, SHARDS[2])
    assert not second.finish()
    assert not first.finish()
    with pytest.raises(CacheIncompleteError, match="2 of 3 shards"):
        open_cache(cache)["train"].check_complete()
    hiding([])
    assert second.finish()
    whole(cache)


def test_a_finished_view_is_found_by_its_index_whatever_a_listing_says(tmp_path, hiding):
    view = write_view(tmp_path / "cache.zarr", manifest(), SHARDS)
    hiding(range(3))
    assert open_cache(view.cache)["train"].digest == view.digest


def test_a_manifest_that_appears_late_is_no_lost_one(tmp_path, monkeypatch):
    """The first look finds none, the second does: another process was creating the view."""
    view = write_view(tmp_path / "cache.zarr", manifest(), SHARDS)
    real, looks = type(view.folder).exists, []

    def late(self):
        if self == view.folder / "zarr.json":
            looks.append(self)
            if len(looks) == 1:
                return False
        return real(self)

    monkeypatch.setattr(type(view.folder), "exists", late)
    assert ViewWriter.create(view.cache, manifest(), {}).pending() == ()
    assert len(looks) >= 2


def test_a_lost_manifest_is_not_replaced_by_another_teachers(tmp_path):
    """Its shards would be taken for those of the new one."""
    view = write_view(tmp_path / "cache.zarr", manifest(), SHARDS)
    (view.folder / "zarr.json").unlink()
    other = manifest(identity={"teacher.weights": "blake2b:ffff"})
    with pytest.raises(CacheCorruptedError, match=r"is lost\. Nothing was written"):
        ViewWriter.create(view.cache, other, {})
    assert not (view.folder / "zarr.json").exists()


def test_an_answer_that_was_lost_is_no_other_writer(tmp_path, monkeypatch):
    """NFS: the link was made, the answer got lost, and the second try finds the name taken."""
    link = os.link

    def twice(source, target):
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", twice)
    cache = tmp_path / "cache.zarr"
    view_writer = ViewWriter.create(cache, manifest(), {})
    for shard, columns in SHARDS.items():
        assert view_writer.write_shard(shard, columns).shard == shard
    assert view_writer.finish()
    monkeypatch.undo()
    assert view_writer.write_shard(0, make_shards(manifest(), seed=9)[0]) is None
    whole(cache)


def test_without_links_two_writers_at_the_same_instant(tmp_path, monkeypatch):
    """Both see a free name; the last record stands, both attempts are whole, a finish agrees."""
    cache = tmp_path / "cache.zarr"
    view_writer = ViewWriter.create(cache, manifest(), {})
    for shard in (1, 2):
        view_writer.write_shard(shard, SHARDS[shard])
    record = view_writer.folder / "commits" / "shard-000000.json"
    others = make_shards(manifest(), seed=9)
    real = type(record).exists

    def no_links(*_):
        raise PermissionError(1, "Operation not permitted")

    def other_is_first(self):
        if self == record and not real(record):
            monkeypatch.setattr(type(record), "exists", real)
            assert view_writer.write_shard(0, others[0]) is not None
            assert view_writer.finish()
            return False
        return real(self)

    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(type(record), "exists", other_is_first)
    assert view_writer.write_shard(0, SHARDS[0]) is not None
    (problem,) = verify_cache(cache).problems
    assert "is not what the index says" in problem
    before = open_cache(cache)["train"].digest
    assert view_writer.finish()
    assert whole(cache).digest != before


def test_an_attempt_that_vanished_is_not_committed_for_good(tmp_path, monkeypatch):
    """A job slept for hours between its last sync and its commit; somebody cleaned meanwhile."""
    from kdcache.store.format.files import set_aside

    cache = tmp_path / "cache.zarr"
    view_writer = ViewWriter.create(cache, manifest(), {})
    real = writer.write_commit

    def cleaned_first(view, commit):
        set_aside(view / f"shard-{commit.shard:06d}.{commit.attempt}")
        return real(view, commit)

    monkeypatch.setattr(writer, "write_commit", cleaned_first)
    with pytest.raises(CacheError, match="was removed by somebody else before it was committed"):
        view_writer.write_shard(0, SHARDS[0])
    assert view_writer.pending() == (0, 1, 2)
    monkeypatch.undo()
    for shard, columns in SHARDS.items():
        view_writer.write_shard(shard, columns)
    assert view_writer.finish()
    whole(cache)
