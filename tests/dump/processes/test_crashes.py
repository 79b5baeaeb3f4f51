"""Killed at a named point with SIGKILL, then resumed: the arrays of an uninterrupted dump."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kdcache.store import open_cache
from kdcache.tools.verify import verify_cache
from tests.dump.forked import ForkServer
from tests.dump.processes import doomed
from tests.hang import HANG_S

WRITER = "kdcache.store.writer."
NUM_COLUMNS = 3
LAUNCHED = {
    1: [{}],
    2: [{"RANK": str(n), "WORLD_SIZE": "2", "LOCAL_RANK": str(n)} for n in range(2)],
}


@pytest.fixture(scope="module")
def server():
    with ForkServer() as started:
        yield started


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    cache = tmp_path_factory.mktemp("whole") / "c"
    doomed.whole(str(cache))
    view = open_cache(cache)["train"]
    assert len(view.manifest.columns) == NUM_COLUMNS
    return view


def assert_same(cache, whole):
    view = open_cache(cache)["train"]
    assert verify_cache(cache).is_sound
    assert view.digest == whole.digest
    for commit, other in zip(view.commits, whole.commits, strict=True):
        mine, theirs = view.read_shard(commit), whole.read_shard(other)
        assert {name: rows.tobytes() for name, rows in mine.items()} == {
            name: rows.tobytes() for name, rows in theirs.items()
        }
        assert commit.statistics == other.statistics


# (before or after the n-th call of what, shards committed by then), of one process
POINTS = {
    "a manifest, no shard": ("after", WRITER + "write_group", 3, 0),
    "before the attempt's group": ("before", WRITER + "write_group", 3 + 2, 1),
    "between two columns": ("before", WRITER + "write_array", NUM_COLUMNS * 3 + 2, 3),
    "a column, nothing else": ("after", WRITER + "write_array", 1, 0),
    "all arrays, no commit": ("before", WRITER + "write_commit", 3, 2),
    "a commit, not yet told of": ("after", WRITER + "write_commit", 4, 4),
    "every commit, no index": ("before", WRITER + "write_index", 1, 6),
    "the index": ("after", WRITER + "write_index", 1, 6),
    "a batch on its way to the writer": ("before", "kdcache.dump.loop.encode", 2 + 6, None),
}


@pytest.mark.parametrize("resumed_by", [1, 2])
@pytest.mark.parametrize("point", POINTS)
def test_one_process(server, tmp_path, whole, point, resumed_by):
    *where, committed = POINTS[point]
    cache = tmp_path / "c"
    (ending,) = server.run("tests.dump.processes.doomed:at_point", cache, *where)
    assert ending.code == -signal.SIGKILL, ending.text
    done = len(open_cache(cache)["train"].commits)
    assert done < 6 if committed is None else done == committed

    endings = server.run(
        "tests.dump.processes.doomed:whole", cache, environments=LAUNCHED[resumed_by]
    )
    assert {ending.code for ending in endings} == {0}, endings
    assert_same(cache, whole)


@pytest.mark.parametrize("batch", [0, 1, 2, 7])
def test_in_the_teacher(server, tmp_path, whole, batch):
    """At the first batch of a shard, and in the middle of one."""
    cache = tmp_path / "c"
    (ending,) = server.run("tests.dump.processes.doomed:at_batch", cache, batch)
    assert ending.code == -signal.SIGKILL, ending.text
    assert len(open_cache(cache)["train"].commits) <= batch // 2

    (ending,) = server.run("tests.dump.processes.doomed:whole", cache)
    assert ending.code == 0, ending.text
    assert_same(cache, whole)


def test_again_and_again(server, tmp_path, whole):
    """Each resume is killed, too, one shard further on, but for the last."""
    cache = tmp_path / "c"
    for done in range(1, 7):
        where = ("after", WRITER + "write_commit", 1)
        (ending,) = server.run("tests.dump.processes.doomed:at_point", cache, *where)
        assert ending.code == -signal.SIGKILL, ending.text
        assert len(open_cache(cache)["train"].commits) == done
    (ending,) = server.run("tests.dump.processes.doomed:whole", cache)
    assert ending.code == 0, ending.text
    assert_same(cache, whole)


@pytest.mark.parametrize(
    ("point", "of_second_shard"),
    [("between two columns", NUM_COLUMNS + 2), ("all arrays, no commit", 2)],
)
def test_one_of_two_leaves_the_other_to_finish(server, tmp_path, whole, point, of_second_shard):
    """Both die at their first shard, then one of them at its second."""
    cache = tmp_path / "c"
    when, where, _, _ = POINTS[point]
    both = server.run(
        "tests.dump.processes.doomed:at_point", cache, when, where, 1, environments=LAUNCHED[2]
    )
    assert [ending.code for ending in both] == [-signal.SIGKILL] * 2, both
    assert not open_cache(cache)["train"].commits

    arguments = ("tests.dump.processes.doomed:at_point", cache, when, where, of_second_shard, 1)
    first, second = server.run(*arguments, environments=LAUNCHED[2])
    assert (first.code, second.code) == (0, -signal.SIGKILL), (first, second)
    assert open_cache(cache)["train"].pending == (3, 5)

    (ending,) = server.run("tests.dump.processes.doomed:whole", cache)
    assert ending.code == 0, ending.text
    assert_same(cache, whole)


def test_at_random_moments():
    """The script that kills a hundred of them, with two."""
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [
            sys.executable,
            "scripts/checks/crash_test.py",
            "--dumps",
            "2",
            "--real",
            "0",
            "--seed",
            "1",
        ],
        check=False,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
    assert done.returncode == 0, done.stderr
    assert "2 dumps, " in done.stdout
    assert ", 2 equal to an uninterrupted one;" in done.stdout
