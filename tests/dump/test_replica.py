"""Which replica a process is, and what it owns: pure functions, table by table."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdcache.dump.replica import Replica, replica_from
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
