"""Several replicas on one machine: what they write, and what is left when one of them dies."""

from __future__ import annotations

import multiprocessing
import os
import signal
from types import SimpleNamespace

import pytest
import torch

from kdcache.dump import launch
from kdcache.dump.launch import Ending
from kdcache.errors import DataError, KdcacheError, PreemptedError, UsageError
from kdcache.store import open_cache
from tests.data import toys
from tests.dump.processes.spawned import MARK, EndsParent, KilledOnce, Scratch

N = 90
SAMPLES = toys.labelled(N)


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    """In replicas as in this process: digests are compared, and sums may depend on threads."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def digests(cache):
    return [
        {name: array.digest for name, array in commit.arrays.items()}
        for commit in open_cache(cache)["train"].commits
    ]


def test_two_processes_write_what_one_writes(tmp_path):
    """And share no memory with this one, or with each other: their teachers may keep state."""
    teacher = Scratch()
    toys.dump(tmp_path / "two", SAMPLES, teacher, devices=2)
    assert not teacher.scratch.any()
    assert not teacher.scratch.is_shared()
    toys.dump(tmp_path / "one", SAMPLES, Scratch())
    assert digests(tmp_path / "two") == digests(tmp_path / "one")


@pytest.mark.parametrize("before_commit", [False, True])
def test_one_that_is_killed_leaves_the_other_to_finish(tmp_path, before_commit):
    samples = [(x.clone(), y) for x, y in SAMPLES]
    samples[8 * 5 + 3][0][:] = MARK  # of shard 5, which is replica 1's
    teacher = KilledOnce(tmp_path / "diary", before_commit=before_commit)
    cache = tmp_path / "c"
    with pytest.raises(KdcacheError) as caught:
        toys.dump(cache, samples, teacher, devices=2)
    text = str(caught.value)
    assert text.startswith("replica 1 was killed by SIGKILL (out of memory?).\nThe other")
    assert "run the same command again" in text
    view = open_cache(cache)["train"]
    assert set(view.pending) >= {5, 7, 9, 11}
    assert set(view.pending) <= {1, 3, 5, 7, 9, 11}

    toys.dump(cache, samples, teacher)
    toys.dump(tmp_path / "whole", samples, teacher)
    assert digests(cache) == digests(tmp_path / "whole")


def test_sigterm_is_passed_on_and_waited_for(tmp_path):
    """To the parent alone, in the middle of replica 1's third shard."""
    samples = [(x.clone(), y) for x, y in SAMPLES]
    samples[8 * 5 + 3][0][:] = MARK
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(PreemptedError, match=r"of 12 shards of split 'train'; every shard that"):
        toys.dump(tmp_path / "c", samples, EndsParent(), devices=2)
    assert signal.getsignal(signal.SIGTERM) is before
    view = open_cache(tmp_path / "c")["train"]
    assert set(view.pending) >= {7, 9, 11}
    assert not set(view.pending) & {1, 3, 5}, "the current shard was not finished"
    attempts = {path.name[:12] for path in view.folder.glob("shard-*")}
    assert len(attempts) == 12 - len(view.pending), "begun, not finished"


class InThisProcess:
    """A multiprocessing context that starts nothing: what the parent makes of each ending."""

    Pipe = staticmethod(multiprocessing.Pipe)

    def __init__(self, exit_codes, at_start=lambda number: None):
        self.exit_codes, self.at_start = exit_codes, at_start
        self.terminated = []

    def Process(self, target, args, name):  # noqa: N802
        number = args[1].number

        def start():
            self.at_start(number)
            if number in self.exit_codes:
                return
            try:
                target(*args)
            except SystemExit as error:
                process.exitcode = error.code

        return (
            process := SimpleNamespace(
                start=start,
                exitcode=self.exit_codes.get(number, 0),
                join=lambda: None,
                terminate=lambda: self.terminated.append(number),
            )
        )


def test_each_that_fails_is_reported_as_what_it_is(tmp_path, monkeypatch):
    context = InThisProcess({2: -15})
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: context)
    samples = [(x.clone(), y) for x, y in SAMPLES]
    samples[8 * 4 + 1][0][:] = float("nan")
    with pytest.raises(DataError) as caught:
        toys.dump(tmp_path / "c", samples, toys.make_teacher(), devices=3)
    first, second = str(caught.value).split("\n")
    assert first.startswith("replica 1 of 3: the teacher's logits of sample 33 are NaN")
    assert second == "replica 2 was killed by SIGTERM."
    # Replica 1 stopped at shard 4, replica 2 never began, replica 0 is done.
    assert open_cache(tmp_path / "c")["train"].pending == (2, 4, 5, 7, 8, 10, 11)


def to_this_process(number):
    if number == 1:
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("exit_codes", "kind", "says"),
    [
        # Both die of what was passed on before they could say anything; a third is never started.
        ({0: -15, 1: -15}, PreemptedError, "c holds nothing yet"),
        ({0: 0, 1: 0}, PreemptedError, "c holds nothing yet"),
        (
            {0: 1, 1: -15},
            KdcacheError,
            "replica 1 was killed by SIGTERM.\nreplica 2 was not started.\nThe other replicas of 3",
        ),
    ],
)
def test_sigterm_while_replicas_are_started(tmp_path, monkeypatch, exit_codes, kind, says):
    context = InThisProcess(exit_codes, to_this_process)
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: context)
    with pytest.raises(KdcacheError) as caught:
        toys.dump(tmp_path / "c", SAMPLES, toys.make_teacher(), devices=3)
    assert type(caught.value) is kind
    assert says in str(caught.value)
    assert set(context.terminated) == {0, 1}


def test_sigterm_that_one_replica_got_by_itself(tmp_path, monkeypatch):
    """And said so: there is nothing else to report. The other replica is done."""

    def run(job, ranks, preemption):
        if ranks.replica.number:
            raise PreemptedError("SIGTERM stopped it.")
        return real(job, ranks, preemption)

    real = launch.run
    monkeypatch.setattr(launch, "run", run)
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: InThisProcess({}))
    with pytest.raises(PreemptedError, match="holds 6 of 12 shards of split 'train'"):
        toys.dump(tmp_path / "c", SAMPLES, toys.make_teacher(), devices=2)


def test_what_cannot_be_pickled_is_explained(tmp_path):
    teacher = torch.nn.Sequential(toys.make_teacher())
    teacher.hook = lambda: None
    with pytest.raises(UsageError, match=r"cannot be pickled .*a function that makes it"):
        toys.dump(tmp_path / "c", SAMPLES, teacher, devices=2)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("exit_code", "says"),
    [
        (1, "replica 3 ended with exit code 1."),
        (-9, "replica 3 was killed by SIGKILL (out of memory?)."),
        (-15, "replica 3 was killed by SIGTERM."),
    ],
)
def test_how_an_ending_is_told(exit_code, says):
    assert str(Ending(number=3, count=4, exit_code=exit_code)) == says
