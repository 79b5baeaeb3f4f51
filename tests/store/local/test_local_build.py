"""Building a local copy side by side: right also where locks are not, and nobody's work removed."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from kdcache.columns import Column
from kdcache.errors import CacheError
from kdcache.store import find_local_copy, open_cache, open_local_copy
from kdcache.store.local import build as local_build
from kdcache.store.local.build import abandoned_builds
from kdcache.store.local.locks import FileLock, taking_turns
from tests.hang import HANG_S
from tests.store.synthetic import (
    COUNTS,
    concatenated,
    equal_bits,
    expected_take,
    make_shards,
    manifest,
    output_of,
    start_python,
    write_view,
)

HERE = local_build._machine()
LONG_AGO = 2 * 3600


@pytest.fixture
def view(tmp_path, stored):
    return stored(tmp_path / "cache.zarr", manifest())


@pytest.fixture
def base(tmp_path):
    folder = tmp_path / "local"
    folder.mkdir()
    return folder


def copy_of(view, base):
    """The copy, opened or built, and held against the dict."""
    copy = open_local_copy(view, base, in_memory_bytes=0)
    copy.check()
    whole = concatenated(make_shards(manifest()))
    assert equal_bits(copy.take([9, 0, 9]), expected_take(manifest().columns, whole, [9, 0, 9]))
    return copy


def left_behind(view, base, machine, *, age_s=0.0, with_lock=True):
    """What a build that was killed leaves."""
    folder = base / f".{view.digest}.0.{machine}.abc_123"
    folder.mkdir()
    (folder / "sample").write_bytes(bytes(100))
    if with_lock:
        (folder / "lock").touch()
    for path in (*folder.iterdir(), folder):
        os.utime(path, (time.time() - age_s,) * 2)
    return folder


@pytest.fixture
def locks_fail(monkeypatch):
    """``locks_fail(code)``: flock answers so, or does nothing at all (None)."""

    def install(code):
        def flock(*_):
            if code is not None:
                raise OSError(code, os.strerror(code))

        monkeypatch.setattr("kdcache.store.local.locks.fcntl.flock", flock)

    return install


class TestAbandoned:
    """Found here, and removed by the next build of the same digest."""

    @pytest.mark.parametrize(
        ("machine", "age_s", "with_lock", "goes"),
        [
            (HERE, 0, True, True),  # dead: nobody holds its lock
            (HERE, 0, False, False),  # between its making and its lock
            (HERE, LONG_AGO, False, True),
            ("0" * 8, 0, True, False),  # of another machine, whose locks may be its own affair
            ("0" * 8, LONG_AGO, True, True),
        ],
    )
    def test_only_beyond_doubt(self, view, base, machine, age_s, with_lock, goes):
        folder = left_behind(view, base, machine, age_s=age_s, with_lock=with_lock)
        assert list(abandoned_builds(base)) == ([folder] if goes else [])
        copy_of(view, base)
        assert folder.exists() == (not goes)

    def test_held_lock_keeps_it_whatever_its_age(self, view, base):
        folder = left_behind(view, base, HERE, age_s=LONG_AGO)
        lock = FileLock(folder / "lock")
        assert lock.acquire()
        assert list(abandoned_builds(base)) == []
        lock.release()
        assert list(abandoned_builds(base)) == [folder]

    @pytest.mark.parametrize("code", [None, errno.ENOLCK, errno.ENOSYS])
    def test_without_locks_only_time_tells(self, view, base, locks_fail, code):
        folder = left_behind(view, base, HERE)
        locks_fail(code)
        assert list(abandoned_builds(base)) == []
        os.utime(folder, (0, 0))
        assert list(abandoned_builds(base)) == []  # the newest file in it counts
        for path in folder.iterdir():
            os.utime(path, (0, 0))
        assert list(abandoned_builds(base)) == [folder]

    def test_other_names_and_links_stay(self, view, base, tmp_path):
        elsewhere = left_behind(view, tmp_path, HERE, age_s=LONG_AGO)
        (base / elsewhere.name).symlink_to(elsewhere)
        (base / ".mine").mkdir()
        assert list(abandoned_builds(base)) == []
        assert list(abandoned_builds(base / "nowhere")) == []

    def test_of_another_digest_stays(self, view, base):
        other = base / f".{'f' * 32}.0.{HERE}.abc"
        other.mkdir()
        (other / "lock").touch()
        copy_of(view, base)
        assert other.exists()


class TestLocks:
    @pytest.mark.parametrize("code", [None, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
    def test_a_file_system_without_them_stops_nobody(self, view, base, locks_fail, code):
        locks_fail(code)
        assert copy_of(view, base).location.parent == base

    def test_no_library_for_them_either(self, view, base, monkeypatch):
        monkeypatch.setattr("kdcache.store.local.locks.fcntl", None)
        assert copy_of(view, base).location.parent == base

    def test_a_lock_file_that_cannot_be_made(self, view, base):
        (base / f"{view.digest}.0.lock").mkdir()
        assert copy_of(view, base).location.parent == base

    def test_a_planted_link_is_not_followed(self, view, base, tmp_path):
        (base / f"{view.digest}.0.lock").symlink_to(tmp_path / "outside")
        copy_of(view, base)
        assert not (tmp_path / "outside").exists()

    def test_waiting_ends_when_the_work_is_done(self, tmp_path):
        holder = FileLock(tmp_path / "lock")
        assert holder.acquire()
        asked = []

        def is_done():
            asked.append(1)
            return len(asked) == 3

        with taking_turns(tmp_path / "lock", is_done):
            assert len(asked) == 3
        assert FileLock(tmp_path / "lock").acquire() is False

    def test_waiting_ends_when_the_lock_is_removed(self, tmp_path, monkeypatch, caplog):
        """For a lock that a dead host holds for ever; what to do is said after a while."""
        monkeypatch.setattr("kdcache.store.local.locks._SAY_AFTER_S", 0.0)
        monkeypatch.setattr("kdcache.store.local.locks._FIRST_WAIT_S", 0.001)
        caplog.set_level("INFO", logger="kdcache")
        holder = FileLock(tmp_path / "lock")
        assert holder.acquire()
        asked = []

        def is_done():
            asked.append(1)
            if len(asked) == 5:
                (tmp_path / "lock").unlink()
            return False

        with taking_turns(tmp_path / "lock", is_done):
            assert len(asked) == 5
        assert [r.getMessage() for r in caplog.records] == [
            f"waiting for the process that holds {tmp_path / 'lock'}; if there is none, remove it"
        ]
        holder.release()


# Locks do nothing in these processes: both build at once, one of them slower than the other.
BUILD = """
import sys, time
from pathlib import Path
import kdcache.store.local.locks
kdcache.store.local.locks.fcntl.flock = lambda *_: None
from kdcache.store import open_cache, open_local_copy
from tests.store.synthetic import concatenated, equal_bits, expected_take, make_shards, manifest
base, cache, number = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
steps = []
def together(done, total):
    steps.append(done)
    (base / f"ready{number}").touch()
    while len(list(base.glob("ready*"))) < 3:
        time.sleep(0.001)
