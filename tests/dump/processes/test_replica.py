"""Which replica a process is, and what it owns: pure functions, table by table."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdcache.dump.processes.ranks import meeting_point
from kdcache.dump.processes.replica import Replica, replica_from
from kdcache.errors import UsageError

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
SRUN = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "2"}
BATCH_SCRIPT = {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}

PROCESSES = [
    ({}, None, Replica()),
    ({}, "0/1", Replica()),
    ({}, "3/16", Replica(number=3, count=16)),
    (TORCHRUN, None, Replica(number=5, count=8, device=1)),
    (SRUN, None, Replica(number=3, count=4, device=2)),
    ({**SRUN, **TORCHRUN}, None, Replica(number=5, count=8, device=1)),
    (TORCHRUN, "1/2", Replica(number=1, count=2)),
    # One process under a launcher is all there is.
    ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, None, Replica()),
    ({**SRUN, "RANK": "0", "WORLD_SIZE": "1"}, None, Replica(number=3, count=4, device=2)),
    # In a batch script, outside srun, one task runs, however many were asked for.
    (BATCH_SCRIPT, None, Replica()),
    ({"RANK": "1"}, None, Replica()),
    ({"RANK": "1", "WORLD_SIZE": "2"}, None, Replica(number=1, count=2)),
    ({"RANK": "", "WORLD_SIZE": ""}, None, Replica()),
]


@pytest.mark.parametrize(("environment", "part", "expected"), PROCESSES)
def test_of_a_process(environment, part, expected):
    assert replica_from(environment, part) == expected


# Four ranks on two machines, two of them a replica.
@pytest.mark.parametrize("rank", range(4))
def test_of_a_rank_among_several(rank):
    environment = {"RANK": str(rank), "WORLD_SIZE": "4", "LOCAL_RANK": str(rank % 2)}
    expected = Replica(number=rank // 2, count=2, device=rank % 2, rank=rank % 2, num_ranks=2)
    assert replica_from(environment, ranks_per_replica=2) == expected


def test_of_a_rank_of_an_independent_job():
    expected = Replica(number=3, count=16, device=1, rank=5, num_ranks=8)
    assert replica_from(TORCHRUN, "3/16", ranks_per_replica=8) == expected


@pytest.mark.parametrize(
    ("environment", "part", "ranks", "says"),
    [
        (TORCHRUN, None, 3, "8 processes cannot be divided into replicas of ranks_per_replica=3"),
        ({}, None, 2, "1 process cannot be divided .* torchrun .--nproc-per-node 2. or srun"),
        (TORCHRUN, "0/2", 4, "part 0/2 is one replica of ranks_per_replica=4 processes, but 8 run"),
        (TORCHRUN, None, 0, "ranks_per_replica is a whole number, at least 1, not 0"),
    ],
)
def test_what_is_no_division(environment, part, ranks, says):
    with pytest.raises(UsageError, match=says):
        replica_from(environment, part, ranks_per_replica=ranks)


@pytest.mark.parametrize(
    "environment",
    [
        {"SLURM_STEP_NODELIST": "gpu[07-12,20]", "SLURM_NODELIST": "all", "SLURM_JOB_ID": "812345"},
        {"SLURM_NODELIST": "gpu07,gpu08", "SLURM_JOB_ID": "2345"},
    ],
)
def test_where_ranks_meet(environment):
    assert meeting_point(environment) == "tcp://gpu07:17345"
    assert meeting_point({**environment, "MASTER_PORT": "9"}) == "tcp://gpu07:9"
    assert meeting_point({**environment, "MASTER_ADDR": "x", "MASTER_PORT": "9"}) == "env://"
    assert meeting_point({}) == "env://"


@pytest.mark.parametrize(
    "part", ["", "3", "3/3", "4/3", "0/0", "-1/3", "1 / 3", "1/3/5", "a/b", "²/3"]
)
def test_what_is_no_part(part):
    with pytest.raises(UsageError, match="like 3/16"):
        replica_from({}, part)


@pytest.mark.parametrize(("number", "count"), [(2, 2), (-1, 2), (0, 0)])
def test_what_is_no_replica(number, count):
    with pytest.raises(UsageError, match="does not exist"):
        Replica(number=number, count=count)
    with pytest.raises(UsageError, match="does not exist"):
        Replica(rank=number, num_ranks=count)


@given(st.sets(st.integers(0, 500)), st.integers(1, 20))
def test_every_pending_shard_has_one_owner(pending, count):
    owned = [Replica(number=n, count=count).owned(sorted(pending)) for n in range(count)]
    assert sorted(shard for part in owned for shard in part) == sorted(pending)


@given(st.sets(st.integers(0, 500)), st.data(), st.integers(1, 20))
def test_what_others_have_done_changes_nothing(pending, data, count):
    """Replicas look at what is pending at different moments and still never collide."""
    later = pending - data.draw(st.sets(st.sampled_from(sorted(pending) or [0])))
    for number in range(count):
        replica = Replica(number=number, count=count)
        assert set(replica.owned(later)) == set(replica.owned(pending)) & later
