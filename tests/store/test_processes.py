"""Several processes on one view, and processes that die: nothing torn, nothing lost."""

from __future__ import annotations

import signal
import time

import pytest

from kdcache.errors import CacheIncompleteError
from kdcache.store import ViewWriter, open_cache
from tests.hang import HANG_S
from tests.store.synthetic import (
    equal_bits,
    make_shards,
    manifest,
    output_of,
    start_python,
    write_view,
)

NUM_SAMPLES = 32

# Both processes create the view at once and write every shard, one of them backwards.
WRITE = """
import sys, time
from pathlib import Path
from kdcache.store import ViewWriter
from tests.store.synthetic import make_shards, manifest
import zarr
cache, number = Path(sys.argv[1]), int(sys.argv[2])
wanted = manifest(num_samples=32)
shards = make_shards(wanted)
Path(f"{cache}.ready{number}").touch()
while not Path(f"{cache}.go").exists():
    time.sleep(0.001)
writer = ViewWriter.create(cache, wanted, {})
order = sorted(shards, reverse=number == 1)
done = [shard for shard in order if writer.write_shard(shard, shards[shard]) is not None]
writer.finish()
print(*done)
"""


def race(script, path, *arguments):
    """Start two processes, let them go at the same instant; what each printed."""
    processes = [start_python(script, path, number, *arguments) for number in range(2)]
    deadline = time.monotonic() + HANG_S
    ready = [path.with_name(f"{path.name}.ready{number}") for number in range(2)]
    while not all(file.exists() for file in ready) and time.monotonic() < deadline:
        time.sleep(0.005)
    path.with_name(f"{path.name}.go").touch()
    return [output_of(process) for process in processes]


def test_two_processes_on_overlapping_shards(tmp_path):
    cache = tmp_path / "cache.zarr"
    done = [{int(shard) for shard in out.split()} for out in race(WRITE, cache)]
    wanted = manifest(num_samples=NUM_SAMPLES)
    assert done[0] | done[1] == set(range(wanted.num_shards))
    assert not done[0] & done[1]
    view = open_cache(cache)["train"]
    view.check_complete()
    shards = make_shards(wanted)
    for commit in view.commits:
        assert equal_bits(view.read_shard(commit), shards[commit.shard])
    alone = write_view(tmp_path / "alone.zarr", wanted, shards)
    assert view.digest == alone.digest


# The child dies at the n-th call of a function: before anything of it happens, or right after.
DIE = """
import importlib, os, signal, sys
from pathlib import Path
from kdcache.store import ViewWriter
from tests.store.synthetic import make_shards, manifest
cache, when, where, number = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
module, _, name = where.rpartition(".")
module = importlib.import_module(module)
function, calls = getattr(module, name), []
def dying(*arguments, **keywords):
    calls.append(1)
    if when == "before" and len(calls) == number:
        os.kill(os.getpid(), signal.SIGKILL)
    result = function(*arguments, **keywords)
    if when == "after" and len(calls) == number:
        os.kill(os.getpid(), signal.SIGKILL)
    return result
setattr(module, name, dying)
writer = ViewWriter.create(cache, manifest(), {})
for shard, columns in make_shards(manifest()).items():
    writer.write_shard(shard, columns)
writer.finish()
"""


@pytest.mark.parametrize(
    ("when", "where", "number", "committed"),
    [
        (
            "before",
            "kdcache.store.format.files._name_first",
            1,
            0,
        ),  # a folder, and a temporary name
        ("before", "kdcache.store.writer.write_group", 2, 0),  # the cache is a group, no split
        ("before", "kdcache.store.writer.write_group", 3, 0),  # no manifest
        ("after", "kdcache.store.writer.write_group", 3, 0),  # a manifest, no shard
        ("before", "kdcache.store.writer.write_array", 8, 1),  # in the middle of the second shard
        (
            "before",
            "kdcache.store.format.arrays.object_file",
            8,
            1,
        ),  # written, its checksum not taken
        ("before", "kdcache.store.writer.write_commit", 2, 1),  # the attempt whole, no record
        (
            "after",
            "kdcache.store.format.files._name_first",
            7,
            2,
        ),  # a record, its other name still there
        ("before", "kdcache.store.writer.write_index", 1, 3),  # every record, no index
    ],
)
def test_killed_dump_is_resumed(tmp_path, when, where, number, committed):
    cache = tmp_path / "cache.zarr"
    process = start_python(DIE, cache, when, where, number)
    _, err = process.communicate(timeout=HANG_S)
    assert process.returncode == -signal.SIGKILL, err

    shards = make_shards(manifest())
    writer = ViewWriter.create(cache, manifest(), {})
    assert len(writer.pending()) == 3 - committed
    if writer.pending():
        with pytest.raises(CacheIncompleteError, match=f"{committed} of 3 shards"):
            open_cache(cache)["train"].check_complete()
    for shard in writer.pending():
        assert writer.write_shard(shard, shards[shard]) is not None
    assert writer.finish()
    view = open_cache(cache)["train"]
    for commit in view.commits:
        assert equal_bits(view.read_shard(commit), shards[commit.shard])
    assert view.digest == write_view(tmp_path / "alone.zarr", manifest(), shards).digest


# The copy is slow, so that the second process asks while the first one builds.
COPY = """
import sys, time
from pathlib import Path
from kdcache.store import open_cache, open_local_copy
from tests.store.synthetic import concatenated, equal_bits, expected_take, make_shards, manifest
base, number = Path(sys.argv[1]), int(sys.argv[2])
Path(f"{base}.ready{number}").touch()
while not Path(f"{base}.go").exists():
    time.sleep(0.001)
steps = []
def slowly(done, total):
    time.sleep(0.1)
    steps.append(done)
view = open_cache(sys.argv[3])["train"]
copy = open_local_copy(view, base, in_memory_bytes=0, progress=slowly)
whole = concatenated(make_shards(manifest()))
assert equal_bits(copy.take([9, 0, 9]), expected_take(view.manifest.columns, whole, [9, 0, 9]))
copy.check()
print(len(steps))
"""


def test_local_copy_is_built_once(tmp_path):
    view = write_view(tmp_path / "cache.zarr", manifest(), make_shards(manifest()))
    steps = race(COPY, tmp_path / "local", view.cache)
    assert sorted(int(out) for out in steps) == [0, 3]
