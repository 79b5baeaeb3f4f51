"""The writer's thread: its first error stops the loop, and a loop that fails loses no shard."""

from __future__ import annotations

import threading
import time

import pytest
from torch import nn

from kdcache.store import ViewWriter, open_cache
from tests.data import toys
from tests.hang import HANG_S

SAMPLES = toys.labelled(400)


class Counted(nn.Module):
    """Counts its batches; raises at number ``at``."""

    def __init__(self, at=None):
        super().__init__()
        self.inner, self.at, self.count = toys.make_teacher(), at, -1

    def forward(self, x):
        self.count += 1
        if self.count == self.at:
            raise RuntimeError("the teacher fell over")
        return self.inner(x)


@pytest.mark.parametrize("fails_at", [0, 3])
def test_a_full_disk_stops_the_loop(cache, monkeypatch, fails_at):
    real = ViewWriter.write_shard

    def write_shard(self, shard, columns, *others):
        if shard == fails_at:
            raise OSError(28, "No space left on device")
        return real(self, shard, columns, *others)

    monkeypatch.setattr(ViewWriter, "write_shard", write_shard)
    teacher = Counted()
    with pytest.raises(OSError, match="No space left"):
        toys.dump(cache, toys.loader(SAMPLES), teacher)
    assert teacher.count < 100, "the teacher ran on to the end"
    # Nothing after the failed shard was committed out of turn, nothing before it was lost.
    assert [c.shard for c in open_cache(cache)["train"].commits] == list(range(fails_at))
    assert not [t for t in threading.enumerate() if t.name == "kdcache-writer"]


def test_a_slow_disk_holds_the_loop_back(cache, monkeypatch):
    """The queue is bounded: encoded batches do not pile up in memory."""
    gate = threading.Event()
    real = ViewWriter.write_shard

    def write_shard(self, *arguments):
        gate.wait(HANG_S)
        return real(self, *arguments)

    monkeypatch.setattr(ViewWriter, "write_shard", write_shard)
    teacher = Counted()
    job = threading.Thread(target=toys.dump, args=(cache, SAMPLES, teacher))
    job.start()
    seen = -1
    while seen != teacher.count or seen < 4:
        seen = teacher.count
        time.sleep(0.3)
    assert seen < 20
    gate.set()
    job.join(HANG_S)
    assert not open_cache(cache)["train"].pending


def test_a_loop_that_fails_drains_the_queue(cache, monkeypatch):
    """Seven whole shards wait behind a slow disk when the teacher falls over."""
    real = ViewWriter.write_shard

    def write_shard(self, *arguments):
        time.sleep(0.05)
        return real(self, *arguments)

    monkeypatch.setattr(ViewWriter, "write_shard", write_shard)
    with pytest.raises(RuntimeError, match="the teacher fell over"):
        toys.dump(cache, SAMPLES, Counted(at=1 + 7 * 2 + 1))
    assert [c.shard for c in open_cache(cache)["train"].commits] == list(range(7))


def test_a_callback_that_fails_is_an_error_like_any_other(cache, monkeypatch):
    def committed(self, *_):
        raise ValueError("no terminal")

    monkeypatch.setattr("kdcache.dump.loop.DumpProgress.committed", committed)
    with pytest.raises(ValueError, match="no terminal"):
        toys.dump(cache, SAMPLES)
    assert not [t for t in threading.enumerate() if t.name == "kdcache-writer"]