view = open_cache(cache)["train"]
copy = open_local_copy(view, base, in_memory_bytes=0, progress=together)
whole = concatenated(make_shards(manifest()))
assert equal_bits(copy.take([9, 0, 9]), expected_take(view.manifest.columns, whole, [9, 0, 9]))
copy.check()
print(len(steps))
"""


def test_three_processes_that_all_believe_they_hold_the_lock(view, base):
    """Every one builds; one rename stands, and all use that copy."""
    processes = [start_python(BUILD, base, view.cache, number) for number in range(3)]
    assert [int(output_of(process)) for process in processes] == [3, 3, 3]
    copy_of(view, base)
    (copy,) = [p for p in base.iterdir() if p.name.startswith((view.digest, ".")) and p.is_dir()]
    assert copy.name == f"{view.digest}.0"
    assert sorted(path.name for path in copy.iterdir()) == [
        "copy.json", "entry", "position", "sample"
    ]  # fmt: skip


def test_losing_the_race_is_fine(view, base, monkeypatch):
    """The other's copy gets its name while this one is about to be given it."""
    rename = Path.rename
    tables = []

    def second(self, target):
        if self.parent == base and not tables:
            tables.append(self)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Path, "rename", rename)
                local_build.build(view, *planned(view), target, None)  # the other, to its end
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", second)
    copy_of(view, base)
    assert len(tables) == 1
    assert not tables[0].exists()


