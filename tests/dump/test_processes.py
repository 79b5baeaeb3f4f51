"""Several replicas on one machine: what they write, and what is left when one of them dies."""

from __future__ import annotations

import multiprocessing
import queue
from types import SimpleNamespace

import pytest
import torch

from kdcache.dump.launch import _ending
from kdcache.errors import DataError, KdcacheError, UsageError
from kdcache.store import open_cache
from tests.data import toys
from tests.dump.spawned import MARK, KilledOnce, Scratch

N = 90
SAMPLES = toys.labelled(N)


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


def test_one_that_is_killed_leaves_the_other_to_finish(tmp_path):
    samples = [(x.clone(), y) for x, y in SAMPLES]
    samples[8 * 5 + 3][0][:] = MARK  # of shard 5, which is replica 1's
    teacher, cache = KilledOnce(tmp_path / "diary"), tmp_path / "c"
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


class InThisProcess:
    """A multiprocessing context that starts nothing: what the parent makes of each ending."""

    SimpleQueue = queue.SimpleQueue

    def __init__(self, exit_codes):
        self.exit_codes = exit_codes

    def Process(self, target, args, name):  # noqa: N802
        number = args[1].number

        def start():
            try:
                target(*args)
            except SystemExit as error:
                process.exitcode = error.code

        process = SimpleNamespace(exitcode=self.exit_codes.get(number, 0), join=lambda: None)
        process.start = (lambda: None) if number in self.exit_codes else start
        return process


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
    assert _ending(3, exit_code) == says
