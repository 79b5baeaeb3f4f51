"""A dump in several goes, or by several jobs, holds what one uninterrupted dump holds."""

from __future__ import annotations

import pytest
from torch import nn

from kdcache.errors import UsageError
from kdcache.store import open_cache
from tests.data import toys

N = 43
SAMPLES = toys.labelled(N)


class Interrupted(nn.Module):
    """Raises at its batch number ``at``, counted from the first after the probe."""

    def __init__(self, at):
        super().__init__()
        self.inner, self.left = toys.make_teacher(), at + 1

    def forward(self, x):
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("the power went out")
        return self.inner(x)


def decoded(view):
    """Digest of every column of every shard, and the teacher's sums."""
    return [
        ({name: array.digest for name, array in commit.arrays.items()}, commit.statistics)
        for commit in view.commits
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return toys.dump(tmp_path_factory.mktemp("whole") / "c", SAMPLES, Interrupted(100))["train"]


@pytest.mark.parametrize("at", [0, 1, 2, 5, 9])
def test_after_an_interruption(cache, whole, at):
    with pytest.raises(RuntimeError, match="the power went out"):
        toys.dump(cache, SAMPLES, Interrupted(at))
    begun = open_cache(cache)["train"]
    # Two batches are a shard: what went through the teacher whole was written all the same.
    assert [commit.shard for commit in begun.commits] == list(range(at // 2))
    attempts = {commit.shard: commit.attempt for commit in begun.commits}
    view = toys.dump(cache, SAMPLES, Interrupted(100))["train"]
    assert {c.shard: c.attempt for c in view.commits if c.shard in attempts} == attempts
    assert decoded(view) == decoded(whole)
    assert view.digest == whole.digest


@pytest.mark.parametrize("count", [2, 3, 7])
def test_by_independent_jobs(cache, whole, count):
    for number in reversed(range(count)):
        assert toys.dump(cache, SAMPLES, Interrupted(100), part=f"{number}/{count}")
    view = open_cache(cache)["train"]
    assert decoded(view) == decoded(whole)
    assert view.digest == whole.digest


def test_on_another_world_size(cache, whole):
    """Two of three jobs, one of them interrupted, then one job over what is left."""
    toys.dump(cache, SAMPLES, Interrupted(100), part="2/3")
    with pytest.raises(RuntimeError):
        toys.dump(cache, SAMPLES, Interrupted(2), part="0/3")
    begun = open_cache(cache)["train"]
    assert begun.pending == (1, 3, 4)
    toys.dump(cache, SAMPLES, Interrupted(100), part="0/2")
    assert open_cache(cache)["train"].pending == (1, 3)
    view = toys.dump(cache, SAMPLES, Interrupted(100))["train"]
    assert decoded(view) == decoded(whole)


LAUNCHERS = {
    "torchrun": [
        {"RANK": str(n), "WORLD_SIZE": "2", "LOCAL_RANK": str(n), "LOCAL_WORLD_SIZE": "2"}
        | {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "x"}
        for n in range(2)
    ],
    "SLURM": [
        {"SLURM_PROCID": str(n), "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": str(n)}
        | {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_NAME": "dump"}
        | {"SLURM_JOB_ID": "1", "SLURM_NODELIST": "host", "SLURM_NODEID": "0"}
        for n in range(2)
    ],
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_under_a_launcher(cache, whole, launcher, monkeypatch):
    for number, environment in enumerate(LAUNCHERS[launcher]):
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            with pytest.raises(UsageError, match=f"already replica {number} of 2"):
                toys.dump(cache, SAMPLES, Interrupted(100), devices=2)
            toys.dump(cache, SAMPLES, Interrupted(100))
        pending = open_cache(cache)["train"].pending
        assert pending == ((1, 3, 5) if number == 0 else ())
    assert decoded(open_cache(cache)["train"]) == decoded(whole)


def test_the_batches_of_the_teacher_do_not_depend_on_who_runs_it(cache):
    """A shard's last batch is short, also where the next shard is the same replica's."""
    sizes = []

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = toys.make_teacher()

        def forward(self, x):
            sizes.append(len(x))
            return self.inner(x)

    toys.dump(cache, toys.loader(SAMPLES, batch_size=5), Watched(), samples_per_shard=8)
    assert sizes == [5, *[5, 3] * 5, 3]
