"""A teacher that several ranks hold together: one unsharded process's cache, and no rank waits."""

from __future__ import annotations

import re
import socket

import numpy as np
import pytest

from kdcache.store import open_cache
from tests.dump.forked import ForkServer
from tests.dump.processes import doomed


@pytest.fixture(scope="module")
def server():
    with ForkServer() as started:
        yield started


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    cache = tmp_path_factory.mktemp("whole") / "c"
    doomed.whole(str(cache))
    return open_cache(cache)["train"]


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def torchrun(world_size):
    """What it would put into the environment of each rank."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    return [
        {**meeting, "RANK": str(n), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(n)}
        for n in range(world_size)
    ]


def srun(world_size):
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "dump", "SLURM_NODELIST": "localhost"}
    tasks = {"SLURM_STEP_NUM_TASKS": str(world_size), "SLURM_NTASKS": str(world_size)}
    port = free_port()  # the job's number would tell it
    return [
        {**job, **tasks, "MASTER_PORT": port, "SLURM_PROCID": str(n), "SLURM_LOCALID": str(n)}
        for n in range(world_size)
    ]


def content(view):
    """Digest of every column of every shard, and the teacher's sums."""
    return [
        ({name: array.digest for name, array in commit.arrays.items()}, commit.statistics)
        for commit in view.commits
    ]


def attempts(view):
    return sorted(path.name[:12] for path in view.folder.glob("shard-*"))


@pytest.mark.parametrize(("launcher", "world_size"), [(torchrun, 2), (srun, 2), (torchrun, 4)])
def test_writes_what_one_process_writes(server, tmp_path, whole, launcher, world_size):
    """One replica of two ranks, and two of them."""
    cache = tmp_path / "c"
    function = "tests.dump.processes.doomed:in_ranks"
    endings = server.run(function, cache, 2, environments=launcher(world_size))
    assert {ending.code for ending in endings} == {0}, endings
    view = open_cache(cache)["train"]
    assert view.manifest.identity == whole.manifest.identity  # weights and class among it
    assert content(view) == content(whole)
    assert view.digest == whole.digest
    assert attempts(view) == [f"shard-{n:06}" for n in range(6)], "not exactly once"


def test_logits_that_are_sharded_over_their_classes(server, tmp_path, whole):
    cache = tmp_path / "c"
    function = "tests.dump.processes.doomed:in_tensor_parallel_ranks"
    endings = server.run(function, cache, environments=torchrun(2))
    assert {ending.code for ending in endings} == {0}, endings
    view = open_cache(cache)["train"]
    assert view.manifest.identity == whole.manifest.identity
    for commit, other in zip(view.commits, whole.commits, strict=True):
        # Half a matrix product may be rounded in another way.
        mine, theirs = view.read_shard(commit)["values"], whole.read_shard(other)["values"]
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("killed", [0, 1])
def test_a_rank_that_dies_ends_the_others(server, tmp_path, whole, killed):
    cache = tmp_path / "c"
    function = "tests.dump.processes.doomed:in_ranks_signalled"
    endings = server.run(function, cache, "SIGKILL", killed, 5, environments=torchrun(2))
    assert endings[killed].code == -9
    other = endings[1 - killed]
    assert (other.code, other.text.count("Traceback")) == (1, 0)
    assert f"rank {1 - killed} of the 2 that are replica 0: another one has ended" in other.text
    # Batches 0 to 3 are two shards; where the second rank died, the first had handed over five.
    assert open_cache(cache)["train"].pending[-3:] == (3, 4, 5)

    (ending,) = server.run("tests.dump.processes.doomed:whole", cache)
    assert ending.code == 0, ending.text
    assert content(open_cache(cache)["train"]) == content(whole)


def test_ranks_stop_together_though_one_was_signalled(server, tmp_path, whole):
    """In the middle of a shard: both run it to its end, and the first one writes it."""
    cache = tmp_path / "c"
    function = "tests.dump.processes.doomed:in_ranks_signalled"
    endings = server.run(function, cache, "SIGTERM", 1, 4, environments=torchrun(2))
    assert {ending.code for ending in endings} == {75}, endings
    assert "3 of 6 shards of split 'train'" in endings[0].text
    assert open_cache(cache)["train"].pending == (3, 4, 5)

    endings = server.run("tests.dump.processes.doomed:in_ranks", cache, 2, environments=torchrun(2))
    assert {ending.code for ending in endings} == {0}, endings
    assert content(open_cache(cache)["train"]) == content(whole)


def test_ranks_that_nobody_launched_are_told_how(server, tmp_path):
    for environment, says in (
        ({}, "1 process cannot be divided into replicas of ranks_per_replica=2"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "the ranks of a replica cannot meet: .*MASTER_ADDR"),
    ):
        (ending,) = server.run(
            "tests.dump.processes.doomed:in_ranks", tmp_path, 2, environments=[environment]
        )
        assert ending.code == 2
        assert re.search(says, ending.text)
        assert "torchrun" in ending.text


def test_a_program_that_has_initialised_torch_distributed_itself(server, tmp_path, whole):
    """Over all four ranks of its two replicas; its teachers have meshes of their own."""
    cache = tmp_path / "c"
    endings = server.run(
        "tests.dump.processes.doomed:in_own_ranks", cache, environments=torchrun(4)
    )
    assert {ending.code for ending in endings} == {0}, endings
    assert content(open_cache(cache)["train"]) == content(whole)