def planned(view):
    """Record types and rows, as ``open_local_copy`` comes to them."""
    from kdcache.store.local import copy as local_copy

    rows = local_copy._num_rows(view)
    counts = local_copy._fewest_and_most(view, rows["position"])
    return local_build.RecordTypes.of(view.manifest.columns, counts), rows


def test_an_answer_that_was_lost_is_no_failure(view, base, monkeypatch):
    """NFS: the rename was done, the answer got lost, and the second try finds nothing to rename."""
    rename = Path.rename

    def twice(self, target):
        rename(self, target)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", twice)
    copy_of(view, base)


KILL = """
import os, signal, sys
from pathlib import Path
from kdcache.store import open_cache, open_local_copy
def die(done, total):
    os.kill(os.getpid(), signal.SIGKILL)
view, base = open_cache(sys.argv[1])["train"], Path(sys.argv[2])
open_local_copy(view, base, in_memory_bytes=0, progress=die)
"""


def test_a_killed_build_is_cleared_up_by_the_next_one(view, base):
    process = start_python(KILL, view.cache, base)
    process.communicate(timeout=HANG_S)
    assert process.returncode == -signal.SIGKILL
    (folder,) = [path for path in base.iterdir() if path.is_dir()]
    assert list(abandoned_builds(base)) == [folder]
    copy_of(view, base)
    assert not folder.exists()


def test_a_build_shows_that_it_is_alive(view, base):
    """Its folder is touched with every shard, so that time does not tell against it."""
    seen = []

    def progress(done, total):
        (folder,) = [path for path in base.iterdir() if path.is_dir()]
        seen.append(folder.stat().st_mtime_ns)
        os.utime(folder, (0, 0))

    open_local_copy(view, base, in_memory_bytes=0, progress=progress)
    assert len(seen) == 3
    assert min(seen) > 0


MAPPED = """
import sys
from pathlib import Path
from kdcache.store import open_cache, open_local_copy
def mapped_kib():
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("RssFile", "RssShmem")))
view, base, seen = open_cache(sys.argv[1])["train"], Path(sys.argv[2]), [mapped_kib()]
copy = open_local_copy(
    view, base, in_memory_bytes=0, progress=lambda *_: seen.append(mapped_kib())
)
copy.check()
seen.append(mapped_kib())
print(max(seen) - min(seen))
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="memory is read from /proc")
def test_the_copy_is_not_in_memory_while_it_is_built(tmp_path, base):
    """32 MiB in 16 shards, then all of it checked: no more of it is mapped than a few shards."""
    column = Column(name="values", per="position", dtype="float32", shape=(256,))
    large = manifest(columns=(COUNTS, column), num_samples=1 << 15, samples_per_shard=1 << 11)
    view = write_view(tmp_path / "large.zarr", large, make_shards(large, counts=[1]))
    assert int(output_of(start_python(MAPPED, view.cache, base))) < 8 << 10
    (copy,) = [path for path in base.iterdir() if path.is_dir()]
    assert (copy / "sample").stat().st_size == 32 << 20


def test_room_is_looked_at_after_the_dead_are_gone(view, base, monkeypatch):
    folder = left_behind(view, base, HERE)
    usage = shutil.disk_usage

    def disk_usage(path):
        assert not folder.exists()
        return usage(path)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    copy_of(view, base)


class TestFinding:
    def test_only_what_is_there(self, view, base):
        assert find_local_copy(view, base) is None
        assert not list(base.iterdir())
        made = copy_of(view, base)
        assert find_local_copy(open_cache(view.cache)["train"], base).location == made.location

    def test_a_file_in_its_place(self, view, base):
        (base / f"{view.digest}.0").write_text("x")
        with pytest.raises(CacheError):
            find_local_copy(view, base)
        with pytest.raises(CacheError):
            open_local_copy(view, base, in_memory_bytes=0)
