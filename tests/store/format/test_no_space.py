"""A full disk, at every write in turn: one clear error, nothing damaged, the next run goes on."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import shutil
import subprocess

import numpy as np
import pytest

from kdcache.columns import Column
from kdcache.errors import CacheError
from kdcache.store import UNKNOWN_LENGTH, ViewWriter, open_cache, open_local_copy, table_digest
from kdcache.store.care.repair import repair_view
from kdcache.tools.verify import verify_cache
from tests.data import toys
from tests.store.synthetic import (
    COUNTS,
    concatenated,
    equal_bits,
    expected_take,
    make_shards,
    manifest,
    stored_object,
)

TABLE = np.arange(6, dtype=np.float32)
COLUMNS = (COUNTS, Column(name="values", per="position", dtype="float16", shape=(3,)))
WANTED = manifest(num_samples=6, columns=COLUMNS, tables={"mean": table_digest(TABLE)})
SHARDS = make_shards(WANTED)


class Full:
    """A disk on which the n-th write fails, and every later one.

    Attributes:
        number: of the first write that fails, from 1; 0 for none.
        writes: how many there were.
        kinds: the calls among them.
    """

    def __init__(self, number):
        self.number, self.writes, self.kinds = number, 0, set()

    def count(self, kind, path):
        self.writes += 1
        self.kinds.add(kind)
        if 0 < self.number <= self.writes:
            raise OSError(28, "No space left on device", str(path))


class CountedFile:
    """An open file whose writes are counted."""

    def __init__(self, file, full):
        self._file, self._full = file, full

    def write(self, content):
        self._full.count("write", self._file.name)
        return self._file.write(content)

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()


@pytest.fixture
def filling(monkeypatch):
    """``with filling(n) as full``: the n-th write and all later ones fail."""

    def patched(full, patch):
        def counted(kind, real):
            def call(target, *arguments, **keywords):
                full.count(kind, target)
                return real(target, *arguments, **keywords)

            return call

        for kind in ("mkdir", "link", "rename", "replace", "fsync", "posix_fallocate"):
            patch.setattr(os, kind, counted(kind, getattr(os, kind)))
        real_open = io.open

        def opened(path, mode="r", *arguments, **keywords):
            if not set(mode) & set("wxa+"):
                return real_open(path, mode, *arguments, **keywords)
            full.count("open", path)
            return CountedFile(real_open(path, mode, *arguments, **keywords), full)

        patch.setattr(io, "open", opened)

    class Filling:
        def __init__(self, number):
            self.full, self.patch = Full(number), pytest.MonkeyPatch()

        def __enter__(self):
            patched(self.full, self.patch)
            return self.full

        def __exit__(self, *_):
            self.patch.undo()

    return Filling


def dump(cache):
    """Create or join the view and do what is pending."""
    writer = ViewWriter.create(cache, WANTED, {"mean": TABLE})
    for shard in writer.pending():
        writer.write_shard(shard, SHARDS[shard], {"positions": 1.0})
    assert writer.finish()


def check_whole(cache):
    assert verify_cache(cache).problems == ()
    view = open_cache(cache)["train"]
    for commit in view.commits:
        assert equal_bits(view.read_shard(commit), SHARDS[commit.shard])
    return view.digest


def test_every_write_of_a_dump(tmp_path, filling):
    with filling(0) as full:
        dump(tmp_path / "whole")
    digest = check_whole(tmp_path / "whole")
    assert full.kinds == {"mkdir", "link", "rename", "replace", "fsync", "open", "write"}
    assert full.writes > 100
    for number in range(1, full.writes + 1):
        cache = tmp_path / str(number)
        with filling(number), pytest.raises(CacheError) as caught:
            dump(cache)
        text = str(caught.value)
        assert "(No space left on device)" in text
        assert str(cache) in text
        assert "Make room there and run the same command again" in text
        # What is committed is whole, and nothing of ours stands in the way of the rest.
        try:
            view = open_cache(cache)["train"]
        except CacheError:
            view = None
        for commit in view.commits if view else ():
            assert equal_bits(view.read_shard(commit), SHARDS[commit.shard])
        # Only a whole attempt is left, where its record is what failed.
        attempts = list(cache.glob("train/view-000/shard-*"))
        assert len(attempts) - len(view.commits if view else ()) in (0, 1)
        dump(cache)
        assert check_whole(cache) == digest
        shutil.rmtree(cache)


def test_every_write_of_an_extension_and_a_streams_end(tmp_path, filling):
    grown = manifest(num_samples=9, columns=COLUMNS, tables=WANTED.tables)
    dump(tmp_path / "cache")
    with filling(1), pytest.raises(CacheError, match="Make room there"):
        ViewWriter.extend(tmp_path / "cache", grown, WANTED)
    check_whole(tmp_path / "cache")
    assert ViewWriter.extend(tmp_path / "cache", grown, WANTED).pending() == (2,)

    stream = ViewWriter.create(tmp_path / "stream", manifest(num_samples=UNKNOWN_LENGTH), {})
    for number in range(1, 5):
        with filling(number), pytest.raises(CacheError, match="Make room there"):
            stream.end(8)
    stream.end(8)
    assert stream.manifest.num_samples == 8


def test_every_write_of_a_repair(tmp_path, filling):
    """Whatever it got done, the next one does the rest."""
    dump(tmp_path / "whole")
    stored_object(open_cache(tmp_path / "whole")["train"], 1, "values").write_bytes(b"damaged")
    number = 0
    while True:
        number += 1
        cache = shutil.copytree(tmp_path / "whole", tmp_path / str(number))
        view = open_cache(cache)["train"]
        with filling(number) as full, contextlib.suppress(CacheError):
            repair_view(view, [1])
        assert verify_cache(cache, repair=True).is_sound is False
        assert open_cache(cache)["train"].pending == (1,)
        dump(cache)
        check_whole(cache)
        if full.writes < number:
            break
    assert number > 4


def test_every_write_of_a_local_copy(tmp_path, filling):
    dump(tmp_path / "cache")
    view = open_cache(tmp_path / "cache")["train"]
    expected = expected_take(COLUMNS, concatenated(SHARDS), [5, 0, 5])
    with filling(0) as full:
        open_local_copy(view, tmp_path / "whole", in_memory_bytes=0)
    assert full.kinds >= {"mkdir", "rename", "fsync", "open", "write", "posix_fallocate"}
    for number in range(1, full.writes + 1):
        base = tmp_path / str(number)
        with filling(number), pytest.raises(CacheError) as caught:
            open_local_copy(view, base, in_memory_bytes=0)
        text = str(caught.value)
        assert "(No space left on device). Make room there and run the same command" in text
        assert str(base) in text
        assert not base.exists() or all(p.suffix == ".lock" for p in base.iterdir())
        copy = open_local_copy(view, base, in_memory_bytes=0)
        copy.check()
        assert equal_bits(copy.take([5, 0, 5]), expected)
    check_whole(tmp_path / "cache")


@pytest.fixture
def small_disk(tmp_path):
    """``small_disk(kilobytes)``: a real file system of that size; again, to give it another."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = []

    def size(kilobytes):
        options = f"size={kilobytes}k" if not mounted else f"remount,size={kilobytes}k"
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("may not mount a tmpfs here")
        mounted.append(kilobytes)
        return folder

    yield size
    if mounted:
        gc.collect()  # errors hold frames in cycles, and those a mapped file of this disk
        subprocess.run(["umount", str(folder)], check=True)


def test_a_real_disk_that_fills_up(tmp_path, small_disk):
    """A teacher's dump, and a local copy, on a disk of a few hundred kilobytes."""
    samples = toys.labelled(400)
    whole = toys.dump(tmp_path / "whole", samples)["train"]
    cache = small_disk(120) / "teacher.zarr"
    with pytest.raises(CacheError, match=r"\(No space left on device\).*Make room there"):
        toys.dump(cache, samples)
    done = open_cache(cache)["train"]
    attempts = {commit.shard: commit.attempt for commit in done.commits}
    assert 0 < len(attempts) < whole.manifest.num_shards
    found = verify_cache(cache)
    assert found.damaged == ()
    assert found.samples == sum(commit.stop - commit.start for commit in done.commits)

    small_disk(8192)
    view = toys.dump(cache, samples)["train"]
    assert view.digest == whole.digest
    assert attempts.items() <= {c.shard: c.attempt for c in view.commits}.items()
    assert verify_cache(cache).is_sound

    copies = small_disk(8192) / "local"
    used_kilobytes = shutil.disk_usage(copies.parent).used // 1024
    small_disk(used_kilobytes + 4)
    with pytest.raises(CacheError, match="Make room there, or point KDCACHE_LOCAL"):
        open_local_copy(view, copies, in_memory_bytes=0)
    small_disk(8192)
    copy = open_local_copy(view, copies, in_memory_bytes=0)
    copy.check()
